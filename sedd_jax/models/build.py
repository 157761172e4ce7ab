"""From the definition of a network to pure functions of nested dicts of parameters.

The only place where NNX modules are split and merged. Parameter paths:

  ends/{embedding, noise_in, noise_out, norm, modulation, output}/{embedding | kernel, bias | scale}
  blocks/{norm1, qkv, attn_out, norm2, mlp_in, mlp_out, modulation}/{kernel, bias | scale}

Leaves under blocks/ are stacked along a leading axis. In memory (`pad`, `unpad`) two things differ
from what checkpoints hold: `embedding` and `output` are padded, with entries that are 0, never
reach a score and get no gradient; and queries, keys and values stand on an axis of their own in
`qkv`, so that a mesh can cut each of them at its heads.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import chex
import jax
import jax.numpy as jnp
from flax import nnx

from sedd_jax.diffusion import (
  Columns,
  Parameterization,
  Process,
  Row,
  Rows,
  Scores,
  ScoreStats,
  Seen,
  map_rows,
)
from sedd_jax.models.placement import Placement
from sedd_jax.models.score_transformer import KEPT, Block, Ends, ScoreTransformerConfig

Params = dict[str, Any]
Tree = TypeVar("Tree")

# Path of each padded leaf, and the axis that counts states.
_PADDED = {
  ("ends", "embedding", "embedding"): 0,
  ("ends", "output", "kernel"): 1,
  ("ends", "output", "bias"): 0,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transformer:
  """The transformer as pure functions: all that networks share, whatever their outputs mean.

  Attributes:
    config: shape and numerics.
    placement: where its arrays live; one device by default.
  """

  config: ScoreTransformerConfig
  placement: Placement = Placement()

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

  def read(
    self,
    params: Params,
    tokens: jax.Array,
    total: jax.Array,
    dropout_keys: jax.Array | None = None,
  ) -> jax.Array:
    """Hidden states: what the output layer reads.

    Args:
      tokens: int[B, L].
      total: float[B], total noise.
      dropout_keys: PRNG keys [B] in training, else None.

    Returns:
      float[B, L, D].
    """
    chex.assert_rank([tokens, total], [2, 1])
    chex.assert_equal_shape_prefix([tokens, total], 1)
    place = self.placement
    ends = {name: self._used(f"ends/{name}", layer) for name, layer in params["ends"].items()}
    ends = nnx.merge(ends_graph(self.config), ends)
    graph = block_graph(self.config)
    cond_BC = ends.condition(total)

    def body(h_BLD, scanned):
      block_params, layer = scanned
      keys = None if dropout_keys is None else _fold_in(dropout_keys, layer)
      block = nnx.merge(graph, self._used("blocks", block_params))
      h_BLD = block(place.activations(h_BLD), cond_BC, keys, place.per_shard)
      return h_BLD, None

    if self.config.remat != "none":
      kept = jax.checkpoint_policies.save_only_these_names(*KEPT[self.config.remat])
      # Forward and backward pass are loops of their own, so XLA has nothing to merge what is made
      # again with; barriers against that would only keep it from fusing. One iteration is no loop.
      one_iteration = self.config.unroll >= self.config.blocks
      body = jax.checkpoint(body, policy=kept, prevent_cse=one_iteration)
    table_SD = params["ends"]["embedding"]["embedding"].astype(self.config.stream_dtype)
    h_BLD = place.activations(place.lookup(table_SD, tokens))
    layers = jnp.arange(self.config.blocks)
    h_BLD, _ = jax.lax.scan(body, h_BLD, (params["blocks"], layers), unroll=self.config.unroll)
    return ends.finish(place.activations(h_BLD), cond_BC)

  def raw(
    self,
    params: Params,
    tokens: jax.Array,
    total: jax.Array,
    dropout_keys: jax.Array | None = None,
  ) -> jax.Array:
    """Outputs before the parameterization, float[B, L, S] of at least float32."""
    hidden_BLD = self.read(params, tokens, total, dropout_keys)
    head = self._used("ends/output", params["ends"]["output"])
    raw_BLS = self._apply_head(hidden_BLD, head["kernel"], head["bias"])
    return raw_BLS[:, :, : self.config.num_states]

  def _stored_head(self, params: Params) -> tuple[jax.Array, jax.Array]:
    """Kernel float[D, S'] in the compute dtype and bias float[S'] of the output layer, where they
    are stored."""
    output = params["ends"]["output"]
    return output["kernel"].astype(self.config.dtype), output["bias"]

  def _apply_head(self, hidden: jax.Array, kernel_DS: jax.Array, bias_S: jax.Array) -> jax.Array:
    """The output layer on float[..., D]: a product in the compute dtype, summed in float32 at
    least."""
    raw = jax.lax.dot_general(
      hidden.astype(self.config.dtype),
      kernel_DS.astype(self.config.dtype),
      (((hidden.ndim - 1,), (0,)), ((), ())),
      preferred_element_type=self.config.stream_dtype,
    )
    return raw + bias_S.astype(raw.dtype).reshape((1,) * (raw.ndim - 1) + (-1,))

  def _used(self, name: str, layer: Params) -> Params:
    """A layer's parameters where products need them: half the bytes to move in bfloat16."""
    return self.placement.weights(name, self._cast(name, layer))

  def _cast(self, name: str, layer: Params) -> Params:
    """A layer's parameters with kernels in the dtype that they are used in."""
    stream = name in ("ends/noise_in", "ends/noise_out")
    dtype = self.config.stream_dtype if stream else self.config.dtype

    def leaf(path, x):
      return x.astype(dtype) if path[-1].key == "kernel" else x

    return jax.tree.map_with_path(leaf, layer)

  def pad(self, params: Tree) -> Tree:
    """The form in memory of parameters or of a whole train state: tables padded, `qkv` in three."""
    extra = self.config.padded_states - self.config.num_states

    def leaf(path, x):
      axis = _padded_axis(path)
      if axis is not None:
        return jnp.pad(x, [(0, extra if i == axis else 0) for i in range(x.ndim)])
      return x.reshape(*x.shape[:2], 3, -1) if _is_qkv(path) else x

    return jax.tree.map_with_path(leaf, params)

  def unpad(self, params: Tree) -> Tree:
    """The inverse of `pad`: the shapes that checkpoints and exports hold."""

    def leaf(path, x):
      axis = _padded_axis(path)
      if axis is not None:
        return jax.lax.slice_in_dim(x, 0, self.config.num_states, axis=axis)
      return x.reshape(*x.shape[:2], -1) if _is_qkv(path) else x

    return jax.tree.map_with_path(leaf, params)

  def num_parameters(self) -> int:
    """Number of parameters, padding left out."""
    shapes = jax.eval_shape(lambda: self.unpad(self.init(jax.random.key(0))))
    return sum(x.size for x in jax.tree.leaves(shapes))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network(Transformer):
  """A score network as pure functions.

  Attributes, beside those of `Transformer`:
    process: the noising process it models.
    parameterization: how raw outputs become log scores, by name (`diffusion/parameterizations.py`).

  Raises:
    ValueError: the parameterization does not fit the process, or the sizes disagree.
  """

  process: Process
  parameterization: str = "score"

  hidden = Transformer.read

  def __post_init__(self):
    if self.config.num_states != self.process.num_states:
      raise ValueError(
        f"model.num_states={self.config.num_states} must equal the {self.process.num_states} "
        f"states of {self.process}"
      )
    _ = self._outputs

  @functools.cached_property
  def _outputs(self) -> Parameterization:
    return self.process.parameterization(self.parameterization)

  def log_score(self, params: Params, tokens: jax.Array, total: jax.Array) -> jax.Array:
    """Log concrete scores float[B, L, S] of at least float32; the own entry is 0.

    Args:
      tokens: int[B, L].
      total: float[B], total noise.
    """
    return self._outputs.log_score(self.raw(params, tokens, total), tokens, total[:, None])

  def score_stats(
    self,
    params: Params,
    x: jax.Array,
    x0: jax.Array,
    total: jax.Array,
    dropout_keys: jax.Array | None = None,
  ) -> ScoreStats:
    """The three numbers per position that the loss needs; see `diffusion/score.py`."""
    hidden_BLD = self.hidden(params, x, total, dropout_keys)
    return self.stats_of_hidden(params, hidden_BLD, x, x0, total)

  def stats_of_hidden(
    self, params: Params, hidden_BLD: jax.Array, x: jax.Array, x0: jax.Array, total: jax.Array
  ) -> ScoreStats:
    """The end of `score_stats`: the output layer alone, without [B, L, S]."""

    def stats(columns, hidden_BLD, x, x0, total, *, axis):
      rows = Rows(x, x0, self.process.needs_score(x))
      return self._outputs.stats(hidden_BLD, columns, rows, total[:, None], axis)

    hidden_BLD = hidden_BLD.astype(self.config.dtype)
    return self.placement.on_columns(stats)(*self._stored_head(params), hidden_BLD, x, x0, total)

  def scores(self, params: Params) -> Scores:
    """What samplers ask (`diffusion/sampling.py`): the output layer runs on rows that they need."""
    # Kernels are cast here, once: where calls can be skipped, nothing moves out of them.
    ends = {name: self._cast(f"ends/{name}", layer) for name, layer in params["ends"].items()}
    return NetworkScores(self, {"ends": ends, "blocks": self._cast("blocks", params["blocks"])})

  def each_row(
    self,
    params: Params,
    rule: Callable[..., Any],
    needed: jax.Array,
    otherwise: Any,
    seen: tuple[Seen, ...],
    args: Any,
  ) -> Any:
    """`Scores.each_row`, from hidden states; rules are called on tiles of rows."""

    def on_rows(columns, needed, otherwise, seen, args):
      def of_tile(tile):
        seen, args = tile
        return rule(args, *(self._row(columns, one) for one in seen))

      def flat(x):
        return x.reshape(-1, *x.shape[2:])

      rows, instead = jax.tree.map(flat, ((seen, args), otherwise))
      said = map_rows(of_tile, rows, flat(needed), instead)
      return jax.tree.map(lambda x: x.reshape(*needed.shape, *x.shape[1:]), said)

    run = self.placement.on_rows(on_rows)
    return run(*self._stored_head(params), needed, otherwise, seen, args)

  def _row(self, columns: Columns, seen: Seen) -> Row:
    """Rows of log scores from hidden states float[T, D]."""
    raw_TS = self._apply_head(seen.features, columns.kernel, columns.bias)
    raw_TS = raw_TS[:, : self.config.num_states]
    return Row(self._outputs.log_score(raw_TS, seen.x, seen.total), seen.x, seen.total)


