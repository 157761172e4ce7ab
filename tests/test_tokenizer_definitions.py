"""Tokenizers that runs and folders hold already, and definitions that need care."""

import json

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tokenizers
from support.small_tokenizers import KINDS, TEXT, byte_level
from tokenizers import (
  AddedToken,
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
  trainers,
)

from sedd_jax.data import BPE, sources, streams
from sedd_jax.data.library_tokenizer import LibraryTokenizer
from sedd_jax.data.scope import AROUND, DOCUMENT, PART
from sedd_jax.data.unknown import UnknownCharacters
from sedd_jax.training import rundir

# Identity of what was stored.


def test_a_run_that_older_code_began_goes_on(tmp_path):
  library = byte_level()
  library.post_processor = processors.ByteLevel(trim_offsets=False)  # As GPT-2's file has it.
  # Older code stored what the library writes, post-processor and all.
  stored = {"kind": "bpe", "definition": tokenizers.Tokenizer.from_str(library.to_str()).to_str()}
  now = BPE(library.to_str()).to_json()
  assert now != stored
  before = {"config": {}, "corpus": {}, "tokenizer": stored}
  rundir.write_run(tmp_path, before)
  rundir.check_shared(tmp_path, before | {"tokenizer": now})
  rundir.check_meta(tmp_path, 1, before, before | {"tokenizer": now})


def test_a_run_with_another_tokenizer_does_not_go_on(tmp_path, monkeypatch):
  monkeypatch.setattr(rundir, "_SHARED_SECONDS", 0.0)
  one, other = (
    {"config": {}, "corpus": {}, "tokenizer": LibraryTokenizer(library.to_str()).to_json()}
    for library in (byte_level(), byte_level(normalizer=normalizers.Lowercase()))
  )
  rundir.write_run(tmp_path, one)
  with pytest.raises(ValueError, match=r"tokenizer\.json in"):
    rundir.check_shared(tmp_path, other)
  with pytest.raises(ValueError, match=r"tokenizer\.(kind|definition)"):
    rundir.check_meta(tmp_path, 1, json.loads(json.dumps(one)), other)


# Documents that are read in pieces.


def joined(texts, trainer, model):
  """A tokenizer without words: its tokens may have several."""
  made = tokenizers.Tokenizer(model)
  made.decoder = decoders.Fuse()
  made.train_from_iterator(texts, trainer)
  return made


REPEATED = ["a a a a a a " * 8, "fox fox fox fox " * 8, "- - - - " * 5] * 30
CHARACTERS = [TEXT[i : i + 200] for i in range(0, 4000, 200)]
PHRASES = {
  "BPE": lambda: joined(
    REPEATED + CHARACTERS,
    trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>"], show_progress=False),
    models.BPE(unk_token="<unk>"),
  ),
  "Unigram": lambda: joined(
    REPEATED + CHARACTERS,
    trainers.UnigramTrainer(
      vocab_size=300, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
    ),
    models.Unigram(),
  ),
}


def with_added(make, *tokens):
  made = make()
  made.add_tokens(list(tokens))
  return made


def cut_by_length(make, size):
  sized = pre_tokenizers.Split(tokenizers.Regex(f".{{1,{size}}}"), "isolated")
  return make(pre_tokenizers.Sequence([sized, pre_tokenizers.ByteLevel(False, use_regex=False)]))


ODD = {
  "phrases, BPE": (PHRASES["BPE"], DOCUMENT),
  "phrases, Unigram": (PHRASES["Unigram"], DOCUMENT),
  "added words": (lambda: with_added(byte_level, "fox fox", "b\n\na"), DOCUMENT),
  "added spaces": (lambda: with_added(byte_level, "\n\n", "   ", " a"), AROUND),
  "added, strips": (lambda: with_added(byte_level, AddedToken("fox", rstrip=True)), AROUND),
  "added, Unigram": (lambda: with_added(KINDS["Unigram"], "fox fox"), DOCUMENT),
  "words of a length": (lambda: cut_by_length(byte_level, 7), DOCUMENT),
  "white space joined": (
    lambda: byte_level(normalizer=normalizers.Replace(tokenizers.Regex(r"\s+"), " ")),
    AROUND,
  ),
  "GPT-2": (byte_level, PART),
}


@pytest.fixture(scope="module", params=ODD)
def odd(request):
  make, scope = ODD[request.param]
  return LibraryTokenizer(make().to_str()), scope


