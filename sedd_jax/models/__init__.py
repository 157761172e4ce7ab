"""Networks: they map tokens and total noise to hidden states and scores."""

from sedd_jax.models.causal import Autoregressive, CausalNetwork
from sedd_jax.models.decoding import decode
from sedd_jax.models.layers import Params
from sedd_jax.models.network import Network, Transformer
from sedd_jax.models.score_transformer import ScoreTransformerConfig

__all__ = [
  "Autoregressive",
  "CausalNetwork",
  "Network",
  "Params",
  "ScoreTransformerConfig",
  "Transformer",
  "decode",
]
