"""Which positions an attention query sees. Kernels turn it into their masks.

B: sequences, L: queries, M: keys.
"""

import dataclasses
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Rule:
  """Which positions see which, independently of the tokens.

  Attributes:
    name: its name in messages.
  """

  name: str

  def sees(self, query: Any, key: Any) -> Any:
    """bool, true where a query sees a key; positions broadcast. None if all keys are seen."""
    del query, key
    return None

  @property
  def share(self) -> float:
    """Share of visible (query, key) pairs in a long sequence."""
    return 1.0


class _Causal(Rule):
  """A position sees itself and earlier positions."""

  def sees(self, query: Any, key: Any) -> Any:
    return key <= query

  @property
  def share(self) -> float:
    return 0.5


ALL = Rule("all")
CAUSAL = _Causal("causal")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Visibility:
  """Which positions see which in a batch.

  Attributes:
    rule: the rule on positions.
    segments: int32[B, L]; a position sees only its own segment. None: no such limit.
  """

  rule: Rule = dataclasses.field(default=ALL, metadata={"static": True})
  segments: jax.Array | None = None