@hypothesis.given(
  units=st.lists(
    st.tuples(
      st.sampled_from(
        ["a ", "a a ", "fox ", "- ", "x\n", "  ", "b\n\na ", ".", "é🙂 ", "e\u0301 "]
      ),
      st.integers(1, 700),
      st.sampled_from(["", "b", " zz ", "\n"]),
    ),
    min_size=2,
    max_size=5,
  )
)
@hypothesis.settings(deadline=None, max_examples=25)
def test_pieces_have_the_tokens_of_the_whole(odd, units):
  ours, scope = odd
  assert ours.scope == scope
  text = "".join(unit * count + end for unit, count, end in units)
  whole = ours.encode(text)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sources, "PIECE", 100)
    patch.setattr(streams, "_CONTEXT", 64)
    pieces = list(sources.cut_document(text))
  stream = streams.encode(streams.separated(pieces, ours), ours)
  tokens = stream.tokens if ours.eos_id is None else stream.tokens[:-1]
  np.testing.assert_array_equal(tokens, whole)
  assert stream.characters == len(text)


# Text that the vocabulary lacks.


def lacking(kind):
  match kind:
    case "BPE":
      return models.BPE({"a": 0, "b": 1, " ": 2}, [])
    case "Unigram":
      return models.Unigram([("a", -1.0), ("b", -2.0), (" ", -1.0)], None)
    case "WordPiece":
      return models.WordPiece({"a": 0, "b": 1}, unk_token="<unk>")
    case "WordLevel":
      return models.WordLevel({"a": 0, "b": 1}, unk_token="<unk>")


@pytest.mark.parametrize("kind", ["BPE", "Unigram", "WordPiece", "WordLevel"])
def test_text_that_would_be_lost_is_named(kind):
  library = tokenizers.Tokenizer(lacking(kind))
  library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  library.add_tokens(["<new>"])
  ours = LibraryTokenizer(library.to_str())
  assert ours.encode("a b <new> a").tolist() == library.encode("a b <new> a").ids
  for read in (ours.encode, lambda text: ours.encode_within([("a ", text, " b")])):
    with pytest.raises(UnknownCharacters, match="lacks 'y', 'z', and has no token for unknown"):
      read("a z y b")


def test_bytes_that_the_alphabet_lacks_are_named():
  library = tokenizers.Tokenizer(models.BPE())
  library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  library.train_from_iterator(["abc abc"], trainers.BpeTrainer(show_progress=False))
  ours = LibraryTokenizer(library.to_str())
  assert ours.decode(ours.encode("abc cab")) == "abc cab"
  with pytest.raises(UnknownCharacters, match="lacks 'z', 'é'"):
    ours.encode("az é")


# Decoders.


@pytest.mark.parametrize("text", ["naïve", "日本", "x  y", "éé"])
def test_an_added_token_reads_as_it_is_written(text):
  ours = LibraryTokenizer(with_added(byte_level, text).to_str())
  (token,) = ours.encode(text)
  assert ours.pieces([token]) == [text]
  assert ours.decode(ours.encode(f"a{text}b")) == f"a{text}b"


SPACES, STRIP = decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)


@pytest.mark.parametrize(
  ("parts", "why"),
  [
    (
      [SPACES, decoders.Fuse(), decoders.Replace(" .", ".")],
      "type Replace behind one of type Fuse",
    ),
    ([SPACES, decoders.Fuse(), decoders.Strip(" ", 1, 1)], "type Strip behind one of type Fuse"),
    ([decoders.ByteLevel(), STRIP], "types ByteLevel and Strip together"),
    ([decoders.Sequence([decoders.BPEDecoder(), SPACES])], "types BPEDecoder and Replace together"),
  ],
)
def test_decoders_of_whole_texts_are_refused(parts, why):
  library = KINDS["Llama"]()
  library.decoder = decoders.Sequence(parts)
  with pytest.raises(ValueError, match=f"with (a decoder|decoders) of {why}"):
    LibraryTokenizer(library.to_str())


@pytest.mark.parametrize(
  "parts", [[SPACES, STRIP], [SPACES, decoders.Fuse(), STRIP], [decoders.ByteFallback()]]
)
def test_other_decoders_read_as_the_library(parts):
  library = KINDS["Llama"]()
  library.decoder = decoders.Sequence(parts)
  ours = LibraryTokenizer(library.to_str())
  rng = np.random.default_rng(0)
  for _ in range(200):
    ids = rng.integers(0, ours.vocab_size, 5).tolist()
    if "\ufffd" not in (text := ours.decode(ids)) and ours.name_of(ids[0]) != "<0x20>":
      assert text == library.decode(ids, skip_special_tokens=False)
