"""Checkpoints of a run: the train state, and beside it all that is needed to use it.

The only module that imports orbax. A checkpoint holds one item per field of the train state (in the
form of `Transformer.unpad`, so that any mesh restores it), and in its metadata one JSON text:
resolved config, tokenizer, identity of the corpus. Weights that are held never change: they are
saved once, in a folder beside the checkpoints.

A save goes through `STEP.partial`; the manifest is its last file, and then the folder gets the
name `STEP`. A checkpoint is compared with its manifest before it is loaded. A damaged one is never
removed.
"""

import concurrent.futures
import glob
import json
import logging
import os
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from sedd_jax.files import manifest
from sedd_jax.files.whole import PARTIAL, remove, sync
from sedd_jax.models import Params, Transformer
from sedd_jax.models.layers import flat
from sedd_jax.parallel import processes
from sedd_jax.training.state import TrainState, merged, split

FOLDER = "checkpoints"

_HELD = "held"
# For Orbax's own files beside the arrays.
_MARGIN_BYTES = 2**20

Say = Callable[[str], None]

# A failed write raises an exception, which we report; Orbax would log one per thread besides.
logging.getLogger("absl").addFilter(lambda record: "raised an exception" not in str(record.msg))


class Checkpoints:
  """The checkpoints under one run directory; saves in the background.

  Args:
    workdir: the run directory.
    network: pads and unpads the tables.
    keep_last: number of latest whole checkpoints to keep.
    keep_every: checkpoints whose step is a multiple of this are kept too; 0 for none.
  """

  def __init__(
    self, workdir: Path, network: Transformer, *, keep_last: int = 2, keep_every: int = 0
  ):
    self._workdir = workdir.absolute()
    self._folder = self._workdir / FOLDER
    self._keep_last, self._keep_every = keep_last, keep_every
    self._network = network
    self._unpad: Any = None  # Compiled at the first save.
    self._held: dict[str, Any] | None = None  # Names and hash of the held weights, once on disk.
    self._pending: concurrent.futures.Future[None] | None = None
    self._failure: str | None = None
    self._whole: set[int] = set()  # Steps whose checkpoints are known to be whole.
    self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="save")

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, kind, *exception) -> None:
    if kind is not KeyboardInterrupt:  # A second Ctrl-C waits for nothing.
      self.close()

  def save(self, state: TrainState, meta: Mapping[str, Any]) -> None:
    """Starts to save, after the save before has ended. `failure` tells whether it worked.

    Raises:
      FloatingPointError: the state is not finite and is not saved; the message names the arrays.
    """
    self.wait()
    if self._unpad is None:
      places = jax.tree.map(lambda x: x.sharding, self._stored(state))
      self._unpad = jax.jit(
        lambda state: (self._unpadded(state), _finite(state)), out_shardings=(places, None)
      )
    step = int(state.step)
    # Orbax takes trees, not bare arrays such as the step: every item is wrapped in a dict.
    values, finite = self._unpad(state)
    _check_finite(finite, step)
    items = {name: {name: value} for name, value in values.items()}
    new = {} if self._held else state.held
    size = sum(_num_bytes(x) for x in jax.tree.leaves((items, new)))
    trouble = self._trouble(size) if processes.is_lead() else None
    if processes.of_lead(int(trouble is not None)):
      self._failure = unsaved_message(step, trouble or "process 0 cannot write")
      return
    self._failure = None
    marks: dict[str, Any] = {"run": json.dumps(meta), "manifest": manifest.FILE}
    options = ocp.Context()
    # Orbax joins the files of processes by a glob of their path, and finds none behind such signs:
    # what it wrote could not be read.
    options.array.saving.use_ocdbt = glob.escape(str(self._folder)) == str(self._folder)
    # Otherwise Orbax's threads would wait 20 minutes for a folder that cannot be made.
    options.asynchronous.create_directories_asynchronously = False
    try:
      with options:
        if new:
          self._held = self._save_held(new)
        if self._held:
          marks["held"] = json.dumps(self._held)
        response = ocp.save_checkpointables_async(
          str(self._partial(step)),
          items,
          custom_metadata=marks,
        )
    except (OSError, ValueError) as error:
      self._fail(step, error)
    else:
      self._pending = self._thread.submit(self._finish, step, response)

  def failure(self) -> str | None:
    """Why the last save failed, told once; None if it succeeded or still runs."""
    if self._pending is not None and self._pending.done():
      self.wait()
    failure, self._failure = self._failure, None
    return failure

  def wait(self) -> None:
    """Waits until the save that was started has ended or failed."""
    if self._pending is not None:
      self._pending.result()
      self._pending = None

  def close(self) -> None:
    """Waits, and ends the thread."""
    self.wait()
    self._thread.shutdown()

  def resume(self, say: Say) -> int | None:
    """The step of the newest whole checkpoint, the same on all processes; None if there is none.

    Newer, damaged checkpoints are renamed, so that the run can save those steps again. Unfinished
    saves are removed. Only the process that trains may call this.

    Raises:
      ValueError: there are checkpoints but none is whole, or this process does not see it.
    """
    step = None
    if processes.is_lead():
      step = newest_whole(self._workdir, say)
      self._sweep()
      for damaged in (other for other in _steps(self._workdir) if other > (step or 0)):
        say(f"step {damaged} is kept as {self._set_aside(damaged)}")
    step = processes.of_lead(step or 0) or None
    if step is not None:
      self._whole.add(step)
      if not (self._folder / str(step)).is_dir():
        raise ValueError(
          f"process {jax.process_index()} does not see {self._folder / str(step)}, and process 0 "
          "does: is the shared file system not up to date? Started again, they may agree"
        )
    return step

  def load_state(self, step: int, like: TrainState) -> TrainState:
    """The train state of a step.

    Args:
      like: shapes and shardings (arrays or ShapeDtypeStructs) of the padded state.
    """
    items = {name: {name: tree} for name, tree in self._stored(like).items()}
    loaded = ocp.load_checkpointables(str(self._folder / str(step)), items)
    self._held = self._held_of(step)
    held = self._load_held(jax.eval_shape(self._network.unpad, like.held), like.held)
    state = TrainState(**{name: loaded[name][name] for name in items}, held=held)
    shardings = jax.tree.map(lambda x: x.sharding, like)
    return jax.jit(self._network.pad, out_shardings=shardings)(state)

  def load_average(self, step: int) -> Params:
    """The moving average of the parameters, padded, on the first local device. Held weights are
    included as they are."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    self._held = self._held_of(step)
    names = self._held["names"] if self._held else ()
    trained, held = split(self._network.table.shapes(), names)
    trained, held = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), (trained, held)
    )
    loaded = ocp.load_checkpointables(str(self._folder / str(step)), {"ema": {"ema": trained}})
    return self._network.pad(merged(loaded["ema"]["ema"], self._load_held(held, held)))

  def _held_of(self, step: int) -> dict[str, Any] | None:
    """Names and hash of the weights that a checkpoint's run holds; None if it holds none."""
    return json.loads(_custom(self._folder / str(step)).get("held", "null"))

  def _save_held(self, held: Params) -> dict[str, Any]:
    """Writes the held weights, in place of any that an earlier start left. Returns their names and
    the hash of their manifest, which every checkpoint names.

    Raises:
      OSError: they cannot be written; on all processes if process 0 cannot.
    """
    partial, folder = self._folder / f"{_HELD}{PARTIAL}", self._folder / _HELD
    trouble: Exception | None = None
    digest = ""
    try:
      stored = jax.jit(self._network.unpad)(held)
      ocp.save_checkpointables(str(partial), {_HELD: {_HELD: stored}})
      if processes.is_lead():
        manifest.write_manifest(partial)
        digest = manifest.digest(partial)
        remove(folder)
        partial.rename(folder)
        sync(self._folder)
    except (OSError, ValueError) as error:
      trouble = error
    if processes.of_lead(int(trouble is not None)):
      raise OSError(f"the held weights: {trouble or 'process 0 cannot write them'}")
    return {"names": list(flat(held)), "sha256": digest}

  def _load_held(self, stored: Params, like: Params) -> Params:
    """The weights that the run holds, unpadded; `like` says where they live.

    Raises:
      ValueError: their folder is damaged or missing, or was saved for other checkpoints.
    """
    if not self._held:
      return {}
    folder = self._folder / _HELD
    faults = manifest.faults(folder)
    if not faults and manifest.digest(folder) != self._held["sha256"]:
      faults = ["they are not those of this checkpoint"]
    if faults:
      raise ValueError(f"the held weights in {folder} are damaged: {'; '.join(faults[:3])}")
    items = {_HELD: {_HELD: jax.tree.map(_placed, stored, like)}}
    return ocp.load_checkpointables(str(folder), items)[_HELD][_HELD]

  def _unpadded(self, state: TrainState) -> dict[str, Any]:
    return _fields(self._network.unpad(state))

  def _stored(self, like: TrainState) -> dict[str, Any]:
    """Shapes and shardings of a padded state in the form that a checkpoint holds."""
    abstract = jax.eval_shape(self._unpadded, like)
    return {name: jax.tree.map(_placed, x, getattr(like, name)) for name, x in abstract.items()}

  def _partial(self, step: int) -> Path:
    return self._folder / f"{step}{PARTIAL}"

  def _trouble(self, size: int) -> str | None:
    """Why `size` bytes cannot be written, as far as that is known before; else None."""
    if not self._workdir.is_dir() or not any(self._workdir.iterdir()):
      return f"{self._workdir} is not there any more"
    try:
      self._folder.mkdir(exist_ok=True)
      self._sweep()  # Threads of a failed save may have written more.
      check_room(self._folder, size)
    except OSError as error:
      return str(error)
    return None

  def _finish(self, step: int, response: ocp.AsyncResponse[None]) -> None:
    """Ends a save, in its thread: once all processes have written, process 0 renames the folder."""
    try:
      response.result()
      if processes.is_lead():
        manifest.write_manifest(self._partial(step))
        if (self._folder / str(step)).exists():
          self._set_aside(step)
        self._partial(step).rename(self._folder / str(step))
        sync(self._folder)
        self._whole.add(step)
        self._remove_old()
    except (OSError, ValueError) as error:  # Orbax's RESOURCE_EXHAUSTED is a ValueError.
      self._fail(step, error)

  def _fail(self, step: int, error: Exception) -> None:
    if processes.is_lead():
      self._sweep()
    self._failure = unsaved_message(step, str(error))

  def _sweep(self) -> None:
    """Removes what failed or killed saves have left."""
    for path in self._folder.glob(f"*{PARTIAL}*"):
      remove(path)

  def _remove_old(self) -> None:
    """Removes checkpoints older than the latest whole ones that are kept."""
    count = 0
    for step in reversed(_steps(self._workdir)):
      if count < self._keep_last:
        if step not in self._whole and not _damage(self._folder / str(step))[0]:
          self._whole.add(step)
        count += step in self._whole
      elif not self._keep_every or step % self._keep_every:
        # Renamed first: a kill must not leave half a checkpoint under this name.
        doomed = self._folder / f"{step}.old{PARTIAL}"
        (self._folder / str(step)).rename(doomed)
        shutil.rmtree(doomed)

  def _set_aside(self, step: int) -> Path:
    names = (f"damaged-{step}" + (f"-{i}" if i else "") for i in range(10_000))
    target = next(path for name in names if not (path := self._folder / name).exists())
    (self._folder / str(step)).rename(target)
    return target


