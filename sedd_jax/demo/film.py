"""What changes from step to step while one sample is drawn."""

from sedd_jax.data import Tokenizer
from sedd_jax.generation.generator import Snapshot
from sedd_jax.generation.traces.cells import MASK, cells_where
from sedd_jax.generation.traces.trace import masks_of

# Position, token (None for a mask) and its text.
Change = tuple[int, int | None, str]


class Film:
  """The cells of one sample in its last frame; they look as on the page of a trace.

  Args:
    tokenizer: gives the texts; None shows token ids.
    mask_id: the mask, or None for the uniform process.
  """

  def __init__(self, tokenizer: Tokenizer | None, mask_id: int | None):
    self._tokenizer, self._mask_id = tokenizer, mask_id
    self._shown: list[tuple[int | None, str]] = []

  def changes(self, snapshot: Snapshot) -> list[Change]:
    """The cells that differ from those of the last call, all of them in the first."""
    tokens = snapshot.tokens[None, :1]
    cells = cells_where(tokens, masks_of(tokens, self._mask_id), self._tokenizer)
    shown = [
      (None if i == MASK else cells.ids[i], cells.texts[i]) for i in cells.index[0, 0].tolist()
    ]
    before, self._shown = self._shown, shown
    return [
      (position, *cell)
      for position, cell in enumerate(shown)
      if not before or cell != before[position]
    ]
