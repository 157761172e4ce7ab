"""Tokenizers of every type: pieces, long documents, identity, refusals."""

import json

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tokenizers
from support.command import sedd
from support.small_tokenizers import KINDS, TEXT, byte_level, gpt1, text_of, word_level
from tokenizers import (
  AddedToken,
  normalizers,
  pre_tokenizers,
  processors,
)

from sedd_jax.data import BPE, Bytes, Chars, DataConfig, from_json, from_name, load_dataset
from sedd_jax.data.library_tokenizer import LibraryTokenizer, TokenizerWarning
from sedd_jax.data.sources import cut_document
from sedd_jax.data.streams import encode, separated
from sedd_jax.data.tokenizers import fingerprint, same_tokenizer

LOSSLESS = ("byte level", "byte level, prefix space", "GPT-4", "Llama")


@pytest.fixture(scope="module", params=KINDS)
def made(request):
  """(name, the library's tokenizer, ours)."""
  library = KINDS[request.param]()
  return request.param, library, LibraryTokenizer(library.to_str())


def test_ids_are_the_librarys(made):
  _, library, ours = made
  for text in (TEXT[:500], "", " ", "x", "\n\n", "東 unseen ☃"):
    assert ours.encode(text).tolist() == library.encode(text, add_special_tokens=False).ids
  assert ours.vocab_size == max(library.get_vocab(True).values()) + 1
  assert ours.encode(TEXT).max() < ours.vocab_size


def test_text_is_the_librarys(made):
  name, library, ours = made
  ids = ours.encode(TEXT[:2000]).tolist()
  got = ours.decode(ids)
  assert got.rstrip(" ") == library.decode(ids, skip_special_tokens=False).rstrip(" ")
  if name in LOSSLESS:
    assert got.removeprefix(" ") == TEXT[:2000]


def test_text_behind_other_text_has_nothing_put_before_it(made):
  """As in a template behind a blank."""
  name, _, ours = made
  for before, text in (("the", " dog"), ("brow", "n fox"), ("fox", "  jumps"), ("a\n", "lazy")):
    got = ours.decode(np.concatenate([ours.encode(before), ours.encode_behind(text)]))
    if name in LOSSLESS:
      assert got.removeprefix(" ") == before + text
  assert ours.encode_behind("").tolist() == []