def newest_whole(workdir: Path, say: Say = warnings.warn) -> int | None:
  """The step of the newest whole checkpoint, or None if there are no checkpoints.

  Args:
    workdir: the run directory.
    say: prints what is wrong with each damaged checkpoint that is passed over.

  Raises:
    ValueError: there are checkpoints but none is whole; the message says what is wrong with each.
  """
  damaged = []
  for step in reversed(_steps(workdir)):
    folder = workdir / FOLDER / str(step)
    faults, note = _damage(folder)
    if faults and not folder.is_dir():
      continue  # A run that goes on has removed it meanwhile.
    if not faults:
      for text in damaged:
        say(text)
      if damaged:
        say(f"the newest whole checkpoint is that of step {step}")
      if note:
        say(note)
      return step
    shown = "; ".join(faults[:3]) + (f"; and {len(faults) - 3} more" if len(faults) > 3 else "")
    damaged.append(f"the checkpoint {folder} is damaged: {shown}")
  if damaged:
    raise ValueError(
      "\n".join(damaged) + f"\nNo checkpoint in {workdir / FOLDER} is whole. Nothing was changed: "
      "bring one back from a copy, or start again in a new --workdir"
    )
  return None


def load_meta(workdir: Path, step: int) -> dict[str, Any]:
  """The metadata stored beside the state of a step."""
  return json.loads(_custom(workdir / FOLDER / str(step))["run"])


