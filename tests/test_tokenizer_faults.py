"""Faulty tokenizers: whatever a file holds, it is read, or an error names it."""

import contextlib
import gzip
import json
import warnings
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest
from support.command import sedd
from support.small_tokenizers import KINDS, byte_level, gpt1
from tokenizers import AddedToken, decoders, normalizers

import sedd_jax
from sedd_jax.data import from_json, from_name
from sedd_jax.data.library_call import library_call
from sedd_jax.data.library_tokenizer import LibraryTokenizer, TokenizerWarning
from sedd_jax.data.tokenizers import fingerprint, read_stored
from sedd_jax.interop import exported

SOURCE = "folder/tokenizer.json"
SAMPLE = "The fox, 東  a\n\n b1 ab"


# Any JSON at any place.

ADDED = {"id": 0, "content": "<|endoftext|>", "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False, "special": True}  # fmt: skip
LETTERS = {name: i for i, name in enumerate(["<unk>", "a", "b", "ab", "▁", "Ġ", " ", "<0x0A>"])}
MODELS = (
  {"type": "BPE", "dropout": 0.1, "unk_token": "<unk>", "continuing_subword_prefix": None,
   "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
   "vocab": LETTERS, "merges": [["a", "b"]]},
  {"type": "Unigram", "unk_id": 0, "vocab": [[x, -1.0 * i] for x, i in LETTERS.items()],
   "byte_fallback": False},
  {"type": "WordPiece", "unk_token": "<unk>", "continuing_subword_prefix": "##",
   "max_input_chars_per_word": 100, "vocab": LETTERS},
  {"type": "WordLevel", "unk_token": "<unk>", "vocab": LETTERS},
)  # fmt: skip
SPLIT = {"type": "Split", "pattern": {"Regex": " ?\\w+|\\s"}, "behavior": "Isolated",
         "invert": False}  # fmt: skip
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
SPACES = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
REPLACE = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
NORMALIZERS = (
  None,
  {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, REPLACE]},
  {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
   "strip_accents": None, "lowercase": True},
  {"type": "Strip", "strip_left": True, "strip_right": True},
)  # fmt: skip
PRE_TOKENIZERS = (
  None,
  BYTES,
  SPACES,
  {"type": "Sequence", "pretokenizers": [SPLIT, {"type": "Digits", "individual_digits": True}]},
)
DECODERS = (
  None,
  BYTES,
  SPACES,
  {"type": "BPEDecoder", "suffix": "</w>"},
  {"type": "WordPiece", "prefix": "##", "cleanup": True},
  {"type": "Sequence", "decoders": [REPLACE, {"type": "ByteFallback"}, {"type": "Fuse"}, STRIP]},
)
TEMPLATE = {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [], "special_tokens": {}}  # fmt: skip
DEFINITIONS = st.fixed_dictionaries(
  {
    "version": st.just("1.0"),
    "truncation": st.sampled_from(
      [None, {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}]
    ),
    "padding": st.sampled_from(
      [None, {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None,
              "pad_id": 0, "pad_type_id": 0, "pad_token": "a"}]
    ),
    "added_tokens": st.sampled_from(
      [[], [ADDED | {"id": 8}], [ADDED | {"content": "ab", "id": 3}, ADDED | {"id": 8}]]
    ),
    "normalizer": st.sampled_from(NORMALIZERS),
    "pre_tokenizer": st.sampled_from(PRE_TOKENIZERS),
    "post_processor": st.sampled_from(
      [None, TEMPLATE, {"type": "Sequence", "processors": [BYTES, TEMPLATE]}]
    ),
    "decoder": st.sampled_from(DECODERS),
    "model": st.sampled_from(MODELS),
  }
)  # fmt: skip
LEAVES = (
  st.none()
  | st.booleans()
  | st.sampled_from([0, 1, -1, 2**31, 2**32, 10**30, 0.5, float("nan"), float("inf")])
  | st.integers()
  | st.sampled_from(["", " ", "  ", "a", "x", "\ud800", "(", "</w>", "##", "Right", "First"])
  | st.sampled_from(
    ["BPE", "Unigram", "ByteLevel", "Sequence", "Strip", "Fuse", "Replace", "CTC", "NFKC"]
  )
  | st.text(max_size=3)
)
FIELDS = st.sampled_from(
  ["type", "content", "start", "stop", "pattern", "String", "Regex", "decoders", "normalizers",
   "pretokenizers", "processors", "vocab", "id", "length", "max_length", "a"]
)  # fmt: skip
# Well-formed, and odd.
PARTS = st.sampled_from(
  [*NORMALIZERS, *PRE_TOKENIZERS, *DECODERS, *MODELS, TEMPLATE, ADDED, STRIP,
   STRIP | {"start": 1, "stop": 1}, STRIP | {"content": "a", "stop": 1}, STRIP | {"stop": 2**40},
   {"type": "FixedLength", "length": 0}, {"type": "FixedLength", "length": 2},
   {"type": "Precompiled", "precompiled_charsmap": ""}, {"type": "CharDelimiterSplit"},
   {"type": "CharDelimiterSplit", "delimiter": "a"}, {"type": "Prepend", "prepend": ""},
   REPLACE | {"pattern": {"String": ""}}, REPLACE | {"pattern": {"Regex": "(?=a)|$"}},
   REPLACE | {"content": "a\n"}, SPLIT | {"pattern": {"String": ""}},
   SPLIT | {"pattern": {"Regex": ""}, "invert": True}, SPLIT | {"behavior": "Removed"},
   {"type": "BPEDecoder", "suffix": ""}, {"type": "WordPiece", "prefix": "", "cleanup": False},
   {"type": "Lowercase"}, {"type": "NFKD"}, {"type": "Nmt"}, {"type": "ByteLevel"},
   {"type": "UnicodeScripts"}, {"type": "Punctuation", "behavior": "Contiguous"},
   {"type": "Sequence", "decoders": [{"type": "BPEDecoder", "suffix": "b"}] * 2},
   {"type": "Sequence", "decoders": [BYTES, BYTES]},
   ADDED | {"content": "  ", "normalized": True}, ADDED | {"content": "AB", "normalized": True},
   ADDED | {"content": "Ab", "normalized": True, "lstrip": True}, ADDED | {"content": ""}]
)  # fmt: skip
VALUES = st.recursive(
  LEAVES | PARTS,
  lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=3),
  max_leaves=3,
)