@hypothesis.given(st.data())
@hypothesis.settings(
  deadline=None,
  max_examples=60,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
def test_pieces_join_to_the_text_of_any_ids(made, data):
  _, library, ours = made
  ids = data.draw(st.lists(st.integers(0, ours.vocab_size - 1), max_size=12))
  pieces = ours.pieces(ids)
  assert len(pieces) == len(ids)
  assert "".join(pieces) == ours.decode(ids)
  # The library strips a space that is a byte of its own too; here a byte is what it is.
  if "\ufffd" not in ours.decode(ids) and ours.name_of(ids[0] if ids else 0) != "<0x20>":
    theirs = library.decode(ids, skip_special_tokens=False)
    assert ours.decode(ids).rstrip(" ") == theirs.rstrip(" ")
  for i, piece in zip(ids[1:], pieces[1:], strict=True):
    alone = ours.pieces([i, i])[1]
    assert "\ufffd" in alone or piece == alone


def test_ids_that_are_none_are_refused(made):
  for tokenizer in (made[2], Chars("abc"), Bytes(), Bytes(eos=True)):
    for i in (-1, tokenizer.vocab_size, 10**9):
      for read in (tokenizer.decode, tokenizer.pieces):
        with pytest.raises(ValueError, match=f"token {i} is not one of the {tokenizer.vocab_size}"):
          read([i])


def test_long_documents_have_the_tokens_of_the_whole(made):
  _, _, ours = made
  text = text_of(40_000, seed=1)
  pieces = list(cut_document(text))
  assert len(pieces) >= 2
  assert "".join(piece.text for piece in pieces) == text
  stream = encode(separated(pieces, ours), ours)
  whole = ours.encode(text)
  if ours.eos_id is not None:
    whole = np.append(whole, ours.eos_id)
  np.testing.assert_array_equal(stream.tokens, whole)
  assert stream.characters == len(text)


def test_it_is_built_again_from_its_json(made):
  _, _, ours = made
  again = from_json(json.loads(json.dumps(ours.to_json())))
  assert again.encode(TEXT[:300]).tolist() == ours.encode(TEXT[:300]).tolist()
  assert (again.eos_id, again.vocab_size) == (ours.eos_id, ours.vocab_size)
  assert same_tokenizer(again, ours)
  assert fingerprint(again) == fingerprint(ours)


def test_a_run_takes_it_and_bits_are_those_of_the_text(made, tmp_path):
  _, library, ours = made
  library.save(str(tmp_path / "tokenizer.json"))
  (tmp_path / "text.txt").write_text(TEXT, newline="")
  for name in (tmp_path, tmp_path / "tokenizer.json"):
    data = DataConfig(files=str(tmp_path / "text.txt"), tokenizer=str(name), length=16)
    dataset = load_dataset(data)
    assert same_tokenizer(dataset.tokenizer, ours)
  heldout = len(dataset.heldout_head)
  read = (tmp_path / "text.txt").read_text()
  first = int(len(read) * 0.95)
  assert dataset.chars_per_token == pytest.approx((len(read) - first) / heldout, rel=0.01)


# What a file says beside its map from text to ids.


def changed(definition, **parts):
  return json.dumps({**json.loads(definition), **parts})


TEMPLATE = processors.TemplateProcessing(
  single="<|endoftext|> $A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
)


@pytest.fixture(scope="module")
def plain():
  return byte_level()


def odd(library, what):
  again = tokenizers.Tokenizer.from_str(library.to_str())
  match what:
    case "truncation":
      again.enable_truncation(8)
    case "padding":
      again.enable_padding(pad_id=0, pad_token="<|endoftext|>", length=64)
    case "tokens added":
      again.post_processor = TEMPLATE
    case "dropout":
      again.model.dropout = 0.5
  return again.to_str()


@pytest.mark.parametrize("what", ["truncation", "padding", "tokens added", "dropout"])
def test_what_changes_ids_is_switched_off_and_said(plain, what, tmp_path):
  (tmp_path / "tokenizer.json").write_text(odd(plain, what))
  with pytest.warns(TokenizerWarning, match=rf"tokenizer\.json: {what}.*: switched off"):
    ours = from_name(f"gpt2:{tmp_path}", ())
  expected = LibraryTokenizer(plain.to_str())
  for text in ("x", TEXT[:2000]):
    assert ours.encode(text).tolist() == expected.encode(text).tolist()
    assert [x.tolist() for x in ours.encode_batch(["x", text])][1] == expected.encode(text).tolist()
  assert same_tokenizer(ours, expected)
  assert fingerprint(ours) == fingerprint(expected)


def test_the_command_line_says_what_is_switched_off(plain, tmp_path):
  (tmp_path / "tokenizer.json").write_text(odd(plain, "truncation"))
  (tmp_path / "text.txt").write_text(TEXT)
  done = sedd(
    "prepare", f"--files={tmp_path}/text.txt", f"--tokenizer={tmp_path}", f"--out={tmp_path}/out",
    "--workers=1",
  )  # fmt: skip
  assert done.returncode == 0, done
  assert f"{tmp_path}/tokenizer.json: truncation to 8 tokens: switched off" in done.stderr


# Identity.


@pytest.mark.parametrize(
  "change",
  [
    lambda t: setattr(t, "normalizer", normalizers.Lowercase()),
    lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
    lambda t: t.add_tokens(["brown fox"]),
    lambda t: t.add_special_tokens(["<pad>"]),
    lambda t: t.add_special_tokens([AddedToken("<|endoftext|>", lstrip=True)]),
  ],
  ids=["normalizer", "prefix space", "added token", "special token", "flag of a token"],
)
def test_another_definition_is_another_tokenizer(plain, change):
  one, other = (tokenizers.Tokenizer.from_str(plain.to_str()) for _ in range(2))
  change(other)
  one, other = LibraryTokenizer(one.to_str()), LibraryTokenizer(other.to_str())
  assert not same_tokenizer(one, other)
  assert fingerprint(one) != fingerprint(other)


def test_gpt2_is_one_however_it_is_written(plain, tmp_path):
  definition = json.loads(plain.to_str())
  (tmp_path / "vocab.json").write_text(json.dumps(definition["model"]["vocab"]))
  merges = [
    pair if isinstance(pair, str) else " ".join(pair) for pair in definition["model"]["merges"]
  ]
  (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges))
  files = from_name(f"gpt2:{tmp_path}", ())
  assert same_tokenizer(files, BPE(plain.to_str()))
  assert files.to_json()["kind"] == "bpe"