def check_room(folder: Path, size: int) -> None:
  """Checks that a file can be made in a folder and that `size` bytes are free.

  Raises:
    OSError: not so; the message says which.
  """
  probe = folder / f"probe{PARTIAL}"
  try:
    free = shutil.disk_usage(folder).free
    if free < (needed := size + _MARGIN_BYTES):
      raise OSError(
        f"{free / 2**20:,.1f} MiB are free, and a checkpoint needs {needed / 2**20:,.1f} MiB"
      )
    try:
      probe.write_bytes(b"sedd")
    finally:
      probe.unlink(missing_ok=True)
  except OSError as error:
    raise OSError(f"{folder} cannot be written to: {error.strerror or error}") from error


def room_note(workdir: Path, size: int, kept: int) -> str | None:
  """A message if there is space for one checkpoint but not for all that a run keeps, else None.

  Args:
    workdir: the run directory.
    size: bytes of a checkpoint.
    kept: number of checkpoints that the run keeps at once.
  """
  free = shutil.disk_usage(workdir).free
  missing = max(kept - len(_steps(workdir)), 0)
  if free >= missing * size:
    return None
  return (
    f"{workdir} has {free / 2**20:,.0f} MiB free; the run will keep {missing} more checkpoints of "
    f"{size / 2**20:,.0f} MiB each (--config.checkpoint)"
  )


