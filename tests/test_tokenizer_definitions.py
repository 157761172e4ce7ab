"""Tokenizers that runs and folders hold already, and definitions that need care."""

import dataclasses
import json
import warnings

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tokenizers
from support.command import sedd
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

import sedd_jax
from sedd_jax.data import (
  BPE,
  DataConfig,
  from_name,
  load_dataset,
  sources,
  streams,
  vocab_size_of,
)
from sedd_jax.data.library_tokenizer import LibraryTokenizer, TokenizerWarning
from sedd_jax.data.prepare import prepare
from sedd_jax.data.scope import AROUND, DOCUMENT, PART
from sedd_jax.data.tokenizers import fingerprint, same_tokenizer
from sedd_jax.data.unknown import UnknownCharacters
from sedd_jax.data.wordpiece import WordPiece
from sedd_jax.interop.export import convert
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


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_one_definition_is_one_tokenizer_however_it_is_written(make):
  library = make()
  written = json.loads(library.to_str())
  ours = LibraryTokenizer(json.dumps(written))
  for name, inner in (
    ("normalizer", "normalizers"),
    ("pre_tokenizer", "pretokenizers"),
    ("decoder", "decoders"),
  ):
    if written[name] is not None:  # A sequence of one step is that step.
      written[name] = {"type": "Sequence", inner: [written[name]]}
  written["post_processor"] = {"type": "ByteLevel", "add_prefix_space": True,
                               "trim_offsets": False, "use_regex": True}  # fmt: skip
  if "merges" in written["model"]:
    written["model"]["merges"] = [" ".join(pair) for pair in written["model"]["merges"]]
  again = LibraryTokenizer(json.dumps(dict(reversed(written.items()))))
  assert again.encode(TEXT[:500]).tolist() == ours.encode(TEXT[:500]).tolist()
  assert same_tokenizer(again, ours)
  assert fingerprint(again) == fingerprint(ours)


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


# Names.


def save(library, folder, **config):
  folder.mkdir(exist_ok=True)
  library.save(str(folder / "tokenizer.json"))
  if config:
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
  return folder


VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "fox", "##es", "."]