# End of text.


def test_the_end_of_text_is_found_or_named(plain, tmp_path):
  file = tmp_path / "tokenizer.json"
  again = tokenizers.Tokenizer.from_str(plain.to_str())
  again.add_special_tokens(["<stop>"])
  again.save(str(file))
  assert from_name(str(file), ()).eos_id == 0
  assert from_name(str(file), (), "<stop>").eos_id == again.token_to_id("<stop>")
  (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<stop>"}}')
  assert from_name(str(file), ()).eos_id == again.token_to_id("<stop>")
  assert from_name(str(tmp_path), ()).eos_id == again.token_to_id("<stop>")
  assert from_name(str(file), (), "<|endoftext|>").eos_id == 0
  with pytest.raises(ValueError, match=r"no '<nothing>', which data\.tokenizer_eos"):
    from_name(str(file), (), "<nothing>")
  assert LibraryTokenizer(gpt1().to_str()).eos_id is None
  with pytest.raises(ValueError, match="has its own"):
    from_name("bytes", (), "x")


# Refusals.


@pytest.mark.parametrize(
  ("content", "why"),
  [
    ("{", "is no tokenizer.json"),
    ("[]", "is no tokenizer.json"),
    ('{"model": {"type": "Other"}}', "model of type 'Other' is not read"),
    ('{"model": {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}}', "is no tokenizer"),
    ("version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
  ],
)
def test_files_that_are_none_are_named(tmp_path, content, why):
  (tmp_path / "tokenizer.json").write_text(content)
  for name in (str(tmp_path), f"gpt2:{tmp_path}", str(tmp_path / "tokenizer.json")):
    with pytest.raises(ValueError, match=f"tokenizer.json.*{why}|{why}"):
      from_name(name, ())


def test_a_decoder_that_looks_ahead_is_refused(plain):
  decoder = {"type": "CTC", "pad_token": "a", "word_delimiter_token": "|", "cleanup": True}
  with pytest.raises(ValueError, match="decoder of type CTC"):
    LibraryTokenizer(changed(plain.to_str(), decoder=decoder))


@pytest.mark.parametrize(
  "name", ["charz", "", "nowhere/", "./nowhere.json", "gpt2:", "bytes:x", "a b"]
)
def test_names_that_are_none_list_the_choices(name):
  with pytest.raises(ValueError, match=r"data\.tokenizer=.*'chars', 'bytes'"):
    from_name(name, ())


def test_a_hole_in_the_vocabulary_is_no_text(plain):
  definition = json.loads(word_level().to_str())
  last = max(definition["model"]["vocab"].values())
  definition["model"]["vocab"]["far"] = last + 5
  ours = LibraryTokenizer(json.dumps(definition))
  assert ours.vocab_size == last + 6
  assert ours.pieces([last + 2, last + 5]) == ["", " far"]
  assert ours.encode("far").tolist() == [last + 5]


# Prepared text.


def test_prepared_text_refuses_another_tokenizer(plain, tmp_path):
  (tmp_path / "text.txt").write_text(TEXT)
  folder, other = tmp_path / "one", tmp_path / "other"
  for path, library in ((folder, plain), (other, byte_level(normalizer=normalizers.Lowercase()))):
    path.mkdir()
    library.save(str(path / "tokenizer.json"))
  prepared = tmp_path / "prepared"
  done = sedd("prepare", f"--files={tmp_path}/text.txt", f"--tokenizer=gpt2:{folder}",
              f"--out={prepared}", "--workers=1")  # fmt: skip
  assert done.returncode == 0, done

  def load(name):
    return load_dataset(DataConfig(files=str(prepared), tokenizer=str(name), length=16))

  for name in (f"gpt2:{folder}", folder, folder / "tokenizer.json"):
    load(name)
  for name in (f"gpt2:{other}", other, "bytes", "chars"):
    with pytest.raises(ValueError, match="has another tokenizer"):
      load(name)
  (folder / "tokenizer.json").rename(tmp_path / "moved.json")
  folder.rmdir()
  load(f"gpt2:{folder}")
  load(tmp_path / "moved.json")