def places(value, path=()):
  """The path of each place in a value of JSON."""
  yield path
  if isinstance(value, dict | list):
    for key, one in value.items() if isinstance(value, dict) else enumerate(value):
      yield from places(one, (*path, key))


def with_value(value, path, new):
  if not path:
    return new
  key, *rest = path
  if isinstance(value, dict):
    return value | {key: with_value(value[key], rest, new)}
  return [with_value(one, rest, new) if i == key else one for i, one in enumerate(value)]


def without(value, path):
  *above, last = path
  inner = value
  for key in above:
    inner = inner[key]
  left = (
    {k: v for k, v in inner.items() if k != last}
    if isinstance(inner, dict)
    else [one for i, one in enumerate(inner) if i != last]
  )
  return with_value(value, above, left)


@st.composite
def faulty(draw, valid, values):
  value = draw(valid)
  for _ in range(draw(st.integers(0, 2))):
    found = list(places(value))
    # Parts before their settings, so that each part gets its share.
    depth = min(draw(st.sampled_from([1, 1, 1, 2, 2, 2, 3, 3, 4, 0])), max(map(len, found)))
    path = draw(st.sampled_from([path for path in found if len(path) == depth]))
    if path and draw(st.booleans()) and draw(st.booleans()):
      value = without(value, path)
    else:
      value = with_value(value, path, draw(values))
  return value


@contextlib.contextmanager
def errors_name(source):
  """Lets through a ValueError that names a source, and nothing else."""
  try:
    yield
  except ValueError as error:
    if source not in str(error):
      raise AssertionError(f"{error!r} does not name {source}") from error


def use(made):
  """All that a tokenizer does."""
  tokens = made.encode(SAMPLE)
  made.encode_within([("", SAMPLE, SAMPLE)])
  assert tokens.max(initial=0) < made.vocab_size
  for ids in (tokens.tolist(), range(made.vocab_size)):
    assert "".join(made.pieces(ids)) == made.decode(ids)
  again = from_json(json.loads(json.dumps(made.to_json())), SOURCE)
  assert fingerprint(again) == fingerprint(made)


@hypothesis.given(faulty(DEFINITIONS, PARTS | VALUES))
@hypothesis.settings(deadline=None, max_examples=400)
def test_any_definition_is_a_tokenizer_or_an_error_that_names_its_file(definition):
  with warnings.catch_warnings(), errors_name(SOURCE):
    warnings.simplefilter("ignore", TokenizerWarning)
    use(LibraryTokenizer(json.dumps(definition), source=SOURCE))


@pytest.mark.parametrize("value", ["ByteLevel", [1], {"x": 1}, 7, {"type": "Strip"}])
@pytest.mark.parametrize("name", ["normalizer", "pre_tokenizer", "decoder", "added_tokens"])
def test_the_part_that_is_at_fault_is_named(name, value):
  definition = json.dumps(json.loads(byte_level().to_str()) | {name: value})
  with pytest.raises(ValueError, match=rf"{SOURCE} is no tokenizer .*its field '{name}' holds"):
    LibraryTokenizer(definition, source=SOURCE)


