"""Checkpoints of a run: the train state and, beside it, all that is needed to use it again.

The only module that imports orbax. A checkpoint holds one item per field of the train state (in the
form of `Network.unpad`, so that any mesh restores it), and in its metadata one JSON text: resolved
config, tokenizer, identity of the corpus.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from sedd_jax.models import Network, Params
from sedd_jax.training.state import TrainState

FOLDER = "checkpoints"


class Checkpoints:
  """The checkpoints under one run directory; saves in the background.

  Args:
    workdir: the run directory.
    network: pads and unpads the tables.
    keep_last: how many of the latest to keep.
    keep_every: also keep those whose step is a multiple of this; 0 for none.
  """

  def __init__(self, workdir: Path, network: Network, *, keep_last: int = 2, keep_every: int = 0):
    policies = ocp.training.preservation_policies
    keep: list[Any] = [policies.LatestN(keep_last)]
    if keep_every:
      keep.append(policies.EveryNSteps(keep_every))
    self._checkpointer = ocp.training.Checkpointer(
      str((workdir / FOLDER).absolute()),
      # Orbax's own protocol and policies disagree in the type of an argument.
      preservation_policy=policies.AnyPreservationPolicy(keep),  # pyright: ignore[reportArgumentType]
    )
    self._network = network
    self._unpad: Any = None  # Compiled at the first save.
    self._pending: Any = None

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *exception) -> None:
    self.close()

  def latest_step(self) -> int | None:
    """The step of the newest whole checkpoint, or None."""
    latest = self._checkpointer.latest
    return None if latest is None else latest.step

  def save(self, state: TrainState, meta: Mapping[str, Any]) -> None:
    """Starts to save; waits first for the save before it. A step that is saved already is left."""
    self.wait()
    step = int(state.step)
    if self.latest_step() == step:
      return
    # Orbax takes trees, not bare arrays: the key and the step are wrapped, and so is all else.
    if self._unpad is None:
      places = jax.tree.map(lambda x: x.sharding, self._stored(state))
      self._unpad = jax.jit(self._unpadded, out_shardings=places)
    items = {name: {name: value} for name, value in self._unpad(state).items()}
    self._pending = self._checkpointer.save_checkpointables_async(
      step, items, force=True, custom_metadata={"run": json.dumps(meta)}
    )

  def wait(self) -> None:
    """Waits until what was started is on disk."""
    if self._pending is not None:
      self._pending.result()
      self._pending = None

  def close(self) -> None:
    """Waits, and lets go of the directory."""
    self.wait()
    self._checkpointer.close()

  def load_state(self, step: int, like: TrainState) -> TrainState:
    """The train state of a step.

    Args:
      like: shapes and shardings (arrays or ShapeDtypeStructs) of the padded state.
    """
    items = {name: {name: tree} for name, tree in self._stored(like).items()}
    loaded = self._checkpointer.load_checkpointables(step, items)
    state = TrainState(**{name: loaded[name][name] for name in items})
    shardings = jax.tree.map(lambda x: x.sharding, like)
    return jax.jit(self._network.pad, out_shardings=shardings)(state)

  def _unpadded(self, state: TrainState) -> dict[str, Any]:
    return _fields(self._network.unpad(state))

  def _stored(self, like: TrainState) -> dict[str, Any]:
    """What a checkpoint holds of a padded state, as shapes with their places."""
    abstract = jax.eval_shape(self._unpadded, like)
    return {name: jax.tree.map(_placed, x, getattr(like, name)) for name, x in abstract.items()}

  def load_average(self, step: int) -> Params:
    """The moving average of the parameters alone, padded, on the first device here."""
    network = self._network
    shapes = jax.eval_shape(lambda: network.unpad(network.init(jax.random.key(0))))
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)
    loaded = self._checkpointer.load_checkpointables(step, {"ema": {"ema": abstract}})
    return network.pad(loaded["ema"]["ema"])


def read_meta(workdir: Path) -> tuple[int | None, dict[str, Any]]:
  """The step of the newest whole checkpoint, and what was stored beside it; (None, {}) without."""
  with ocp.training.Checkpointer(str((workdir / FOLDER).absolute())) as checkpointer:
    if checkpointer.latest is None:
      return None, {}
    custom: Any = checkpointer.checkpointables_metadata(checkpointer.latest).custom_metadata
    return checkpointer.latest.step, json.loads(custom["run"])


def _fields(state: TrainState) -> dict[str, Any]:
  return {name: getattr(state, name) for name in TrainState.__annotations__}


def _placed(stored: jax.ShapeDtypeStruct, like: jax.Array) -> jax.ShapeDtypeStruct:
  """Where a stored leaf lives: as `like` in memory, but whole along axes that differ there, since
  their own size need not divide."""
  sharding = like.sharding
  if stored.shape != like.shape and isinstance(sharding, jax.sharding.NamedSharding):
    sizes = zip(sharding.spec, stored.shape, like.shape, strict=False)
    kept = (axis if size == padded else None for axis, size, padded in sizes)
    sharding = jax.sharding.NamedSharding(sharding.mesh, jax.P(*kept))
  return jax.ShapeDtypeStruct(stored.shape, stored.dtype, sharding=sharding)
