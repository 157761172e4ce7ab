"""The benchmarks' named shapes. This module does not import jax: the PyTorch baseline uses it."""

import ast
import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
  """A network and its batches.

  Attributes:
    width, blocks, heads, cond_dim, dropout, dtype, remat, unroll: as in `ModelConfig`.
    length: tokens in a sequence.
    vocab: V, number of real tokens.
    batch: sequences in a training batch.
    samples: sequences in a sampled batch.
  """

  width: int
  blocks: int
  heads: int
  cond_dim: int
  length: int
  vocab: int
  batch: int
  samples: int
  dropout: float = 0.1
  dtype: str = "float32"
  remat: str = "none"
  unroll: int = 1


SHAPES = {
  "A": Shape(
    width=256, blocks=4, heads=4, cond_dim=64, length=128, vocab=27, batch=32, samples=4,
    unroll=4,
  ),
  # Of the bounds of docs/results.md.
  "Q": Shape(
    width=96, blocks=2, heads=4, cond_dim=64, length=64, vocab=27, batch=32, samples=32,
    dropout=0.0, remat="dots",
  ),
  "B": Shape(
    width=384, blocks=6, heads=6, cond_dim=128, length=256, vocab=50257, batch=2, samples=4,
    remat="dots",
  ),
  # As in configs/openwebtext.py.
  "small": Shape(
    width=768, blocks=12, heads=12, cond_dim=128, length=1024, vocab=50257, batch=8, samples=8,
    dtype="bfloat16", remat="dots",
  ),
  "medium": Shape(
    width=1024, blocks=24, heads=16, cond_dim=128, length=1024, vocab=50257, batch=8, samples=8,
    dtype="bfloat16", remat="dots",
  ),
}  # fmt: skip


def assigned(values: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
  """A copy of nested dicts with `a.b=value` assigned; values are Python literals, else strings.

  New names are added too: the caller checks names.

  Raises:
    ValueError: an assignment has no `=`, or its path leads through a field that is not a section.
  """
  result = copy.deepcopy(dict(values))
  for assignment in assignments:
    path, equals, text = assignment.partition("=")
    *sections, name = path.split(".")
    if not equals:
      raise ValueError(f"--set {assignment} must be name=value, for example model.dropout=0.0")
    inner = result
    for section in sections:
      inner = inner.setdefault(section, {})
      if not isinstance(inner, dict):
        raise ValueError(f"--set {assignment}: {section} is no section")
    try:
      inner[name] = ast.literal_eval(text)
    except (ValueError, SyntaxError):
      inner[name] = text
  return result
