"""The necessary work of a benchmark: matrix operations and bytes, counted from the shapes.

Operations are the model's own, 2 per multiply-add: without rematerialisation or padding of the
vocabulary, with full attention. Bytes are a lower bound: memory traffic if every intermediate
result stayed in cache. Activations are excluded, and only the looked-up rows of the embedding are
read.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from sedd_jax.diffusion import END_TIME, MIN_TIME
from sedd_jax.training.flops import forward_flops
from sedd_jax.training.program import Program

_TRAINING_TIMES = np.linspace(MIN_TIME, 1.0, 10001)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
  """The work of one timed call, on all devices together.

  Attributes:
    flops_dense: matrix operations with the output layer at every position.
    flops_needed: matrix operations with the output layer only at masked positions, whose number is
      the average: under absorbing noise the others have no loss and never change. Equal to
      flops_dense for the uniform process.
    masked_share: the average share of masked positions; 1 for the uniform process.
    bytes_needed: see the module docstring.
  """

  flops_dense: float
  flops_needed: float
  masked_share: float
  bytes_needed: float


def training_work(program: Program) -> Work:
  """The work of a training step: forward, backward (twice as much), AdamW and moving average.

  Bytes, all float32: the weights, read forward and backward; the gradient, written and read, since
  clipping needs its norm first; parameters, both moments and moving average, read and written.
  """
  batch, length = program.batch.tokens.shape
  share = masked_share(program, _TRAINING_TIMES)
  dense = 3 * forward_flops(program.network, batch, length)
  parameters = program.network.num_parameters()
  return Work(
    flops_dense=dense,
    flops_needed=dense - 3 * (1 - share) * _head_flops(program),
    masked_share=share,
    bytes_needed=4.0 * (2 * _weights_read(program) + 2 * parameters + 2 * 4 * parameters),
  )


def sampling_work(program: Program, num_steps: int) -> Work:
  """The work of num_steps network calls from t = 1 down, and one at the end.

  Bytes: the weights, read by every call in the compute dtype.
  """
  batch, length = program.batch.tokens.shape
  calls = num_steps + 1
  share = masked_share(program, np.linspace(1.0, END_TIME, calls))
  dense = calls * forward_flops(program.network, batch, length)
  itemsize = jnp.dtype(program.network.config.dtype).itemsize
  return Work(
    flops_dense=dense,
    flops_needed=dense - calls * (1 - share) * _head_flops(program),
    masked_share=share,
    bytes_needed=float(calls * itemsize * _weights_read(program)),
  )


def head_work(program: Program) -> Work:
  """The work of the output layer and the loss, forward and backward, from hidden states.

  Bytes, all float32: hidden states of masked positions and the layer, read forward and backward,
  and their gradients, written.
  """
  batch, length = program.batch.tokens.shape
  shape, share = program.network.config, masked_share(program, _TRAINING_TIMES)
  layer = (shape.width + 1) * shape.num_states
  return Work(
    flops_dense=3 * _head_flops(program),
    flops_needed=3 * share * _head_flops(program),
    masked_share=share,
    bytes_needed=4.0 * 3 * (share * batch * length * shape.width + layer),
  )


def draw_work(rows: int, states: int) -> Work:
  """The work of a draw from each row: float32 log weights read, int32 states written."""
  return Work(
    flops_dense=0.0, flops_needed=0.0, masked_share=1.0, bytes_needed=4.0 * rows * (states + 1)
  )


def masked_share(program: Program, times: np.ndarray) -> float:
  """Mean over times of the probability that a position is masked; 1 for the uniform process."""
  objective = program.score_entropy
  if objective.network.process.mask_id is None:
    return 1.0
  return float(np.mean(-np.expm1(-np.asarray(objective.noise.total(times), np.float64))))


def _head_flops(program: Program) -> float:
  """Operations of the output layer at every position, one forward pass."""
  batch, length = program.batch.tokens.shape
  return 2.0 * batch * length * program.network.config.width * program.network.config.num_states


def _weights_read(program: Program) -> int:
  """Number of parameters that one pass over a batch reads."""
  batch, length = program.batch.tokens.shape
  shape = program.network.config
  not_looked_up = max(shape.num_states - batch * length, 0)
  return program.network.num_parameters() - not_looked_up * shape.width
