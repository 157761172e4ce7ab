"""The programs of a run: how its state is made and advanced, and where all of it lives.

The loop runs them; planning compiles the same ones for devices that are not there.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from sedd_jax.batch import Batch
from sedd_jax.diffusion import Sampling, Scores, nothing_given, sample
from sedd_jax.models import Params, Transformer
from sedd_jax.parallel import OnMesh, batch_sharding, make_mesh, tree_shardings
from sedd_jax.parallel.memory import check_batch
from sedd_jax.parallel.mesh import batch_multiple, check_fits
from sedd_jax.training.experiment import Experiment
from sedd_jax.training.flops import forward_flops
from sedd_jax.training.objectives import Objective, ScoreEntropy
from sedd_jax.training.optimizer import make_optimizer
from sedd_jax.training.state import TrainState, create_state
from sedd_jax.training.step import skipping, train_step

# Of samples on the way: fixed, so that runs and steps compare on the same noise.
_SAMPLE_SEED = 0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Program:
  """One experiment on one mesh.

  Attributes:
    experiment: what is run.
    mesh: where.
    vocab_size: V, number of real tokens.

  Raises:
    ValueError: the mesh does not divide the model or the batch; the message says what would.
  """

  experiment: Experiment
  mesh: jax.sharding.Mesh
  vocab_size: int

  def __post_init__(self):
    _check_mesh(self.experiment, self.mesh)
    _ = self.state

  @functools.cached_property
  def objective(self) -> Objective:
    return self.experiment.make_objective(self.vocab_size, OnMesh(self.mesh))

  @property
  def network(self) -> Transformer:
    return self.objective.network

  @functools.cached_property
  def state(self) -> TrainState:
    """The train state as shapes, each with its sharding."""
    shapes = jax.eval_shape(self._create, 0)
    return jax.tree.map(_sharded, shapes, tree_shardings(self.mesh, shapes, self.network.table))

  @property
  def batch(self) -> Batch:
    """A global batch as shapes, each with its sharding."""
    data, sharding = self.experiment.data, batch_sharding(self.mesh)

    def array(dtype) -> jax.ShapeDtypeStruct:
      shape = (self.experiment.train.batch_size, data.length)
      return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    segments = array(jnp.int32) if data.visibility == "document" else None
    return Batch(array(jnp.int32), array(jnp.bool_), segments=segments)

  def create(self) -> TrainState:
    """The state before the first step, made where it lives."""
    shardings = jax.tree.map(lambda x: x.sharding, self.state)
    return jax.jit(self._create, out_shardings=shardings)(np.uint32(self.experiment.seed))

  @functools.cached_property
  def step(self):
    """`train_step` compiled: (state, batch) to (state, metrics). The old state is given up."""
    shardings = jax.tree.map(lambda x: x.sharding, self.state)
    step = functools.partial(
      train_step,
      objective=self.objective,
      optimizer=self._optimizer,
      ema=self.experiment.optimizer.ema,
      accumulation=self.experiment.train.accumulation,
    )
    if self.experiment.train.skip_nonfinite:
      step = skipping(step)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, self.replicated))

  def previews(self, num_steps: int):
    """A compiled function that draws samples: (params, int32[B]) to tokens int32[B, L].

    Its second argument are numbers of samples, as many as `batch_multiple` divides: sample i
    depends on i alone.

    Args:
      num_steps: sampling steps, where that can be chosen.
    """

    def run(params: Params, keys: jax.Array) -> jax.Array:
      return self.objective.draw(params, keys, self.experiment.data.length, num_steps)

    return self._compiled_sampler(run)

  def sampler(self, sampling: Sampling):
    """Like `previews`, of a score network, however one likes."""
    network = self.score_entropy.network

    def run(params: Params, keys: jax.Array) -> jax.Array:
      given = nothing_given(len(keys), self.experiment.data.length)
      return sample(network.scores(params), keys, sampling, given=given).x

    return self._compiled_sampler(run)

  @property
  def sampling_step(self):
    """Like `previews`: one Tweedie step and the denoising step, without a loop around them.

    Raises:
      ValueError: the model is autoregressive.
    """
    objective = self.score_entropy
    sampling = objective.sampling(1)

    def run(params: Params, keys: jax.Array) -> jax.Array:
      given = nothing_given(len(keys), self.experiment.data.length)
      scores: Scores = objective.network.scores(params)
      state = sampling.step(scores, keys, sampling.start(keys, given), given)
      return sampling.finish(scores, keys, state, given).x

    return self._compiled_sampler(run)

  @property
  def score_entropy(self) -> ScoreEntropy:
    """The objective of a diffusion model.

    Raises:
      ValueError: the model is autoregressive.
    """
    if not isinstance(self.objective, ScoreEntropy):
      raise ValueError(
        f"objective={self.experiment.objective!r}: this needs the score network of 'score_entropy'"
      )
    return self.objective

  def _compiled_sampler(self, run):
    rows = batch_sharding(self.mesh)

    @functools.partial(jax.jit, out_shardings=self.replicated)
    def draw(params: Params, numbers: jax.Array) -> jax.Array:
      key = jax.random.key(_SAMPLE_SEED)
      keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(numbers)
      return run(params, jax.lax.with_sharding_constraint(keys, rows))

    return draw

  def forward_flops(self) -> float:
    """Matrix operations of a forward pass over a global batch (`flops.forward_flops`)."""
    batch, length = self.batch.tokens.shape
    return forward_flops(self.network, batch, length, self.objective.head_share)

  @functools.cached_property
  def gradient_leaves(self) -> list[str]:
    """Paths of the parameters, in the order of `leaf_norms`."""
    leaves = jax.tree.leaves_with_path(self.state.params)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]

  def bytes(self) -> int:
    """Of the train state, in a checkpoint; the vocabulary's padding is counted too."""
    return sum(_num_bytes(x.shape, x.dtype) for x in jax.tree.leaves(self.state))

  def bytes_per_device(self) -> int:
    """Of the train state."""
    return sum(
      _num_bytes(x.sharding.shard_shape(x.shape), x.dtype) for x in jax.tree.leaves(self.state)
    )

  @property
  def replicated(self) -> jax.sharding.NamedSharding:
    """The whole array on every device."""
    return jax.sharding.NamedSharding(self.mesh, jax.P())

  @functools.cached_property
  def _optimizer(self):
    experiment = self.experiment
    return make_optimizer(experiment.optimizer, experiment.train.steps, self.network.table)

  def _create(self, seed) -> TrainState:
    held = self.experiment.train.held(layer.name for layer in self.network.table)
    return create_state(jax.random.key(seed), self.network, self._optimizer, held)


