"""Layers: one table that describes each parameter array of a network.

A network is a table and functions of nested dicts of arrays. Initialization, sharding, padding,
operation counts and the conversion of external weights all read the table.

Leaves under `blocks/` are stacked along a leading axis, which the table omits. Arrays in memory may
differ from checkpoints in two ways (`pad`, `unpad`). Axes that count states are padded with zeros,
which never reach a score and get no gradient. And an array may be reshaped, so that a mesh can
shard it by heads.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import P

Params = dict[str, Any]
Tree = TypeVar("Tree")
# Maps a key and a shape to float32[shape].
Init = Callable[[jax.Array, tuple[int, ...]], jax.Array]
# How often a matrix is applied: per token, per token that needs scores, or per row.
Per = Literal["token", "state", "row"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
  """One array of parameters.

  Attributes:
    name: its path in the nested dicts, such as `blocks/qkv/kernel`.
    shape: its shape in checkpoints, for one block.
    init: initializer of that shape.
    spec: how a mesh shards it in memory. `tensor` shards computation (heads, width of the MLP,
      vocabulary); `fsdp` shards only storage: the array is gathered before use.
    original: its name in the original PyTorch code, with `{}` for the block number.
    dtype: its dtype in products, or None for the stored dtype.
    states: the axis that counts states, or None.
    split: number of parts of the last axis, which get an axis of their own in memory.
    per: how often its matrix product is computed; None: not counted.
  """

  name: str
  shape: tuple[int, ...]
  init: Init
  spec: jax.P = P()
  original: str
  dtype: Any = None
  states: int | None = None
  split: int = 1
  per: Per | None = None

  @property
  def stacked(self) -> bool:
    """Whether every block has this array."""
    return self.name.startswith("blocks/")


@dataclasses.dataclass(frozen=True)
class Table:
  """The layers of a network.

  Attributes:
    first: layers before the blocks; all layers are in the original's parameter order.
    block: layers of one block.
    last: layers after the blocks.
    blocks: number of blocks.
    padding: number of padding entries on axes that count states.
  """

  first: tuple[Layer, ...]
  block: tuple[Layer, ...]
  last: tuple[Layer, ...]
  blocks: int
  padding: int = 0

  def __iter__(self) -> Iterator[Layer]:
    return iter((*self.first, *self.block, *self.last))

  @functools.cached_property
  def by_name(self) -> Mapping[str, Layer]:
    return {layer.name: layer for layer in self}

  @functools.cached_property
  def specs(self) -> Mapping[str, jax.P]:
    """The partition spec of each array in memory, including the blocks axis."""
    return {
      layer.name: P(None, *layer.spec) if layer.stacked and layer.spec else layer.spec
      for layer in self
    }

  def init(self, key: jax.Array) -> Params:
    """Initial parameters, float32, padded."""
    key_ends, key_blocks = jax.random.split(key)
    block_keys = jax.random.split(key_blocks, self.blocks)
    ends = _fresh((*self.first, *self.last), key_ends)
    blocks = jax.vmap(functools.partial(_fresh, self.block))(block_keys)
    return self.pad(nested(ends | blocks))

  def shapes(self) -> Params:
    """The parameters' shapes in checkpoints."""
    return jax.eval_shape(lambda: self.unpad(self.init(jax.random.key(0))))

  def pad(self, tree: Tree) -> Tree:
    """The in-memory form of parameters, or of a tree that contains trees like them."""

    def leaf(layer: Layer, x: jax.Array) -> jax.Array:
      if layer.states is not None:
        axis = layer.states + layer.stacked
        x = jnp.pad(x, [(0, self.padding if i == axis else 0) for i in range(x.ndim)])
      return x.reshape(*x.shape[:-1], layer.split, -1) if layer.split > 1 else x

    return self._map(leaf, tree)

  def unpad(self, tree: Tree) -> Tree:
    """The inverse of `pad`: the form in checkpoints and exports."""

    def leaf(layer: Layer, x: jax.Array) -> jax.Array:
      if layer.states is not None:
        axis = layer.states + layer.stacked
        x = jax.lax.slice_in_dim(x, 0, x.shape[axis] - self.padding, axis=axis)
      return x.reshape(*x.shape[:-2], -1) if layer.split > 1 else x

    return self._map(leaf, tree)

  def _map(self, function: Callable[[Layer, jax.Array], jax.Array], tree: Tree) -> Tree:
    def leaf(path, x):
      layer = self.of_path(path)
      return x if layer is None else function(layer, x)

    return jax.tree.map_with_path(leaf, tree)

  def of_path(self, path: tuple[Any, ...]) -> Layer | None:
    """The layer of a leaf, or None. The path may have a prefix, as in optimizer states."""
    names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
    ends = ("/".join(names[start:]) for start in range(len(names)))
    return next((self.by_name[end] for end in ends if end in self.by_name), None)

  def cast(self, name: str, tree: Params) -> Params:
    """The parameters below a path, `ends/output` or `blocks`, in their dtypes for products."""

    def leaf(path, x):
      layer = self.by_name["/".join([name, *(entry.key for entry in path)])]
      return x if layer.dtype is None else x.astype(layer.dtype)

    return jax.tree.map_with_path(leaf, tree)

  def products(self, per: Per) -> int:
    """Multiplications per token, per token that needs scores, or per row."""
    counted = [layer for layer in self if layer.per == per]
    return sum(_size(layer.shape) * (self.blocks if layer.stacked else 1) for layer in counted)

  def originals(self) -> Iterator[tuple[str, Layer, int]]:
    """(name, layer, block) of each tensor of the original code, in its parameter order."""
    yield from ((layer.original, layer, 0) for layer in self.first)
    for i in range(self.blocks):
      yield from ((layer.original.format(i), layer, i) for layer in self.block)
    yield from ((layer.original, layer, 0) for layer in self.last)

  def params_of(self, tensors: Mapping[str, np.ndarray]) -> Params:
    """Unpadded parameters from tensors under the original's names; missing tensors are left out."""
    arrays: dict[str, list[np.ndarray]] = {}
    for name, layer, _ in self.originals():
      if name in tensors:
        arrays.setdefault(layer.name, []).append(tensors[name])
    stacked = {layer.name: layer.stacked for layer in self}
    return nested({name: np.stack(x) if stacked[name] else x[0] for name, x in arrays.items()})