@pytest.mark.parametrize("value", ["x", [1], 7, True])
@pytest.mark.parametrize("name", ["truncation", "padding", "post_processor"])
def test_a_part_that_is_switched_off_is_an_object(name, value):
  definition = json.dumps(json.loads(byte_level().to_str()) | {name: value})
  with pytest.raises(ValueError, match=f"{SOURCE}: {name} must be an object or null, not"):
    LibraryTokenizer(definition, source=SOURCE)


# Panics, and other errors of the library.


class PanicException(BaseException):
  """Named as the one of Rust's panics, which no module exports."""


class Failing:
  """A tokenizer of the library that fails at every text."""

  def __init__(self, error):
    self.error = error

  def fail(self, *_, **__):
    raise self.error

  encode_batch = encode_batch_fast = decode = fail


@pytest.mark.parametrize("error", [PanicException("a panic"), Exception("a fault"), TypeError("x")])
@pytest.mark.parametrize(
  ("read", "argument"),
  [("encode", "new"), ("encode_within", [("", "new", "")]), ("pieces", [5]), ("decode", [5])],
)
def test_what_the_library_raises_names_the_file(read, argument, error):
  ours = LibraryTokenizer(KINDS["WordLevel"]().to_str(), source=SOURCE)
  ours._library = Failing(error)
  with pytest.raises(ValueError, match=rf"{SOURCE}: .* fails.*: {error}"):
    getattr(ours, read)(argument)


@pytest.mark.parametrize(
  "error", [KeyboardInterrupt(), SystemExit(3), GeneratorExit(), MemoryError()]
)
def test_what_is_no_fault_of_the_library_passes(error):
  with pytest.raises(type(error)), library_call("message"):
    raise error


def test_all_calls_of_the_library_are_in_one_place():
  for file in (Path(sedd_jax.__file__).parent).rglob("*.py"):
    text = file.read_text(encoding="utf-8")
    if "from tokenizers import" in text or "import tokenizers" in text:
      assert "library_call(" in text, file


def panicking():
  """(what makes the library panic, what is said)."""
  stripped = byte_level(normalizer=normalizers.Strip())
  stripped.add_tokens([AddedToken("  ", normalized=True)])
  yield stripped.to_str(), "leaves nothing of the added token '  '"
  both = byte_level(normalizer=normalizers.Lowercase())
  both.add_tokens([AddedToken("Ab", normalized=True), AddedToken("aB", normalized=True)])
  yield both.to_str(), "makes 'ab' of the added tokens 'Ab' and 'aB'"
  cut = KINDS["WordLevel"]()
  cut.decoder = decoders.Strip("o", 1, 1)
  cut.add_tokens(["o"])
  yield cut.to_str(), "its decoder fails: slice index"
  sized = json.loads(byte_level().to_str())
  sized["pre_tokenizer"] = {"type": "FixedLength", "length": 0}
  yield json.dumps(sized), "fails to cut a text into words: chunk size must be non-zero"
  charsmap = sized | {"normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}}
  yield json.dumps(charsmap), "is no tokenizer that the library reads: Precompiled"


@pytest.mark.parametrize("at", range(5))
def test_tokenizers_that_make_the_library_panic_are_refused(at, tmp_path):
  definition, why = list(panicking())[at]
  (tmp_path / "tokenizer.json").write_text(definition)
  (tmp_path / "text.txt").write_text("The fox\n")
  done = sedd("prepare", f"--files={tmp_path}/text.txt", f"--tokenizer={tmp_path}",
              f"--out={tmp_path}/prepared", "--workers=1")  # fmt: skip
  assert done.returncode == 2, done
  assert f"{tmp_path}/tokenizer.json" in done.stderr
  assert why in done.stderr
  assert "a bug of" not in done.stderr


# Ids.


@pytest.mark.parametrize("i", [-1, 2**31, 3 * 10**9, 10**40, 1.0, True, "1", None, [1]])
@pytest.mark.parametrize("where", ["vocabulary", "added token", "vocab.json"])
def test_ids_that_are_none_are_refused_before_the_library(i, where, tmp_path):
  if where == "vocab.json":
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "x": i}))
    (tmp_path / "merges.txt").write_text("")
  else:
    definition = {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}
    if where == "vocabulary":
      definition["model"]["vocab"] |= {"x": i}
    else:
      definition["added_tokens"] = [ADDED | {"content": "x", "id": i}]
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
  with pytest.raises(
    ValueError, match=rf"{tmp_path}.*token 'x' must be an integer in \[0, 2\*\*31"
  ):
    from_name(str(tmp_path), ())