def _num_bytes(shape: tuple[int, ...], dtype) -> int:
  """Of an array; a key's few are not counted."""
  key = jnp.issubdtype(dtype, jax.dtypes.prng_key)
  return 0 if key else math.prod(shape) * dtype.itemsize


def mesh_of(experiment: Experiment) -> jax.sharding.Mesh:
  """The mesh of an experiment over all devices; checked before any text is read.

  Raises:
    ValueError: it does not fit the devices, the batch or the heads, a line for each fault; or the
      batch fits no memory.
  """
  mesh = make_mesh(experiment.mesh)
  _check_mesh(experiment, mesh)
  _check_memory(experiment, mesh)
  return mesh


def _check_mesh(experiment: Experiment, mesh: jax.sharding.Mesh) -> None:
  check_fits(
    mesh,
    batch_size=experiment.train.batch_size,
    accumulation=experiment.train.accumulation,
    heads=experiment.model.heads,
  )


def _check_memory(experiment: Experiment, mesh: jax.sharding.Mesh) -> None:
  train = experiment.train
  check_batch(
    f"train.batch_size={train.batch_size}",
    train.batch_size // batch_multiple(mesh) // train.accumulation,
    # What enters each block is kept for the gradient, however much is made anew.
    4 * experiment.data.length * experiment.model.width * experiment.model.blocks,
    [device for device in mesh.devices.flat if device.process_index == jax.process_index()],
  )
  # Tokens and masks of the whole batch, and the one made ahead, before it is cut up.
  here = train.batch_size // jax.process_count()
  check_batch(f"train.batch_size={train.batch_size}", here, 10 * experiment.data.length)


def _sharded(
  shape: jax.ShapeDtypeStruct, sharding: jax.sharding.NamedSharding
) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)
