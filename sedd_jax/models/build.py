"""From the definition of a network to pure functions of nested dicts of parameters.

The only place where NNX modules are split and merged. Parameter paths:

  ends/{embedding, noise_in, noise_out, norm, modulation, output}/{embedding | kernel, bias | scale}
  blocks/{norm1, qkv, attn_out, norm2, mlp_in, mlp_out, modulation}/{kernel, bias | scale}

Leaves under blocks/ are stacked along a leading axis. `embedding` and `output` are padded in memory
(`pad`, `unpad`); padded entries are 0, never reach a score and get no gradient.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import chex
import jax
import jax.numpy as jnp
from flax import nnx

from sedd_jax.diffusion import Parameterization, Process, ScoreStats, dense_log_score
from sedd_jax.models.score_transformer import Block, Ends, ScoreTransformerConfig

Params = dict[str, Any]
Tree = TypeVar("Tree")
Constrain = Callable[[jax.Array], jax.Array]

# Path of each padded leaf, and the axis that counts states.
_PADDED = {
  ("ends", "embedding", "embedding"): 0,
  ("ends", "output", "kernel"): 1,
  ("ends", "output", "bias"): 0,
}
_REMAT_POLICIES = {
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  "full": jax.checkpoint_policies.nothing_saveable,
}


def no_constraint(h_BLD: jax.Array) -> jax.Array:
  """What one device needs."""
  return h_BLD


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
  """A score network as pure functions.

  Attributes:
    config: shape and numerics.
    process: the noising process it models.
    parameterization: how raw outputs become log scores (`diffusion/score.py`).
    constrain: sharding constraint for activations [B, L, D], for the embedding and each block.

  Raises:
    ValueError: the parameterization does not fit the process, or the sizes disagree.
  """

  config: ScoreTransformerConfig
  process: Process
  parameterization: Parameterization = "score"
  constrain: Constrain = no_constraint

  def __post_init__(self):
    if self.config.num_states != self.process.num_states:
      raise ValueError(
        f"model.num_states={self.config.num_states} must equal the {self.process.num_states} "
        f"states of {self.process}"
      )
    if self.parameterization not in ("score", "scaled", "conditional"):
      raise ValueError(
        f"model.parameterization={self.parameterization!r} must be 'score', 'scaled' or "
        "'conditional'"
      )
    if self.parameterization != "score" and self.process.mask_id is None:
      raise ValueError(
        f"model.parameterization={self.parameterization!r} needs the absorbing process; "
        "the uniform one takes 'score'"
      )

  def init(self, key: jax.Array) -> Params:
    """Fresh parameters, float32, as the original initialises them; padded."""
    key_ends, key_blocks = jax.random.split(key)
    block_keys = jax.random.split(key_blocks, self.config.blocks)
    return self.pad(
      {
        "ends": _pure(Ends(self.config, rngs=nnx.Rngs(key_ends))),
        "blocks": jax.vmap(lambda k: _pure(Block(self.config, rngs=nnx.Rngs(k))))(block_keys),
      }
    )

  def hidden(
    self,
    params: Params,
    tokens: jax.Array,
    total: jax.Array,
    dropout_keys: jax.Array | None = None,
  ) -> jax.Array:
    """What the output layer reads.

    Args:
      tokens: int[B, L].
      total: float[B], total noise.
      dropout_keys: PRNG keys [B] in training, else None.

    Returns:
      float[B, L, D].
    """
    chex.assert_rank([tokens, total], [2, 1])
    chex.assert_equal_shape_prefix([tokens, total], 1)
    ends = nnx.merge(_graph(Ends, self.config), params["ends"])
    block_graph = _graph(Block, self.config)
    cond_BC = ends.condition(total)

    def body(h_BLD, scanned):
      block_params, layer = scanned
      keys = None if dropout_keys is None else _fold_in(dropout_keys, layer)
      h_BLD = nnx.merge(block_graph, block_params)(self.constrain(h_BLD), cond_BC, keys)
      return h_BLD, None

    if self.config.remat != "none":
      body = jax.checkpoint(body, policy=_REMAT_POLICIES[self.config.remat])
    h_BLD = self.constrain(ends.embed(tokens))
    layers = jnp.arange(self.config.blocks)
    h_BLD, _ = jax.lax.scan(body, h_BLD, (params["blocks"], layers))
    return ends.finish(self.constrain(h_BLD), cond_BC)

  def head(self, params: Params) -> tuple[jax.Array, jax.Array]:
    """The output layer: kernel float[D, S'] and bias float[S'], padded to S' columns."""
    output = params["ends"]["output"]
    return output["kernel"], output["bias"]

  def raw(
    self,
    params: Params,
    tokens: jax.Array,
    total: jax.Array,
    dropout_keys: jax.Array | None = None,
  ) -> jax.Array:
    """Outputs before the parameterization, float[B, L, S] of at least float32."""
    hidden_BLD = self.hidden(params, tokens, total, dropout_keys)
    kernel_DS, bias_S = self.head(params)
    dtype = jnp.dtype(self.config.dtype)
    # The product is taken in the compute dtype and summed in float32 at least, over the padded
    # columns: a size that hardware likes. They go right after.
    raw_BLS = jax.lax.dot_general(
      hidden_BLD.astype(dtype),
      kernel_DS.astype(dtype),
      (((2,), (0,)), ((), ())),
      preferred_element_type=self.config.stream_dtype,
    )
    raw_BLS = raw_BLS + bias_S.astype(raw_BLS.dtype)[None, None, :]
    return raw_BLS[:, :, : self.config.num_states]

  def log_score(self, params: Params, tokens: jax.Array, total: jax.Array) -> jax.Array:
    """Log concrete scores float[B, L, S] of at least float32; the own entry is 0.

    Args:
      tokens: int[B, L].
      total: float[B], total noise.
    """
    return self._log_score(self.raw(params, tokens, total), tokens, total)

  def score_stats(
    self,
    params: Params,
    x: jax.Array,
    x0: jax.Array,
    total: jax.Array,
    dropout_keys: jax.Array | None = None,
  ) -> ScoreStats:
    """The three numbers per position that the loss needs; see `diffusion/score.py`."""
    log_score_BLS = self._log_score(self.raw(params, x, total, dropout_keys), x, total)
    return self.process.stats(log_score_BLS, x, x0)

  def _log_score(self, raw_BLS: jax.Array, tokens: jax.Array, total: jax.Array) -> jax.Array:
    return dense_log_score(
      raw_BLS,
      tokens,
      total[:, None],
      vocab_size=self.process.vocab_size,
      parameterization=self.parameterization,
    )

  def pad(self, params: Tree) -> Tree:
    """Pads the tables of parameters, or of a whole train state, with zeros for use in memory."""
    extra = self.config.padded_states - self.config.num_states

    def leaf(path, x):
      axis = _padded_axis(path)
      if axis is None:
        return x
      return jnp.pad(x, [(0, extra if i == axis else 0) for i in range(x.ndim)])

    return jax.tree.map_with_path(leaf, params)

  def unpad(self, params: Tree) -> Tree:
    """The inverse of `pad`: the shapes that checkpoints and exports hold."""

    def leaf(path, x):
      axis = _padded_axis(path)
      return x if axis is None else jax.lax.slice_in_dim(x, 0, self.config.num_states, axis=axis)

    return jax.tree.map_with_path(leaf, params)

  def num_parameters(self) -> int:
    """Number of parameters, padding left out."""
    shapes = jax.eval_shape(lambda: self.unpad(self.init(jax.random.key(0))))
    return sum(x.size for x in jax.tree.leaves(shapes))


def _pure(module: nnx.Module) -> Params:
  return nnx.to_pure_dict(nnx.split(module)[1])


def _graph(module: type[Block] | type[Ends], config: ScoreTransformerConfig) -> nnx.GraphDef:
  abstract = nnx.eval_shape(lambda: module(config, rngs=nnx.Rngs(0)))
  return nnx.split(abstract)[0]


def _fold_in(keys_B: jax.Array, data: jax.Array) -> jax.Array:
  return jax.vmap(lambda key: jax.random.fold_in(key, data))(keys_B)


def _padded_axis(path: tuple[Any, ...]) -> int | None:
  """The padded axis of a leaf. Paths may be longer: optimizer states hold trees like params."""
  keys = tuple(entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey))
  return _PADDED.get(keys[-3:])
