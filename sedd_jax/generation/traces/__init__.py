"""Replays of generation: the samples after each step as a page, GIF or text."""

from sedd_jax.generation.traces.trace import Trace
from sedd_jax.generation.traces.write import SUFFIXES, check_trace_path, write_trace

__all__ = ["SUFFIXES", "Trace", "check_trace_path", "write_trace"]
