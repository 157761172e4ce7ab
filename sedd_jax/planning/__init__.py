"""Compiles a run for TPU slices that are not there, and says what it would cost."""

from sedd_jax.planning.plan import Plan, plan_sampling, plan_training

__all__ = ["Plan", "plan_sampling", "plan_training"]
