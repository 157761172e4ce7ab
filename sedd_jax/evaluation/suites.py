"""Zero-shot protocols as data: which text, how it is cut into chunks, and which number is reported.

One model has another perplexity under each protocol in use, so each is kept as it was done, by
name; docs/evaluation.md compares them.

  sedd    as SEDD's paper describes it (section 5.3 of arXiv:2310.16834) and the evaluation code of
          RADD does it (ML-GSAI/RADD, data.py and evaluation_modeling.py): five sets, WikiText-2 on
          its training split
  mdlm    as the code of MDLM does it (kuleshov-group/mdlm, dataloader.py; arXiv:2406.07524): seven
          sets, chunks between two end-of-text tokens, validation splits but for two
  strict  ours: test splits, every token is scored exactly once, and the figure is a true bound
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from sedd_jax.data.tokenizers import GPT2_FINGERPRINT
from sedd_jax.evaluation.chunks import Chunking

Record = Literal["text", "line", "stripped"]
Figure = Literal["published", "strict"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TestSet:
  """A text to evaluate on.

  Attributes:
    name: in reports and on the command line.
    source: where it is by default, in the notation of `data.files`.
    split: the part of the data set that this is.
    text_field: of its records.
    detokenizer: a name in `data.detokenizers.PUBLISHED`.
    record: what a record is. `text`: as it stands. `line`: a line with its end, or nothing where
      the line is blank; `stripped`: a line without the white space around it. A plain text file of
      the last two has one record in every line.
    documents: what a document is: each of the `records`, or `articles` of lines, which begin where
      a line of WikiText is a heading of the first level.
  """

  __test__ = False  # For pytest, which takes it for a test.

  name: str
  source: str
  split: str
  text_field: str = "text"
  detokenizer: str = "none"
  record: Record = "text"
  documents: Literal["records", "articles"] = "records"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
  """How a number is made.

  Attributes:
    name: on the command line.
    sets: the texts.
    chunking: how a text becomes rows of tokens.
    figure: what is reported first: `published`, the mean over times in [1e-3, 1] without the ends
      of the integral, as the literature has it; or `strict`, the true bound.
    num_times: draws for each chunk, by default.
    estimator: by default, a name in `evaluation.bounds.ESTIMATORS`.
  """

  name: str
  sets: tuple[TestSet, ...]
  chunking: Chunking
  figure: Figure
  num_times: int
  estimator: str = "times"

  def set_of(self, name: str) -> TestSet:
    """The set of that name.

    Raises:
      ValueError: there is none; the message lists them.
    """
    for one in self.sets:
      if one.name == name:
        return one
    names = ", ".join(one.name for one in self.sets)
    raise ValueError(f"protocol {self.name} has no set {name!r}: it has {names}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Golden:
  """The chunks of a set, made with GPT-2's tokenizer from the text that the split should hold.

  Attributes:
    sha256: of the int32 little-endian array [rows, length].
    rows: N.
    length: L.
  """

  sha256: str
  rows: int
  length: int = 1024


def _wikitext(name: str, corpus: str, split: str, **more) -> TestSet:
  return TestSet(
    name=name,
    source=f"hf:Salesforce/wikitext:{corpus}-raw-v1@{split}",
    split=split,
    detokenizer="wikitext",
    record="line",
    **more,
  )


def _papers(name: str, split: str) -> TestSet:
  return TestSet(
    name=name,
    source=f"tfds:scientific_papers/{name}@{split}",
    split=split,
    text_field="article",
    detokenizer="scientific_papers",
  )


def _ptb(split: str) -> TestSet:
  return TestSet(
    name="ptb",
    source=f"hf:ptb-text-only/ptb_text_only@{split}",
    split=split,
    text_field="sentence",
    detokenizer="ptb",
    record="stripped",
  )


# The only file that there is of LAMBADA in OpenAI's version is its test set.
_LAMBADA = TestSet(
  name="lambada", source="hf:EleutherAI/lambada_openai@test", split="test", detokenizer="lambada"
)
_LM1B = TestSet(
  name="lm1b", source="tfds:lm1b@test", split="test", detokenizer="lm1b", record="stripped"
)
_AG_NEWS = TestSet(name="ag_news", source="hf:fancyzhx/ag_news@test", split="test")

SEDD = Protocol(
  name="sedd",
  sets=(
    _LAMBADA,
    _wikitext("wikitext2", "wikitext-2", "train"),
    _ptb("test"),
    _wikitext("wikitext103", "wikitext-103", "test"),
    _LM1B,
  ),
  chunking=Chunking(shards=8, group=1000, edges="none", remainder="drop"),
  figure="published",
  num_times=1024,
)

MDLM = Protocol(
  name="mdlm",
  sets=(
    _ptb("validation"),
    _wikitext("wikitext", "wikitext-103", "validation"),
    _LM1B,
    _LAMBADA,
    _AG_NEWS,
    _papers("pubmed", "validation"),
    _papers("arxiv", "validation"),
  ),
  # The original makes as many shards as its machine has CPU cores; with 64 of them and more PTB has
  # no chunk of 1024 tokens left. One loses the fewest tokens.
  chunking=Chunking(shards=1, group=1000, edges="eos", remainder="drop"),
  figure="published",
  num_times=2,
)

STRICT = Protocol(
  name="strict",
  sets=(
    _LAMBADA,
    # WikiText-2 and WikiText-103 have the same test text.
    _wikitext("wikitext", "wikitext-103", "test", documents="articles"),
    _ptb("test"),
    _LM1B,
    _AG_NEWS,
    _papers("pubmed", "test"),
    _papers("arxiv", "test"),
  ),
  chunking=Chunking(shards=1, group=0, edges="none", remainder="complete"),
  figure="strict",
  num_times=128,
)

SUITES: Mapping[str, Mapping[str, Protocol]] = {
  "zero-shot": {protocol.name: protocol for protocol in (SEDD, MDLM, STRICT)}
}

# Of texts that were at hand: OpenAI's LAMBADA, and the test text that WikiText-2 and WikiText-103
# share. Those of `sedd` and `mdlm` are what the functions in the published code give.
GOLDEN: Mapping[tuple[str, str], Golden] = {
  ("sedd", "lambada"): Golden(
    rows=414, sha256="e36f9b13c08b4a171fed3d09735ff8ca83a03a4646264b20d32bdc43db1fe5e2"
  ),
  ("sedd", "wikitext103"): Golden(
    rows=264, sha256="06d065e7b5c4e8f2484ccedcfce53e68641605ec2d62ebeac70516ad4e082f8f"
  ),
  ("mdlm", "lambada"): Golden(
    rows=417, sha256="f77c70ee9e2c3b8a474c172c81b228d22e7e6089716c8fa19381f7c959315c5c"
  ),
  ("strict", "lambada"): Golden(
    rows=419, sha256="2b48f9350a8bb59bc8360a5591c4508b42b681ea64e66f0920a76c44f02fa3c1"
  ),
  ("strict", "wikitext"): Golden(
    rows=265, sha256="916e32922cbb988a90b5491f5f0f351f47d925af79d7c3582542c9619ca5e96c"
  ),
}


def golden_of(protocol: str, test_set: str, fingerprint: str, length: int) -> Golden | None:
  """What the chunks of a set should be, if that is known for this tokenizer and length."""
  golden = GOLDEN.get((protocol, test_set))
  known = golden is not None and fingerprint == GPT2_FINGERPRINT and length == golden.length
  return golden if known else None