def spread(largest, kind="WordLevel"):
  vocab = {"a": 0, "b": 1, "x": largest}
  model = {"type": kind, "vocab": vocab, "unk_token": "a"}
  if kind == "BPE":
    model["merges"] = []
  if kind == "WordPiece":
    model |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
  return json.dumps({"model": model})


@pytest.mark.parametrize("kind", ["BPE", "WordPiece", "WordLevel"])
def test_the_largest_id_is_in_proportion_to_the_tokens(kind):
  assert LibraryTokenizer(spread(1006, kind)).vocab_size == 1007
  for largest in (1007, 50_000_000, 2**31 - 1):
    with pytest.raises(ValueError, match=f"{SOURCE}: token 'x' has the id {largest}, and there"):
      LibraryTokenizer(spread(largest, kind), source=SOURCE)


def test_two_tokens_of_one_id_are_refused():
  model = {"type": "WordLevel", "vocab": {"a": 0, "b": 0}, "unk_token": "a"}
  with pytest.raises(ValueError, match=f"{SOURCE}: tokens 'a' and 'b' both have the id 0"):
    LibraryTokenizer(json.dumps({"model": model}), source=SOURCE)


def test_an_id_of_an_added_token_that_the_library_changes_is_said():
  definition = json.loads(spread(2)) | {"added_tokens": [ADDED | {"id": 5}]}
  with pytest.warns(TokenizerWarning, match=r"gives the added token '<\|end.* the id 3, not 5"):
    LibraryTokenizer(json.dumps(definition))


# Files.


@pytest.mark.parametrize("token", [3, True, ["</s>"], {"content": None}, {"content": 3}, {}])
def test_an_end_of_text_that_is_no_string_is_named(token, tmp_path):
  byte_level().save(str(tmp_path / "tokenizer.json"))
  (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": token}))
  for name in (tmp_path, tmp_path / "tokenizer.json"):
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: eos_token=.* must be a string"):
      from_name(str(name), ())
    assert from_name(str(name), (), "<|endoftext|>").eos_id == 0


@pytest.mark.parametrize("config", ["{", "[]", "7", "[" * 100_000])
def test_settings_that_are_no_object_are_named(config, tmp_path):
  byte_level().save(str(tmp_path / "tokenizer.json"))
  (tmp_path / "tokenizer_config.json").write_text(config)
  with pytest.raises(ValueError, match=r"tokenizer_config\.json (is not JSON|must hold named)"):
    from_name(str(tmp_path), ())


@pytest.mark.parametrize(
  "content",
  [b"", b"\x00\xff\xfe", "{}".encode("utf-16"), b"\x89PNG\r\n", b"[" * 100_000, b"NaN", b"null"],
  ids=range(7),
)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.json.gz", "tokenizer.json.xz"])
def test_files_that_are_no_text_or_no_tokenizer_are_named(content, name, tmp_path):
  packed = gzip.compress(content) if name.endswith("gz") else content
  for data in (packed, packed[: len(packed) // 2], content):
    (tmp_path / name).write_bytes(data)
    for path in (tmp_path, tmp_path / name):
      with pytest.raises(ValueError, match=str(tmp_path / name)):
        from_name(str(path), ())


# Tokenizers that runs, exports and prepared folders hold.

STORED = st.sampled_from(
  [{"kind": "chars", "characters": "abc"}, {"kind": "bytes"}, {"kind": "bytes", "eos": True},
   {"kind": "wordpiece", "vocabulary": ["[UNK]", "[SEP]", "a"]},
   {"kind": "library", "definition": spread(2), "eos": "x"},
   {"kind": "bpe", "definition": spread(2, "BPE")}]
)  # fmt: skip


@hypothesis.given(faulty(STORED, VALUES))
@hypothesis.settings(deadline=None, max_examples=300)
def test_a_stored_tokenizer_that_is_damaged_names_its_file(spec):
  with errors_name(SOURCE):
    from_json(spec, SOURCE)


@pytest.mark.parametrize("content", ["{", "[]", '{"kind": []}', '{"kind": "library"}'])
def test_a_file_with_a_damaged_tokenizer_is_named(content, tmp_path):
  file = tmp_path / exported.TOKENIZER
  file.write_text(content)
  for read in (lambda: exported.read_tokenizer(tmp_path), lambda: read_stored(file)):
    with pytest.raises(ValueError, match=str(file)):
      read()


# The text of the last token.


def test_a_word_keeps_its_space_at_the_end():
  library = gpt1()
  ours = LibraryTokenizer(library.to_str())
  ids = ours.encode("the dog").tolist()
  assert ours.decode(ids) == library.decode(ids) + " " == "the dog "
  assert ours.pieces(ids) == [ours.pieces([i, i])[1] for i in ids]
