"""The judge and the real text of a study, from the names that users give."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sedd_jax.data import Tokenizer, load_corpus, load_dataset
from sedd_jax.data.rows import spread
from sedd_jax.evaluation.grading import Grader
from sedd_jax.evaluation.judge import Judge, retokenized
from sedd_jax.generation.causal import CausalModel
from sedd_jax.generation.model import LanguageModel
from sedd_jax.interop.load import load

# Of real text: enough for MAUVE's usual numbers.
_MOST_ROWS = 4000
_FEWEST_TOKENS = 16
# Tokens of a run that are translated at once, in rows of the judge's length.
_ROWS_IN_PIECE = 64


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Jury:
  """A judge with its tokenizer, and where real text comes from.

  Attributes:
    model: the judge.
    tokenizer: its tokenizer.
    name: path or hub id of the judge.
    reference: a run, whose held-out text is meant, or text in the notation of `data.files`.
    batch_size: texts that it reads at a time.
  """

  model: CausalModel
  tokenizer: Tokenizer
  name: str
  reference: str
  batch_size: int

  def said(self) -> Mapping[str, Any]:
    """What numbers depend on."""
    return {
      "judge": self.name,
      "judge_step": self.model.info.get("step"),
      "judge_dtype": self.model.dtype,
      "reference": self.reference,
    }

  def tokens(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Texts in the judge's tokens."""
    return self.tokenizer.encode_batch(list(texts))

  def of_model(
    self, model: LanguageModel, tokens: np.ndarray | Sequence[np.ndarray]
  ) -> list[np.ndarray]:
    """Tokens of a model in the judge's."""
    if model.tokenizer is None:
      raise ValueError("a model without a tokenizer cannot be judged: name it with --tokenizer")
    return retokenized(tokens, model.tokenizer, self.tokenizer)

  def real_rows(self, length: int) -> np.ndarray:
    """Rows int32[R, length] of held-out text in the judge's tokens, spread over it.

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
    """Says how likely texts are."""
    model = self.model
    return Judge(model.network, model.params, batch_size=self.batch_size, longest=model.length)

  def grader(self, length: int) -> Grader:
    """Grades samples of so many tokens of the judge's."""
    return Grader(self.judge, self.real_rows(length))

  def _real_texts(self, length: int) -> list[np.ndarray]:
    """Pieces of real text in the judge's tokens: of a run, neighbouring rows joined, since a row of
    its tokens may be few of the judge's, and those of single rows that are enough no fair sample.
    """
    if (Path(self.reference) / "config.json").is_file():
      run = load(self.reference)
      tokens = heldout_rows(run, self.reference)
      pieces = min(max(1, tokens.size // (_ROWS_IN_PIECE * length)), len(tokens))
      return self.of_model(run, [piece.reshape(-1) for piece in np.array_split(tokens, pieces)])
    corpus = load_corpus(self.reference, self.reference)
    text = "\n".join(piece.text for piece in corpus.pieces("heldout"))
    return self.tokens([text])


def make_jury(name: str, reference: str, *, tokenizer: str | None, batch_size: int) -> Jury:
  """Loads a judge.

  Args:
    name: of --judge: a run of an autoregressive model, a folder of GPT-2's, or its hub id.
    reference: a run, or text; "" for the held-out text of the judge's own run.
    tokenizer: for a judge that comes without one.
    batch_size: texts that it reads at a time.

  Raises:
    ValueError: it is no autoregressive model or has no tokenizer, or there is no reference.
  """
  model = load(name, tokenizer=tokenizer)
  if not isinstance(model, CausalModel):
    raise ValueError(f"--judge={name} must be autoregressive: a run of objective "
                     "'autoregressive', or GPT-2")  # fmt: skip
  if model.tokenizer is None:
    raise ValueError(f"--judge={name} came without a tokenizer: --judge_tokenizer=gpt2:FOLDER")
  if not reference and "experiment" not in model.info:
    raise ValueError(
      f"--judge={name} is no run of ours and names no held-out text: --reference=RUN or text files"
    )
  return Jury(
    model=model,
    tokenizer=model.tokenizer,
    name=name,
    reference=reference or name,
    batch_size=batch_size,
  )


def heldout_rows(model: LanguageModel, name: str) -> np.ndarray:
  """Rows int32[R, L] of the held-out text of a run, in its tokens.

  Raises:
    ValueError: the model is no run of ours, or its rows do not hold text alone.
  """
  if model.tokenizer is None or "experiment" not in model.info:
    raise ValueError(f"{name} is no run of ours: it names no held-out text")
  dataset = load_dataset(
    model.info["experiment"].data, expected=model.info["corpus"], tokenizer=model.tokenizer
  )
  rows = dataset.heldout_rows[:]
  if not rows.loss_mask.all():
    raise ValueError(f"{name}: its rows hold given tokens (data.packing), of which no text is made")
  return rows.tokens


def common_length(rows: Sequence[np.ndarray], asked: int | None) -> int:
  """The length that all samples are cut to: what is asked, or that of the shortest.

  Raises:
    ValueError: the shortest is too short to say anything, or none is as long as asked.
  """
  lengths = np.array([len(row) for row in rows])
  if asked is not None:
    if not (lengths >= asked).any():
      raise ValueError(f"--length={asked}: no sample has so many tokens, at most {lengths.max()}")
    return asked
  if (least := int(lengths.min())) < _FEWEST_TOKENS:
    wanted = max(_FEWEST_TOKENS, int(np.quantile(lengths, 0.1)))
    raise ValueError(
      f"the shortest sample has {least} of the judge's tokens: --length={wanted} would leave out "
      f"{int((lengths < wanted).sum())} of {len(lengths)} samples"
    )
  return least


def cut(rows: Sequence[np.ndarray], length: int, name: str) -> np.ndarray:
  """The first tokens of those that have so many, int32[N, length].

  Raises:
    ValueError: none has; the message says whose they are, `name`.
  """
  long = [row[:length] for row in rows if len(row) >= length]
  if not long:
    raise ValueError(f"{name}: no sample has {length} of the judge's tokens")
  return np.array(long, np.int32)