def test_bert_with_both_files_is_its_vocabulary_as_before(tmp_path):
  library = tokenizers.Tokenizer(
    models.WordPiece({name: i for i, name in enumerate(VOCABULARY)}, unk_token="[UNK]")
  )
  library.add_special_tokens(VOCABULARY[:5])
  save(library, tmp_path)
  assert isinstance(from_name(f"bert:{tmp_path}", ()), LibraryTokenizer)
  (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
  found = from_name(f"bert:{tmp_path}", ())
  assert same_tokenizer(found, WordPiece(VOCABULARY))
  assert (
    found.encode("The [SEP] foxes").tolist()
    == WordPiece(VOCABULARY).encode("the [SEP] foxes").tolist()
  )
  with pytest.raises(ValueError, match=r"tokenizer_eos='fox': that of .*vocab\.txt is '\[SEP\]'"):
    from_name(f"bert:{tmp_path}", (), "fox")
  (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
  with pytest.raises(ValueError, match=r"do_lower_case=false.* uncased"):
    from_name(f"bert:{tmp_path}", ())


def test_a_vocabulary_that_cannot_be_read_names_its_folder(tmp_path):
  (tmp_path / "merges.txt").write_text("x y\n")
  for content in ("{", '{"a": 0}'):
    (tmp_path / "vocab.json").write_text(content)
    with pytest.raises(ValueError, match=f"{tmp_path}: its vocabulary and merges cannot be read"):
      from_name(str(tmp_path), ())


@pytest.fixture
def hub(monkeypatch):
  """Counts what is asked of the hub, which cannot be reached."""
  asked = []

  def unreachable(*arguments, **_):
    asked.append(arguments)
    raise OSError("no network")

  monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unreachable)
  return asked


@pytest.mark.parametrize(
  "name", ["charz", "nowhere/tokenizer.json", "gpt2:nowhere", "bert:no/where", "gpt2:no/x.json"]
)
def test_what_is_not_here_lists_the_choices_without_a_network(name, hub):
  with pytest.raises((ValueError, FileNotFoundError), match=r"'chars', 'bytes'.* hub id") as error:
    from_name(name, ())
  assert f"data.tokenizer={name!r}" in str(error.value)
  assert not hub


def test_a_hub_that_is_out_of_reach_is_asked_once(hub):
  with pytest.raises(ConnectionError, match=r"no such file or folder is here.*'chars', 'bytes'"):
    from_name("nobody/nothing", ())
  assert len(hub) == 1


def test_a_tokenizer_without_an_end_of_text_says_so(tmp_path):
  save(KINDS["GPT-1"](), tmp_path)
  with pytest.warns(TokenizerWarning, match="no end-of-text token is found; blank lines"):
    assert from_name(str(tmp_path), ()).eos_id is None


@pytest.mark.parametrize("name", KINDS)
def test_a_tokenizer_that_loses_text_says_so(tmp_path, name):
  save(KINDS[name](), tmp_path)
  with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    from_name(str(tmp_path), ())
  is_lossless = name in ("byte level", "byte level, prefix space", "GPT-4", "Llama")
  assert any("does not come back" in str(x.message) for x in said) != (
    is_lossless or name == "byte level, stripped"  # It loses only what stands at the ends.
  )


# Prepared text.


def test_prepared_text_refuses_another_end_of_text_and_another_gpt2(tmp_path):
  library = with_added(byte_level, AddedToken("<stop>", special=True))
  folder = save(library, tmp_path / "tokenizer")
  (tmp_path / "text.txt").write_text(TEXT)
  config = DataConfig(files=str(tmp_path / "text.txt"), tokenizer=f"gpt2:{folder}", length=16)
  prepare(config, tmp_path / "prepared", workers=1)
  there = dataclasses.replace(config, files=str(tmp_path / "prepared"))
  assert vocab_size_of(there) == load_dataset(there).tokenizer.vocab_size
  with pytest.raises(ValueError, match=r"data\.tokenizer_eos='<stop>', but .* '<\|endoftext\|>'"):
    load_dataset(dataclasses.replace(there, tokenizer_eos="<stop>"))
  with pytest.raises(ValueError, match=r"data\.tokenizer='gpt2', but .* has another tokenizer"):
    load_dataset(dataclasses.replace(there, tokenizer="gpt2"))
  vocab_size = load_dataset(there).tokenizer.vocab_size
  moved = dataclasses.replace(there, tokenizer=str(tmp_path / "moved" / "tokenizer.json"))
  assert vocab_size_of(moved) == vocab_size
  byte_level(normalizer=normalizers.Lowercase()).save(str(folder / "tokenizer.json"))
  with pytest.raises(ValueError, match=r"is not what it was when .* was prepared"):
    load_dataset(there)


# Weights that come without a tokenizer.


def words(count):
  library = tokenizers.Tokenizer(
    models.WordLevel({f"w{i}": i for i in range(count)}, unk_token="w0")
  )
  library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  return library


def test_the_end_of_text_is_named_where_the_tokenizer_is(shared_path, tmp_path):
  save(words(31), tmp_path)
  weights = shared_path("golden/hf_tiny")
  model = sedd_jax.load(weights, tokenizer=str(tmp_path), tokenizer_eos="w30")
  assert model.tokenizer is not None
  assert model.tokenizer.eos_id == 30
  again = convert(weights, tmp_path / "converted", tokenizer=str(tmp_path), tokenizer_eos="w30")
  assert same_tokenizer(sedd_jax.load(again).tokenizer, model.tokenizer)
  with pytest.raises(ValueError, match=r"no 'w31', which data\.tokenizer_eos"):
    sedd_jax.load(weights, tokenizer=str(tmp_path), tokenizer_eos="w31")


@pytest.mark.parametrize("count", [30, 32])
def test_a_vocabulary_that_does_not_fit_is_refused_by_every_verb(shared_path, tmp_path, count):
  folder, weights = save(words(count), tmp_path / "tokenizer"), shared_path("golden/hf_tiny")
  model = sedd_jax.load(weights)
  with pytest.raises(ValueError, match=f"has {count} tokens and the model 31"):
    dataclasses.replace(model, tokenizer=LibraryTokenizer(words(count).to_str()))
  suite = ["evaluate", "--suite=zero-shot", "--protocol=strict", f"--data=lambada={__file__}"]
  for verb in (
    ["sample", f"--checkpoint={weights}", "--num=1", "--steps=1"],
    ["convert", f"--from={weights}", f"--to={tmp_path / 'converted'}"],
    [*suite, f"--checkpoint={weights}"],
  ):
    done = sedd(*verb, f"--tokenizer={folder}")
    assert done.returncode == 2, done
    assert f"has {count} tokens and the model 31" in done.stderr
  assert not (tmp_path / "converted").exists()
