"""Corpora, tokenizers, blocks and batches."""

import gzip
import json
import lzma
import sys

import numpy as np
import pytest

from sedd_jax.data import (
  BPE,
  Bytes,
  Chars,
  DataConfig,
  check_same,
  embedded,
  from_json,
  load_corpus,
  load_dataset,
)
from sedd_jax.data.compression import OPENERS, open_any
from sedd_jax.data.corpus import Identity
from sedd_jax.data.detokenizers import DETOKENIZERS
from sedd_jax.data.faults import Faults
from sedd_jax.data.sources import Lines, Piece
from sedd_jax.data.streams import encode


def identity_of(corpus):
  identity = Identity(corpus.name)
  for pieces in corpus.sides():
    assert list(identity.watch(pieces))
  return identity.to_json()


def documents(corpus, side):
  """The documents of a side, whole."""
  found = []
  for piece in corpus.pieces(side):
    if piece.begins:
      found.append("")
    found[-1] += piece.text
  return tuple(found)


def paragraphs(documents):
  """Long paragraphs, whatever white space stands around them."""
  stripped = (p.strip() for document in documents for p in document.split("\n\n"))
  return [p for p in stripped if len(p) > 80]


def test_no_long_embedded_paragraph_is_in_both_train_and_heldout():
  corpus = embedded()
  train, heldout = (paragraphs(documents(corpus, side)) for side in ("train", "heldout"))
  assert len(train) > 300
  assert len(heldout) > 20
  assert not set(train) & set(heldout)
  assert len(train) == len(set(train)), "a paragraph is repeated in train"


@pytest.mark.parametrize(("version", "symbols"), [((3, 11), 103), ((3, 13), 104)])
def test_embedded_corpus_is_the_known_text(version, symbols):
  if sys.version_info[:2] != version:
    pytest.skip(f"the text of Python {version} is not here")
  corpus = embedded()
  assert Chars.of(corpus.texts()).vocab_size == symbols
  assert corpus.name.endswith(".".join(map(str, version)))


def test_missing_embedded_corpus_names_the_option(monkeypatch):
  monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
  with pytest.raises(FileNotFoundError, match=r"--config\.data"):
    embedded()


def test_another_corpus_is_refused_by_name():
  found = identity_of(embedded())
  stored = found | {"name": "language reference of Python 3.9", "sha256": "0" * 64}
  check_same(found, identity_of(embedded()))
  with pytest.raises(ValueError, match=r"language reference of Python 3\.9.*000000"):
    check_same(stored, found)


def test_identity_sees_texts_and_where_they_are_cut(tmp_path):
  (tmp_path / "a.txt").write_text("abcdefghij")
  one, two = (load_corpus(str(tmp_path / "a.txt"), split=s) for s in ((0.5, 1.0), (0.6, 1.0)))
  assert identity_of(one) != identity_of(two)
  assert documents(one, "train") == ("abcde",)
  assert documents(one, "heldout") == ("fghij",)


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz", ".zst"])
def test_text_and_json_lines_are_read_from_all_kinds_of_files(tmp_path, suffix):
  opener = OPENERS.get(suffix, open)
  with opener(tmp_path / f"a.txt{suffix}", "wt", encoding="utf-8") as file:
    file.write("Grüße\nzwei")
  with opener(tmp_path / f"b.jsonl{suffix}", "wt", encoding="utf-8") as file:
    file.writelines(json.dumps({"body": text}) + "\n" for text in ("eins", "zwei"))
  corpus = load_corpus(
    f"{tmp_path}/*.txt*", heldout_files=f"{tmp_path}/*.jsonl*", text_field="body"
  )
  assert documents(corpus, "train") == ("Grüße\nzwei",)
  assert documents(corpus, "heldout") == ("eins", "zwei")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_lines_of_files_of_any_name_are_documents_with_their_ends(tmp_path, suffix):
  path = tmp_path / f"wiki.test.raw{suffix}"
  with OPENERS.get(suffix, open)(path, "wt", encoding="utf-8") as file:
    file.write("eins \n\nzwei\u2028drei")
  source, faults = Lines(str(path)), Faults("skip")
  assert [piece.text for piece in source.pieces(faults)] == ["eins \n", "\n", "zwei\u2028drei"]
  assert all(piece.begins and piece.ends for piece in source.pieces(faults))
  (tmp_path / "wiki.test.raw").write_bytes(b"\xff\xfe")
  assert not list(Lines(str(tmp_path / "wiki.test.raw")).pieces(faults))
  assert "wiki.test.raw" in faults.first[0]
  with pytest.raises(FileNotFoundError, match="nothing"):
    next(Lines(f"{tmp_path}/nothing*").pieces(faults))


def read(files, **options):
  """Reads all of a corpus."""
  return identity_of(load_corpus(files, **options))


