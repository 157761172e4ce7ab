"""Score entropy discrete diffusion language models in JAX (SEDD, arXiv:2310.16834)."""

from sedd_jax.interop.export import export
from sedd_jax.interop.load import load
from sedd_jax.interop.model import Model

__all__ = ["Model", "export", "load"]
__version__ = "0.1.0"
