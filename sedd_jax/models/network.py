"""Networks as pure functions of nested dicts of parameters.

`Transformer` is the trunk; `Network` is a score network, and `causal.CausalNetwork` an
autoregressive one.
"""

import dataclasses
import functools
from typing import TypeVar

import chex
import jax
import jax.numpy as jnp

from sedd_jax.batch import Batch
from sedd_jax.diffusion import (
  Columns,
  Level,
  NetworkOutput,
  Parameterization,
  Process,
  Row,
  Rows,
  Scores,
  ScoreStats,
  StatsFn,
  map_rows,
)
from sedd_jax.diffusion.levels import Levels, at_tokens
from sedd_jax.models.layers import Params, Table
from sedd_jax.models.placement import Placement
from sedd_jax.models.score_transformer import (
  KEPT,
  ScoreTransformerConfig,
  apply_block,
  condition,
  finish,
)

Tree = TypeVar("Tree")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transformer:
  """The trunk that score networks and autoregressive networks share.

  Attributes:
    config: shape and numerics.
    placement: where its arrays live; one device by default.
  """

  config: ScoreTransformerConfig
  placement: Placement = Placement()

  @property
  def table(self) -> Table:
    """The layers' table."""
    return self.config.table

  @property
  def width(self) -> int:
    """D."""
    return self.config.width

  def init(self, key: jax.Array) -> Params:
    """Initial parameters, float32, padded, with the original's initialization."""
    return self.table.init(key)

  def read(
    self,
    params: Params,
    tokens: jax.Array,
    total: Level,
    dropout_keys: jax.Array | None = None,
    segments: jax.Array | None = None,
  ) -> jax.Array:
    """Hidden states, the input of the output layer.

    Args:
      tokens: int[B, L].
      total: total noise, float[B] or a table.
      dropout_keys: PRNG keys [B] in training, else None.
      segments: int[B, L], as in `Batch`.

    Returns:
      float[B, L, D].
    """
    chex.assert_rank(tokens, 2)
    chex.assert_rank(total, [2, 2] if isinstance(total, Levels) else 1)
    chex.assert_equal_shape_prefix([tokens, *jax.tree.leaves(total)], 1)
    place, mixer = self.placement, self.config.mixer
    ends = self.used_ends(params)
    cond = condition(self.config, ends, total)

    def body(h_BLD, scanned):
      stored, layer = scanned
      keys = None if dropout_keys is None else _fold_in(dropout_keys, layer)
      block = self.used("blocks", stored)

      def mix(a_BLD):
        return mixer(block, a_BLD, segments, place.per_shard), None

      return apply_block(self.config, block, place.activations(h_BLD), cond, mix, keys)

    if self.config.remat != "none":
      kept = jax.checkpoint_policies.save_only_these_names(*KEPT[self.config.remat])
      # Forward and backward pass are separate loops, so XLA cannot merge the recomputation with the
      # forward pass; CSE barriers would only prevent fusion. A single iteration is not a loop.
      one_iteration = self.config.unroll >= self.config.blocks
      body = jax.checkpoint(body, policy=kept, prevent_cse=one_iteration)
    h_BLD = place.activations(self.embed(params, tokens))
    layers = jnp.arange(self.config.blocks)
    h_BLD, _ = jax.lax.scan(body, h_BLD, (params["blocks"], layers), unroll=self.config.unroll)
    return finish(self.config, ends, place.activations(h_BLD), cond)

  def embed(self, params: Params, tokens: jax.Array) -> jax.Array:
    """Embeddings float[B, L, D] of tokens int[B, L]."""
    table_SD = params["ends"]["embedding"]["embedding"].astype(self.config.stream_dtype)
    return self.placement.lookup(table_SD, tokens)

  def raw(self, params: Params, tokens: jax.Array, total: Level) -> jax.Array:
    """Raw outputs, before the parameterization; float[B, L, S] of at least float32."""
    hidden_BLD = self.read(params, tokens, total)
    head = self.used("ends/output", params["ends"]["output"])
    raw_BLS = self.apply_head(hidden_BLD, head["kernel"], head["bias"])
    return raw_BLS[:, :, : self.config.num_states]

  def stored_head(self, params: Params) -> tuple[jax.Array, jax.Array]:
    """Kernel float[D, S'] in the compute dtype and bias float[S'] of the output layer, sharded as
    stored."""
    output = params["ends"]["output"]
    return output["kernel"].astype(self.config.dtype), output["bias"]

  def apply_head(self, hidden: jax.Array, kernel_DS: jax.Array, bias_S: jax.Array) -> jax.Array:
    """Raw outputs of hidden states float[..., D]: a product in the compute dtype, accumulated in at
    least float32."""
    raw = jax.lax.dot_general(
      hidden.astype(self.config.dtype),
      kernel_DS.astype(self.config.dtype),
      (((hidden.ndim - 1,), (0,)), ((), ())),
      preferred_element_type=self.config.wide_dtype,
    )
    return raw + bias_S.astype(raw.dtype).reshape((1,) * (raw.ndim - 1) + (-1,))

  def used(self, name: str, layer: Params) -> Params:
    """Parameters below a path, cast and then gathered: bfloat16 halves the bytes to move."""
    return self.placement.weights(name, self.table.cast(name, layer), self.table.specs)

  def used_ends(self, params: Params) -> Params:
    """The layers before and after the blocks, without embedding and output layer."""
    return {
      name: self.used(f"ends/{name}", layer)
      for name, layer in params["ends"].items()
      if name not in ("embedding", "output")
    }

  def pad(self, params: Tree) -> Tree:
    """The in-memory form of parameters or of a whole train state (`layers.Table.pad`)."""
    return self.table.pad(params)

  def unpad(self, params: Tree) -> Tree:
    """The inverse of `pad`: the form in checkpoints and exports."""
    return self.table.unpad(params)

  def num_parameters(self) -> int:
    """Number of parameters without padding."""
    return sum(x.size for x in jax.tree.leaves(self.table.shapes()))


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

  def __post_init__(self):
    if self.config.num_states != self.process.num_states:
      raise ValueError(
        f"model.num_states={self.config.num_states} must equal the {self.process.num_states} "
        f"states of {self.process}"
      )
    _ = self.outputs

  @functools.cached_property
  def outputs(self) -> Parameterization:
    """How raw outputs become log scores."""
    return self.process.parameterization(self.parameterization)

  def log_score(self, params: Params, tokens: jax.Array, total: jax.Array) -> jax.Array:
    """Log concrete scores float[B, L, S] of at least float32; the own entry is 0.

    Args:
      tokens: int[B, L].
      total: float[B], total noise.
    """
    return self.outputs.log_score(self.raw(params, tokens, total), tokens, total[:, None])

  def stats_fn(
    self, params: Params, batch: Batch, dropout_keys: jax.Array | None = None
  ) -> StatsFn:
    """The network for losses and bounds, for rows with a batch's segments.

    Args:
      dropout_keys: PRNG keys [B] in training, else None.
    """
    keys = dropout_keys if self.config.dropout else None

    def stats(x: jax.Array, x0: jax.Array, total: Level) -> ScoreStats:
      hidden_BLD = self.read(params, x, total, keys, batch.segments)
      return self.stats_of_hidden(params, hidden_BLD, x, x0, total)

    return stats

  def score_stats(self, params: Params, x: jax.Array, x0: jax.Array, total: Level) -> ScoreStats:
    """ScoreStats: the three numbers per position that the loss needs."""
    return self.stats_of_hidden(params, self.read(params, x, total), x, x0, total)

  def stats_of_hidden(
    self, params: Params, hidden_BLD: jax.Array, x: jax.Array, x0: jax.Array, total: Level
  ) -> ScoreStats:
    """ScoreStats from hidden states, without [B, L, S]."""

    def stats(columns, hidden_BLD, x, x0, total, *, axis):
      rows = Rows(x, x0, self.process.needs_score(x))
      return self.outputs.stats(hidden_BLD, columns, rows, at_tokens(total), axis)

    hidden_BLD = hidden_BLD.astype(self.config.dtype)
    return self.placement.on_columns(stats)(*self.stored_head(params), hidden_BLD, x, x0, total)

  def scores(self, params: Params) -> Scores:
    """The `Scores` for samplers (`diffusion/sampling.py`); the output layer runs on needed rows."""
    # Kernels are cast once, here: XLA does not hoist the cast out of a conditional call.
    return NetworkScores(self, {name: self.table.cast(name, part) for name, part in params.items()})


