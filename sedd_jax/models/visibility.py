"""Which positions a query of attention may look at. Kernels turn it into their masks.

B: sequences, L: queries, M: keys.
"""

import dataclasses
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Rule:
  """What positions see of each other, whatever the tokens are.

  Attributes:
    name: for messages.
  """

  name: str

  def sees(self, query: Any, key: Any) -> Any:
    """bool, from positions of queries and keys that broadcast; None where all is seen."""
    del query, key
    return None

  @property
  def share(self) -> float:
    """Share of the pairs of a long sequence that are seen."""
    return 1.0


class _Causal(Rule):
  """A position sees itself and those before it."""

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
  """What the positions of some sequences see.

  Attributes:
    rule: of positions.
    segments: int32[B, L], and then a position sees its own segment alone; or None.
  """

  rule: Rule = dataclasses.field(default=ALL, metadata={"static": True})
  segments: jax.Array | None = None
