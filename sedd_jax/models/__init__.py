"""Networks: tokens and total noise in, hidden states and an output layer out."""

from sedd_jax.models.build import Network, Params
from sedd_jax.models.score_transformer import ScoreTransformerConfig

__all__ = ["Network", "Params", "ScoreTransformerConfig"]
