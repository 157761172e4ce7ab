"""BERT's pieces: the ids that BERT's own implementation gives, and what comes back of a text."""

import pytest

from sedd_jax.data import WordPiece, from_json, from_name

# Ids of bert-base-uncased.
KNOWN = {
  "Hello, world!": [7592, 1010, 2088, 999],
  "unaffable": [14477, 20961, 3468],
  "": [],
}


@pytest.fixture(scope="module")
def bert(pytestconfig):
  folder = pytestconfig.rootpath.parent / "shared" / "data" / "bert-vocab"
  if not folder.is_dir():
    pytest.skip("../shared/data/bert-vocab is not here: it is not part of the package")
  return from_name(f"bert:{folder}", ())


def test_ids_are_berts(bert):
  assert (bert.vocab_size, bert.eos_id) == (30_522, 102)
  for text, ids in KNOWN.items():
    assert bert.encode(text).tolist() == ids
  library = pytest.importorskip("tokenizers")
  vocab = {token: i for i, token in enumerate(bert.to_json()["vocabulary"])}
  theirs = library.implementations.BertWordPieceTokenizer(vocab, lowercase=True)
  text = "Zoë paid £3.50 for 東京's naïve “co-op” re-runs, didn't she?\n\tYes... 🙂 ok"
  assert bert.encode(text).tolist() == theirs.encode(text, add_special_tokens=False).ids


def test_what_comes_back_is_lower_case_and_spaced(bert):
  ids = bert.encode("Hello,  WORLD! Unaffable Zoë 🙂")
  assert bert.decode(ids) == " hello , world ! unaffable zoe [UNK]"
  assert bert.pieces(ids[:4]) == [" hello", " ,", " world", " !"]
  again = bert.encode(bert.decode(ids[:-1]))
  assert again.tolist() == ids[:-1].tolist()


def test_pieces_do_not_depend_on_their_company(bert):
  ids = [102, 20961, 3468, 0, 103]
  assert bert.decode(ids) == "".join(bert.pieces([i])[0] for i in ids)
  with pytest.raises(ValueError, match="token 30522 is not one of the 30522"):
    bert.pieces([30_522])


def test_it_is_built_again_from_its_json(bert):
  again = from_json(bert.to_json())
  assert again.encode("pieces of it").tolist() == bert.encode("pieces of it").tolist()


def test_vocabularies_that_cannot_be_are_refused(tmp_path):
  with pytest.raises(ValueError, match=r"no \[SEP\]"):
    WordPiece(["[UNK]", "a"])
  with pytest.raises(ValueError, match="listed twice"):
    WordPiece(["[UNK]", "[SEP]", "a", "a"])
  with pytest.raises(FileNotFoundError, match=r"no vocab\.txt"):
    from_name(f"bert:{tmp_path}", ())