def test_faults_of_files_are_named(tmp_path):
  with pytest.raises(FileNotFoundError, match="nothing"):
    read(f"{tmp_path}/nothing*.txt")
  (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"body": "y"}\n')
  with pytest.raises(ValueError, match=r"a\.jsonl: line 2 .*'text'"):
    read(f"{tmp_path}/a.jsonl")
  (tmp_path / "b.txt").write_bytes(b"\xff\xfe\xff")
  with pytest.raises(ValueError, match=r"b\.txt"):
    read(f"{tmp_path}/b.txt")
  (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"x" * 1000)[:20])
  with pytest.raises(ValueError, match=r"c\.txt\.gz"):
    read(f"{tmp_path}/c.txt.gz")
  with pytest.raises(ValueError, match=r"data\.files is empty.*--config\.data\.files"):
    load_corpus("")
  whole = lzma.compress(b"some text " * 100)
  (tmp_path / "e.txt.xz").write_bytes(whole[:30] + b"\x00" * 8 + whole[38:])
  with pytest.raises(ValueError, match=r"e\.txt\.xz"):
    read(f"{tmp_path}/e.txt.xz")
  (tmp_path / "f.jsonl").write_text('{"text": "x"}\n\n{"text": "y"\n')
  with pytest.raises(ValueError, match=r"f\.jsonl: line 3 is not JSON"):
    read(f"{tmp_path}/f.jsonl")
  (tmp_path / "d.parquet").write_text("")
  with pytest.raises(ValueError, match=r"\.parquet"):
    read(f"{tmp_path}/d.parquet")


@pytest.mark.parametrize("tokenizer", ["chars", "bytes"])
@pytest.mark.parametrize("on_fault", ["fail", "skip"])
@pytest.mark.parametrize("heldout", [False, True])
def test_text_is_read_at_most_twice(tmp_path, monkeypatch, tokenizer, on_fault, heldout):
  (tmp_path / "a.txt").write_text("abc " * 100)
  (tmp_path / "b.jsonl").write_text(json.dumps({"text": "some words " * 50}) + "\n")
  (tmp_path / "c.txt").write_text("cab " * 100)
  opened = []

  def counting(path, **options):
    opened.append(path.name)
    return open_any(path, **options)

  monkeypatch.setattr("sedd_jax.data.sources.open_any", counting)
  config = DataConfig(
    files=f"{tmp_path}/a.txt,{tmp_path}/b.jsonl",
    heldout_files=f"{tmp_path}/c.txt" * heldout,
    tokenizer=tokenizer,
    on_fault=on_fault,
    length=16,
  )
  load_dataset(config)
  most = 1 if heldout and on_fault == "fail" else 2
  assert all(opened.count(name) <= most for name in ("a.txt", "b.jsonl", "c.txt")), opened


def test_another_corpus_is_named_before_its_unknown_characters(tmp_path):
  (tmp_path / "a.txt").write_text("abc " * 100)
  config = DataConfig(files=str(tmp_path / "a.txt"), length=16)
  dataset = load_dataset(config)
  (tmp_path / "a.txt").write_text("xyz " * 100)
  with pytest.raises(ValueError, match="this run was trained on the corpus"):
    load_dataset(config, expected=dataset.identity, tokenizer=dataset.tokenizer)
  with pytest.raises(ValueError, match="characters 'x', 'y', 'z' are not one of the 4"):
    load_dataset(config, tokenizer=dataset.tokenizer)


def test_a_block_longer_than_the_text_is_refused(tmp_path):
  (tmp_path / "a.txt").write_text("abc " * 100)
  config = DataConfig(files=str(tmp_path / "a.txt"), length=64)
  with pytest.raises(ValueError, match=r"data\.length=64 .*held-out text \(20 tokens\)"):
    load_dataset(config)


@pytest.mark.parametrize("tokenizer", [Chars("\n abcßü—"), Bytes()], ids=["chars", "bytes"])
def test_tokenizers_give_the_text_back(tokenizer):
  text = "ab — ßü\ncab"
  again = from_json(json.loads(json.dumps(tokenizer.to_json())))
  for one in (tokenizer, again):
    ids = one.encode(text)
    assert ids.dtype == np.int32
    assert ids.max() < one.vocab_size
    assert one.decode(ids) == text


def check_pieces(tokenizer, ids):
  pieces = tokenizer.pieces(ids)
  assert len(pieces) == len(ids)
  assert "".join(pieces) == tokenizer.decode(ids)
  for i, piece in zip(ids, pieces, strict=True):
    # A token that is whole by itself says the same in any company.
    if "\ufffd" not in (alone := tokenizer.pieces([i])[0]):
      assert piece == alone
  return pieces


def test_pieces_of_characters():
  assert check_pieces(Chars("abcß—"), [3, 0, 4]) == ["ß", "a", "—"]


def test_pieces_of_bytes_show_a_character_where_it_is_complete():
  assert check_pieces(Bytes(), [*"aß—b".encode()]) == ["a", "", "ß", "", "", "—", "b"]
  # A character that breaks off is replaced where it ends, not in the token after it.
  assert check_pieces(Bytes(), [0xE2, 0x80, 0x41]) == ["", "\ufffd", "A"]
  assert check_pieces(Bytes(), []) == []
  for row in np.random.default_rng(0).integers(0, 256, (200, 24)):
    check_pieces(Bytes(), row.tolist())