def nested(flat: Mapping[str, Any]) -> Params:
  """{"a/b": x} as {"a": {"b": x}}."""
  tree: Params = {}
  for name, x in flat.items():
    *path, last = name.split("/")
    functools.reduce(lambda section, part: section.setdefault(part, {}), path, tree)[last] = x
  return tree


def flat(tree: Params, prefix: str = "") -> dict[str, Any]:
  """{"a": {"b": x}} as {"a/b": x}."""
  leaves: dict[str, Any] = {}
  for name, x in tree.items():
    leaves |= flat(x, f"{prefix}{name}/") if isinstance(x, dict) else {prefix + name: x}
  return leaves


def linear(layer: Params, x: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
  """x float[..., D] times the kernel, plus the bias if there is one, all in dtype."""
  y = jax.lax.dot_general(
    x.astype(dtype), layer["kernel"].astype(dtype), (((x.ndim - 1,), (0,)), ((), ()))
  )
  if "bias" not in layer:
    return y
  return y + layer["bias"].astype(dtype).reshape((1,) * (y.ndim - 1) + (-1,))


def uniform(fan_in: int) -> Init:
  """Initializer U(-1, 1) / sqrt(fan_in): torch's for linear maps and SEDD's for the embedding."""
  bound = fan_in**-0.5
  return lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def normal(scale: float) -> Init:
  """Initializer: normal with this standard deviation."""
  return lambda key, shape: scale * jax.random.normal(key, shape, jnp.float32)


def zeros(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Initializer: 0 everywhere."""
  del key
  return jnp.zeros(shape, jnp.float32)


def ones(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Initializer: 1 everywhere."""
  del key
  return jnp.ones(shape, jnp.float32)


def _fresh(layers: Iterable[Layer], key: jax.Array) -> dict[str, jax.Array]:
  """Initial values by name; layer i draws from (key, i)."""
  return {
    layer.name: layer.init(jax.random.fold_in(key, i), layer.shape)
    for i, layer in enumerate(layers)
  }


def _size(shape: tuple[int, ...]) -> int:
  return functools.reduce(lambda a, b: a * b, shape, 1)
