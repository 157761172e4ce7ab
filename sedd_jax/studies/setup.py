"""The setup of an evaluation of samples: a judge and real text, from the names that users give."""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sedd_jax.data import Tokenizer, load_corpus
from sedd_jax.data.patterns import HUB, TFDS
from sedd_jax.data.rows import spread
from sedd_jax.evaluation.grading import Grader
from sedd_jax.evaluation.judge import Judge, retokenized
from sedd_jax.files.paths import local_path
from sedd_jax.generation.causal import CausalModel
from sedd_jax.generation.model import LanguageModel
from sedd_jax.interop.load import load
from sedd_jax.studies.runtext import MovedText, run_dataset

# Of real text: enough for MAUVE's usual numbers.
_MOST_ROWS = 4000
_FEWEST_TOKENS = 16
# Rows of the judge's length that are retokenized together.
_ROWS_IN_PIECE = 64


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EvaluationSetup:
  """A judge with its tokenizer, and the source of real text.

  Attributes:
    model: the judge.
    tokenizer: the judge's.
    name: path or hub id of the judge.
    reference: a run, for its held-out text, or text in the notation of `data.files`.
    batch_size: texts per call of the judge.
    moved: where the text of the reference is now, if that is a run.
  """

  model: CausalModel
  tokenizer: Tokenizer
  name: str
  reference: str
  batch_size: int
  moved: MovedText = MovedText()

  @classmethod
  def load(
    cls,
    name: str,
    reference: str,
    *,
    tokenizer: str | None,
    tokenizer_eos: str = "",
    batch_size: int,
    moved: MovedText = MovedText(),
  ) -> "EvaluationSetup":
    """The setup with a loaded judge.

    Args:
      name: a run of an autoregressive model, a folder of GPT-2's, or its hub id.
      reference: a run, or text; "" for the held-out text of the judge's own run.
      tokenizer, tokenizer_eos: for a judge that comes without one.
      batch_size: texts per call of the judge.
      moved: where the text of a run is now.

    Raises:
      ValueError: the judge is not autoregressive or has no tokenizer, or there is no reference.
    """
    model = load(name, tokenizer=tokenizer, tokenizer_eos=tokenizer_eos)
    if not isinstance(model, CausalModel):
      raise ValueError(
        f"--judge={name} must be autoregressive: a run of objective 'autoregressive', or GPT-2"
      )
    if model.tokenizer is None:
      raise ValueError(f"--judge={name} came without a tokenizer: --judge_tokenizer=gpt2:FOLDER")
    if not reference and "experiment" not in model.info:
      raise ValueError(
        f"--judge={name} is no run of ours and names no held-out text: --reference=RUN or text "
        "files"
      )
    return cls(
      model=model,
      tokenizer=model.tokenizer,
      name=name,
      reference=reference or name,
      batch_size=batch_size,
      moved=moved,
    )

  @property
  def settings(self) -> Mapping[str, Any]:
    """What grades depend on, for reports."""
    return {
      "judge": self.name,
      "judge_step": self.model.info.get("step"),
      "judge_dtype": self.model.dtype,
      "reference": self.reference,
    }

  def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Each text in the judge's tokens, int[T]."""
    return self.tokenizer.encode_batch(list(texts))

  def retokenize(
    self, model: LanguageModel, tokens: np.ndarray | Sequence[np.ndarray]
  ) -> list[np.ndarray]:
    """Rows of a model's tokens in the judge's tokens."""
    if model.tokenizer is None:
      raise ValueError("a model without a tokenizer cannot be judged: name it with --tokenizer")
    return retokenized(tokens, model.tokenizer, self.tokenizer)

  def real_rows(self, length: int) -> np.ndarray:
    """Rows int32[R, length] of held-out text in the judge's tokens, spread evenly over it.

    Raises:
      ValueError: there is too little text.
    """
    whole = [text[: len(text) // length * length] for text in self._real_texts(length)]
    rows = np.concatenate(whole).reshape(-1, length)
    if not len(rows):
      raise ValueError(f"--reference={self.reference} has no {length} tokens in a row")
    return rows[spread(len(rows), _MOST_ROWS)].astype(np.int32)

  @functools.cached_property
  def judge(self) -> Judge:
    """Gives the likelihood of texts."""
    model = self.model
    return Judge(model.network, model.params, batch_size=self.batch_size, longest=model.length)

  def grader(self, length: int) -> Grader:
    """Grades samples of `length` tokens of the judge."""
    return Grader(self.judge, self.real_rows(length))

  def _real_texts(self, length: int) -> list[np.ndarray]:
    """Pieces of real text in the judge's tokens. Adjacent rows of a run are joined: one row may be
    too short for the judge, and keeping only long rows would bias the sample."""
    if _is_run(self.reference):
      run = load(self.reference)
      tokens = heldout_rows(run, self.reference, self.moved)
      pieces = min(max(1, tokens.size // (_ROWS_IN_PIECE * length)), len(tokens))
      return self.retokenize(run, [piece.reshape(-1) for piece in np.array_split(tokens, pieces)])
    corpus = load_corpus(self.reference, self.reference)
    text = "\n".join(piece.text for piece in corpus.pieces("heldout"))
    return self.encode([text])


def heldout_rows(model: LanguageModel, name: str, moved: MovedText = MovedText()) -> np.ndarray:
  """Rows int32[R, L] of the held-out text of a run, in its tokens.

  Raises:
    ValueError: the model is no run of ours, or its rows hold given tokens.
  """
  rows = run_dataset(model, name, moved).heldout_rows[:]
  if not rows.loss_mask.all():
    raise ValueError(f"{name}: its rows hold given tokens (data.packing), of which no text is made")
  return rows.tokens


def _is_run(reference: str) -> bool:
  """Whether a reference is a run rather than text."""
  if reference.startswith((TFDS, HUB)):
    return False
  return os.path.isfile(local_path(reference, "--reference") / "config.json")


def common_length(rows: Sequence[np.ndarray], length: int | None) -> int:
  """The length to cut all samples to: `length`, or that of the shortest.

  Raises:
    ValueError: the shortest is too short to be graded, or none is as long as `length`.
  """
  lengths = np.array([len(row) for row in rows])
  if length is not None:
    if not (lengths >= length).any():
      raise ValueError(f"--length={length}: no sample has so many tokens, at most {lengths.max()}")
    return length
  if (least := int(lengths.min())) < _FEWEST_TOKENS:
    wanted = max(_FEWEST_TOKENS, int(np.quantile(lengths, 0.1)))
    raise ValueError(
      f"the shortest sample has {least} of the judge's tokens: --length={wanted} would leave out "
      f"{int((lengths < wanted).sum())} of {len(lengths)} samples"
    )
  return least


def cut(rows: Sequence[np.ndarray], length: int, name: str) -> np.ndarray:
  """The first tokens of all rows that have `length` of them, int32[N, length].

  Raises:
    ValueError: no row has; the message calls them `name`.
  """
  long = [row[:length] for row in rows if len(row) >= length]
  if not long:
    raise ValueError(f"{name}: no sample has {length} of the judge's tokens")
  return np.array(long, np.int32)