def test_pieces_of_bpe(shared_path):
  tokenizer = BPE.from_folder(shared_path("data/gpt2-tokenizer"))
  text = "It's naïve — 東🙃\n\n  x<|endoftext|>"
  pieces = check_pieces(tokenizer, tokenizer.encode(text).tolist())
  assert pieces == [
    *("It", "'s", " naïve", " —", " ", "", "東", "", "", "🙃", "\n\n", " ", " x", "<|endoftext|>")
  ]
  rng = np.random.default_rng(0)
  for row in rng.integers(0, tokenizer.vocab_size, (50, 40)):
    check_pieces(tokenizer, row.tolist())
  # The first 256 are single bytes, in the alphabet's order: broken characters everywhere.
  for row in rng.integers(0, 256, (200, 24)):
    check_pieces(tokenizer, row.tolist())
  with pytest.raises(ValueError, match="token 50257 is not one of the 50257"):
    tokenizer.pieces([50257])


def test_unknown_character_is_named():
  with pytest.raises(ValueError, match="'z' is not one of the 3"):
    Chars("abc").encode("abz")


def test_gpt2_tokenizer_gives_the_known_ids(shared_path):
  tokenizer = BPE.from_folder(shared_path("data/gpt2-tokenizer"))
  assert tokenizer.vocab_size == 50257
  assert tokenizer.eos_id == 50256
  # Known from GPT-2: leading spaces belong to the word, and bytes cover all of Unicode.
  assert tokenizer.encode("Hello world").tolist() == [15496, 995]
  assert tokenizer.encode("<|endoftext|>").tolist() == [50256]
  text = "It's 12,345 naïve — 東京 🙂\n\n  x"
  again = from_json(tokenizer.to_json())
  assert again.decode(again.encode(text)) == text
  stream = encode([Piece("Hello world"), Piece("Hello")], tokenizer)
  assert stream.tokens.tolist() == [15496, 995, 50256, 15496, 50256]
  assert stream.starts.tolist() == [0, 3]


def test_gpt2_without_a_network_names_the_option(monkeypatch):
  import huggingface_hub.constants

  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
  with pytest.raises(ConnectionError, match="gpt2:/path/to/folder"):
    BPE.from_hub("no-such-tokenizer")


def test_end_of_text_is_a_token_and_no_character(shared_path, tmp_path):
  (tmp_path / "a.jsonl").write_text(json.dumps({"text": "Hello world"}) + "\n")
  (tmp_path / "b.jsonl").write_text((json.dumps({"text": "Hello"}) + "\n") * 6)
  dataset = load_dataset(
    DataConfig(
      files=f"{tmp_path}/a.jsonl",
      heldout_files=f"{tmp_path}/b.jsonl",
      tokenizer=f"gpt2:{shared_path('data/gpt2-tokenizer')}",
      length=2,
    )
  )
  assert dataset.heldout_head.tolist() == [15496, 50256] * 6
  assert dataset.chars_per_token == 5 * 6 / 12


def test_chars_know_what_stands_between_documents(tmp_path):
  (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": "abc" * 9}) + "\n" for _ in "abc"))
  (tmp_path / "b.txt").write_text("abc" * 9)
  several, one = (DataConfig(files=f"{tmp_path}/{name}", length=1) for name in ("a.jsonl", "b.txt"))
  assert load_dataset(several).tokenizer.characters == "\nabc"
  assert load_dataset(one).tokenizer.characters == "abc"


def test_embedded_text_with_other_heldout_text(tmp_path):
  (tmp_path / "b.txt").write_text("held out " * 40)
  dataset = load_dataset(DataConfig(heldout_files=f"{tmp_path}/b.txt", length=16))
  assert dataset.tokenizer.decode(dataset.heldout_head).startswith("held out")
  assert len(dataset.train_head) > len(load_dataset(DataConfig(length=16)).train_head)
  swapped = DataConfig(files=f"{tmp_path}/b.txt", heldout_files="embedded", length=16)
  assert len(load_dataset(swapped).heldout_head) == len(dataset.train_head)


@pytest.mark.parametrize("name", ["wikitext", "lambada"])
def test_detokenizers_see_whole_lines(tmp_path, name):
  text = ("some words , and more \n" + "word " * 30_000 + "\n") * 3
  (tmp_path / "a.txt").write_text(text)
  corpus = load_corpus(f"{tmp_path}/a.txt", f"{tmp_path}/a.txt", detokenizer=name)
  assert documents(corpus, "train") == (DETOKENIZERS[name](text),)


def test_folders_are_no_files(tmp_path):
  (tmp_path / "a.txt").write_text("text " * 40)
  (tmp_path / "folder").mkdir()
  assert read(f"{tmp_path}/*")["characters"] == 200
  with pytest.raises(ValueError, match=r"is a folder that sedd prepare did not make; name files"):
    read(str(tmp_path / "folder"))
  (tmp_path / "b.jsonl").write_text("[" * 100_000)
  with pytest.raises(ValueError, match=r"b\.jsonl: line 1 is nested too deeply"):
    read(f"{tmp_path}/b.jsonl")
