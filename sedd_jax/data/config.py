"""The text of a run: the `data` section of a config."""

import dataclasses
import math

from sedd_jax.data.detokenizers import DETOKENIZERS
from sedd_jax.data.faults import POLICIES
from sedd_jax.data.patterns import parts_of, source_faults

PACKINGS = ("stream", "pad", "pack")
FILLS = ("counted", "given")
VISIBILITIES = ("row", "document")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
  """Where the text comes from and how it is cut into rows.

  Attributes:
    files: `embedded`; a folder that `sedd prepare` made; comma-separated globs of text files,
      `tfds:NAME@SPLIT` or `hf:NAME[:CONFIG]@SPLIT` (`corpus.load_corpus`). Several of these,
      separated by `;`, are trained on together.
    heldout_files: held-out text, one of the same kinds; if empty, `files` is cut by `split`.
    split: shares of the text at which training ends and held-out text ends.
    text_field: of .jsonl lines and of records.
    tokenizer: `chars`, `bytes`, `bytes:eos`, `bpe:N` (byte-level BPE of N tokens, trained on the
      text to train on), `gpt2`, `bert`, or any fast tokenizer: a
      tokenizer.json, a folder with one or with a vocabulary, or a hub id (`tokenizers.from_name`).
    tokenizer_eos: its end-of-text token; "" to find it in the file.
    detokenizer: `none`, `wikitext`, `ptb`, `lm1b` or `lambada` (`detokenizers.py`).
    length: tokens in a row.
    packing: `stream` cuts the joined documents every `length` tokens; `pad` gives every document
      its own row, `pack` puts as many whole ones in a row as fit.
    fill: what fills up the rows of `pad` and `pack`: end-of-text tokens that are `counted`, so that
      the model learns where texts end and its bound is one on the text; or `given`, neither noised
      nor in the loss, so that all is conditional on the length.
    visibility: what a token of a packed row sees: the whole `row`, or its own `document` alone.
    weights: the share of each part of `files` in every batch; if empty, each row of all parts comes
      once an epoch.
    on_fault: `fail` or `skip`: what to do with files, documents and records that cannot be read.

  Raises:
    ValueError: fields are out of range; the message names them, a line for each.
  """

  files: str = "embedded"
  heldout_files: str = ""
  split: tuple[float, float] = (0.95, 1.0)
  text_field: str = "text"
  tokenizer: str = "chars"
  tokenizer_eos: str = ""
  detokenizer: str = "none"
  length: int = 1024
  packing: str = "stream"
  fill: str = "counted"
  visibility: str = "row"
  weights: tuple[float, ...] = ()
  on_fault: str = "fail"

  @property
  def parts(self) -> list[str]:
    """The parts of `files`."""
    return parts_of(self.files)

  def __post_init__(self):
    faults = []
    if self.length < 1:
      faults.append(f"data.length={self.length} must be at least 1")
    if len(self.split) != 2 or not 0.0 < self.split[0] < self.split[1] <= 1.0:
      faults.append(f"data.split={self.split} must be two shares, 0 < first < second <= 1")
    for name, known in (
      ("detokenizer", DETOKENIZERS), ("packing", PACKINGS), ("fill", FILLS),
      ("visibility", VISIBILITIES), ("on_fault", POLICIES),
    ):  # fmt: skip
      if (value := getattr(self, name)) not in known:
        faults.append(f"data.{name}={value!r} must be one of {', '.join(known)}")
    if self.weights and (
      len(self.weights) != len(self.parts)
      or not all(isinstance(w, int | float) and 0 < w < math.inf for w in self.weights)
    ):
      faults.append(
        f"data.weights={self.weights} must be a positive number for each of the "
        f"{len(self.parts)} part(s) of data.files={self.files!r}"
      )
    for name in ("files", "heldout_files"):
      faults += source_faults(getattr(self, name), f"data.{name}")
    if len(parts_of(self.heldout_files)) > 1:
      faults.append(f"data.heldout_files={self.heldout_files!r} must be one source, without ';'")
    if self.packing != "stream" and self.tokenizer in ("chars", "bytes"):
      faults.append(
        f"data.packing={self.packing!r} needs a tokenizer with an end-of-text token, and "
        f"data.tokenizer={self.tokenizer!r} has none: 'gpt2', 'bert' or 'bytes:eos'"
      )
    if self.visibility == "document" and self.packing != "pack":
      faults.append(
        f"data.visibility='document' needs data.packing='pack', not {self.packing!r}: there a row "
        "holds several whole documents"
      )
    if faults:
      raise ValueError("\n".join(faults))