@dataclasses.dataclass(frozen=True)
class NetworkScores:
  """The `Scores` of a network with its parameters."""

  network: Network
  params: Params

  def see(self, x, total):
    return self.network.hidden(self.params, x, total)

  def each_row(self, rule, needed, otherwise, seen, args):
    return self.network.each_row(self.params, rule, needed, otherwise, seen, args)


def _pure(module: nnx.Module) -> Params:
  return nnx.to_pure_dict(nnx.split(module)[1])


def ends_graph(config: ScoreTransformerConfig) -> nnx.GraphDef:
  """The definition of `Ends`, to merge parameters into."""
  return nnx.split(nnx.eval_shape(lambda: Ends(config, rngs=nnx.Rngs(0))))[0]


def block_graph(config: ScoreTransformerConfig) -> nnx.GraphDef:
  """The definition of `Block`."""
  return nnx.split(nnx.eval_shape(lambda: Block(config, rngs=nnx.Rngs(0))))[0]


def _fold_in(keys_B: jax.Array, data: jax.Array) -> jax.Array:
  return jax.vmap(lambda key: jax.random.fold_in(key, data))(keys_B)


def _padded_axis(path: tuple[Any, ...]) -> int | None:
  """The padded axis of a leaf."""
  return next((axis for names, axis in _PADDED.items() if names == _names(path)), None)


def _is_qkv(path: tuple[Any, ...]) -> bool:
  return _names(path) == ("blocks", "qkv", "kernel")


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
  """The last three names. Paths may be longer: optimizer states hold trees like params."""
  return tuple(entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey))[-3:]
