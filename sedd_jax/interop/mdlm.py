"""Checkpoints of MDLM (arXiv:2406.07524) in its hub layout, read into our parameters.

The network is the original's. It predicts clean tokens, the mask excluded and unmasked tokens kept
(its SUBS parameterization): ours is `conditional` (docs/checkpoints.md).
"""

from pathlib import Path

from sedd_jax.diffusion import Absorbing, LogLinear
from sedd_jax.generation.model import Model
from sedd_jax.interop.fields import Fields
from sedd_jax.interop.original import make_model
from sedd_jax.interop.weights import Tensors, read_weights
from sedd_jax.models import Network, ScoreTransformerConfig

MODEL_TYPE = "mdlm"

_PREFIX = "backbone."
# BERT's vocabularies have a mask of their own in their midst, and no config.json tells where.
_BERT_SIZES = (30_522, 28_996)


def load_mdlm(folder: Path, config: Fields, dtype: str) -> Model:
  """Reads a folder in MDLM's hub layout: absorbing noise, log-linear with eps 1e-3.

  Args:
    folder: with the weights.
    config: its config.json.
    dtype: compute dtype of the network.

  Raises:
    ValueError: the config lacks a field, the mask is not the last state, or tensors are missing,
      unknown or of the wrong shape.
    ImportError: the weights are a torch pickle and torch is not installed.
  """
  states = config.integer("vocab_size")
  if states in _BERT_SIZES:
    raise config.wrong(
      states, "that of a vocabulary with the mask put last, like 50258; BERT's has it inside",
      "vocab_size",
    )  # fmt: skip
  process = Absorbing(states - 1)
  network = Network(
    config=ScoreTransformerConfig(
      num_states=process.num_states,
      width=config.integer("hidden_dim"),
      blocks=config.integer("n_blocks"),
      heads=config.integer("n_heads"),
      cond_dim=config.integer("cond_dim"),
      time_input=config.flag("time_conditioning"),
      dropout=config.number("dropout"),
      dtype=dtype,  # pyright: ignore[reportArgumentType]  (checked by the dataclass)
    ),
    process=process,
    parameterization="conditional",
  )
  tensors = _without_prefix(read_weights(folder), folder)
  return make_model(network, LogLinear(1e-3), config.integer("model_length"), tensors)


def _without_prefix(tensors: Tensors, folder: Path) -> Tensors:
  if other := [name for name in tensors if not name.startswith(_PREFIX)]:
    raise ValueError(
      f"{folder}: tensor {other[0]!r} does not start with {_PREFIX!r}, as MDLM's do "
      f"({len(other)} of {len(tensors)} do not)"
    )
  return {name.removeprefix(_PREFIX): x for name, x in tensors.items()}
