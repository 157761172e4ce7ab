"""Score entropy discrete diffusion language models in JAX (SEDD, arXiv:2310.16834)."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from sedd_jax.generation.causal import CausalModel
  from sedd_jax.generation.model import Model
  from sedd_jax.interop.export import export
  from sedd_jax.interop.load import load

__all__ = ["CausalModel", "Model", "export", "load"]
__version__ = "0.1.0"

_HOMES = {
  "CausalModel": "generation.causal",
  "Model": "generation.model",
  "export": "interop.export",
  "load": "interop.load",
}


def __getattr__(name: str):
  # Imported when asked for: reading text, and the first page of help, need no JAX.
  if name not in _HOMES:
    raise AttributeError(f"module 'sedd_jax' has no attribute {name!r}")
  return getattr(importlib.import_module(f"sedd_jax.{_HOMES[name]}"), name)