@dataclasses.dataclass(frozen=True)
class NetworkScores:
  """The `Scores` of a network with its parameters."""

  network: Network
  params: Params

  def call(self, x, total):
    return self.network.read(self.params, x, total)

  def each_row(self, function, needed, otherwise, outputs, args):
    network = self.network

    def log_scores(columns: Columns, output: NetworkOutput) -> Row:
      features, x, total = output
      raw_TS = network.apply_head(features, columns.kernel, columns.bias)
      raw_TS = raw_TS[:, : network.config.num_states]
      return Row(network.outputs.log_score(raw_TS, x, total), x, total)

    def on_rows(columns, needed, otherwise, outputs, args):
      def tile_function(tile):
        outputs, args = tile
        return function(args, *(log_scores(columns, output) for output in outputs))

      def flat(x):
        return x.reshape(-1, *x.shape[2:])

      rows, instead = jax.tree.map(flat, ((outputs, args), otherwise))
      results = map_rows(tile_function, rows, flat(needed), instead)
      return jax.tree.map(lambda x: x.reshape(*needed.shape, *x.shape[1:]), results)

    run = network.placement.on_rows(on_rows)
    return run(*network.stored_head(self.params), needed, otherwise, outputs, args)


def _fold_in(keys_B: jax.Array, data: jax.Array) -> jax.Array:
  return jax.vmap(lambda key: jax.random.fold_in(key, data))(keys_B)
