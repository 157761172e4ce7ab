"""Compiles a run for TPU slices that are not attached, and estimates its cost."""

from sedd_jax.planning.plan import Plan, plan_sampling, plan_training
from sedd_jax.planning.slices import Slice, find_slice

__all__ = ["Plan", "Slice", "find_slice", "plan_sampling", "plan_training"]
