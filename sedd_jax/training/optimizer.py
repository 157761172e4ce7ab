"""AdamW or Muon with warm-up and clipping, and the moving average of the parameters."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from sedd_jax.models.layers import Layer, Table
from sedd_jax.training.sections import below

# Of the entries of an update by Adam, as measured there (arXiv:2502.16982).
_ADAM_RMS = 0.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
  """The original's settings by default.

  Attributes:
    name: `adamw`, or `muon`: the kernels of the blocks move by their orthogonalised momentum
      (arXiv:2502.16982), all else by AdamW.
    learning_rate: peak.
    muon_factor: Muon's learning rate over AdamW's.
    muon_beta: decay of Muon's momentum.
    warmup: steps of linear warm-up; step i = 1, 2, ... uses learning_rate * min(i / warmup, 1).
    schedule: after warm-up, `constant`, or `cosine` down to 0 at the last step (a run resumed with
      another number of steps jumps to the rate of the new curve).
    b1: decay of Adam's first moment.
    b2: decay of Adam's second moment.
    eps: added to the root of the second moment.
    weight_decay: decoupled; on kernels only, not on biases, norms and embeddings.
    clip: largest global norm of the gradient; 0 turns clipping off.
    ema: decay of the moving average; step i uses min(ema, (1 + i) / (10 + i)).

  Raises:
    ValueError: fields are out of range; the message names them, a line for each.
  """

  name: Literal["adamw", "muon"] = "adamw"
  learning_rate: float = 3e-4
  muon_factor: float = 2.0
  muon_beta: float = 0.95
  warmup: int = 2500
  schedule: Literal["constant", "cosine"] = "constant"
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  weight_decay: float = 0.0
  clip: float = 1.0
  ema: float = 0.9999

  def __post_init__(self):
    faults = below(self, "optimizer", 0, "warmup", "weight_decay", "clip")
    if self.name not in ("adamw", "muon"):
      faults.append(f"optimizer.name={self.name!r} must be 'adamw' or 'muon'")
    for name in ("learning_rate", "muon_factor", "eps"):
      if not getattr(self, name) > 0:
        faults.append(f"optimizer.{name}={getattr(self, name)} must be positive")
    if self.schedule not in ("constant", "cosine"):
      faults.append(f"optimizer.schedule={self.schedule!r} must be 'constant' or 'cosine'")
    for name in ("b1", "b2", "muon_beta", "ema"):
      if not 0.0 <= getattr(self, name) < 1.0:
        faults.append(f"optimizer.{name}={getattr(self, name)} must lie in [0, 1)")
    if faults:
      raise ValueError("\n".join(faults))


def learning_rate(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
  """The schedule, a function of the number of updates made before."""
  after = (
    optax.constant_schedule(1.0)
    if config.schedule == "constant"
    else optax.cosine_decay_schedule(1.0, max(num_steps - config.warmup, 1))
  )

  def schedule(count):
    warm = jnp.minimum((count + 1) / max(config.warmup, 1), 1.0)
    return config.learning_rate * warm * after(jnp.maximum(count + 1 - config.warmup, 0))

  return schedule


def make_optimizer(
  config: OptimizerConfig, num_steps: int, table: Table | None = None
) -> optax.GradientTransformation:
  """The optax chain: clip, then AdamW, or Muon for the blocks' matrices and AdamW for the rest.

  Args:
    num_steps: length of the run, for the schedule.
    table: the network's layers, which tell Muon what is a matrix.
  """
  rate = learning_rate(config, num_steps)
  clip = _clip(config.clip) if config.clip else optax.identity()
  adamw = optax.adamw(
    rate,
    b1=config.b1,
    b2=config.b2,
    eps=config.eps,
    weight_decay=config.weight_decay,
    mask=_decays,
  )
  if config.name == "adamw":
    return optax.chain(clip, adamw)
  assert table is not None

  def labels(params: Any) -> Any:
    return jax.tree.map_with_path(
      lambda path, _: "muon" if _is_matrix(table.of_path(path)) else "adamw", params
    )

  return optax.chain(clip, optax.partition({"muon": _muon(config, rate), "adamw": adamw}, labels))


def _muon(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
  """Orthogonalised momentum, its entries as large as those of Adam's updates (arXiv:2502.16982).

  The blocks' axis and that of queries, keys and values count matrices: each is one by itself.
  """
  matrix = contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=-1)

  def scaled(updates: Any, params: Any) -> Any:
    del params
    return jax.tree.map(lambda x: x * (_ADAM_RMS * max(x.shape[1], x.shape[-1]) ** 0.5), updates)

  return optax.chain(
    contrib.scale_by_muon(
      beta=config.muon_beta,
      weight_dimension_numbers=lambda params: jax.tree.map(lambda _: matrix, params),
    ),
    optax.stateless(scaled),
    optax.add_decayed_weights(config.weight_decay),
    optax.scale_by_learning_rate(lambda count: config.muon_factor * rate(count)),
  )


def _is_matrix(layer: Layer | None) -> bool:
  """Whether a block multiplies every token by it; not so conditioning, once a row."""
  return layer is not None and layer.stacked and layer.per == "token"


def _clip(most: float) -> optax.GradientTransformation:
  """Clips by the global norm, with one factor for all entries.

  `optax.clip_by_global_norm` divides each entry; XLA on CPU does not repeat a division in both
  moments, and so writes the clipped gradient and reads it again.
  """

  def scaled(grad, params):
    del params
    factor = jnp.minimum(1.0, most / optax.tree.norm(grad))
    return jax.tree.map(lambda g: g * factor.astype(g.dtype), grad)

  return optax.stateless(scaled)


def update_ema(ema: Any, params: Any, step: jax.Array, decay: float) -> Any:
  """The moving average after update number `step` = 1, 2, ..., with the original's warm-up."""
  # 1 - min(decay, (1 + step) / (10 + step)), without its cancellation in float32.
  rate = jnp.maximum(1.0 - decay, 9.0 / (10.0 + step))
  return optax.incremental_update(params, ema, rate)


def _decays(params: Any) -> Any:
  return jax.tree.map_with_path(lambda path, _: path[-1].key == "kernel", params)