def _steps(workdir: Path) -> list[int]:
  """Steps that have a checkpoint folder, in order."""
  folder = workdir / FOLDER
  names = os.listdir(folder) if folder.is_dir() else []
  return sorted(int(name) for name in names if re.fullmatch("[0-9]+", name))


def _damage(folder: Path) -> tuple[list[str], str | None]:
  """What is wrong with a checkpoint, and a note on one without a manifest to compare with."""
  faults = manifest.faults(folder)
  if not (folder / manifest.FILE).exists():
    try:
      custom = _custom(folder)
    except Exception:  # Orbax raises many types for damaged files.
      return faults, None
    if "run" in custom and "manifest" not in custom:
      return [], f"{folder} was saved before checkpoints had manifests: it cannot be compared"
  return faults, None


def _custom(folder: Path) -> dict[str, Any]:
  custom: Any = ocp.checkpointables_metadata(str(folder.absolute())).custom_metadata
  return custom or {}


def unsaved_message(step: int, why: str) -> str:
  """The message about a save that failed."""
  return (
    f"THE CHECKPOINT OF STEP {step} WAS NOT SAVED: {why}\n"
    "Checkpoints that are there already stay as they are."
  )


def _finite(state: TrainState) -> dict[str, jax.Array]:
  """bool[] for each array of real numbers, by path."""
  leaves = jax.tree.leaves_with_path(_fields(state))
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): jnp.isfinite(x).all()
    for path, x in leaves
    if jnp.issubdtype(x.dtype, jnp.floating)
  }


def _check_finite(finite: Mapping[str, jax.Array], step: int) -> None:
  bad = [name for name, good in jax.device_get(finite).items() if not good]
  if bad:
    raise FloatingPointError(
      f"step {step}: {len(bad)} of {len(finite)} arrays of the state are not finite "
      f"({', '.join(bad[:3])}{', ...' if len(bad) > 3 else ''}), and it is not saved. Checkpoints "
      "of earlier steps are kept. A lower --config.optimizer.learning_rate may help."
    )


def _num_bytes(x: jax.Array) -> int:
  return 16 if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x.nbytes


def _fields(state: TrainState) -> dict[str, Any]:
  """What every checkpoint holds."""
  return {name: getattr(state, name) for name in TrainState.__annotations__ if name != "held"}


def _placed(stored: jax.ShapeDtypeStruct, like: jax.Array) -> jax.ShapeDtypeStruct:
  """Where a stored leaf lives: as `like` in memory, but whole along axes that differ there, since
  their own size need not divide."""
  sharding = like.sharding
  if stored.shape != like.shape and isinstance(sharding, jax.sharding.NamedSharding):
    sizes = zip(sharding.spec, stored.shape, like.shape, strict=False)
    kept = (axis if size == padded else None for axis, size, padded in sizes)
    sharding = jax.sharding.NamedSharding(sharding.mesh, jax.P(*kept))
  return jax.ShapeDtypeStruct(stored.shape, stored.dtype, sharding=sharding)
