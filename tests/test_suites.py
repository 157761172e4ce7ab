"""Zero-shot protocols: which documents a text has, how they are cut, and the golden tokens."""

import json

import numpy as np
import pytest

from sedd_jax.data import Bytes, Chars, from_name
from sedd_jax.data.compression import open_any
from sedd_jax.data.detokenizers import PUBLISHED
from sedd_jax.evaluation.chunks import Chunking, make_chunks
from sedd_jax.evaluation.likelihood import read_tasks
from sedd_jax.evaluation.suites import GOLDEN, MDLM, SEDD, STRICT, SUITES
from sedd_jax.evaluation.texts import documents

EOS = 256
FILES = {
  "lambada": "data/lambada/lambada_test.jsonl.xz",
  "wikitext": "data/wikitext-2/wiki.test.raw.xz",
  "wikitext103": "data/wikitext-2/wiki.test.raw.xz",
}


def chunked(chunking, *texts, length=4, tokenizer=Bytes(eos=True)):
  return make_chunks(texts, tokenizer, chunking, length)


def as_text(rows):
  """Rows of bytes as strings, | for the end of text and capitals for given tokens."""
  return [
    "".join(
      "|" if t == EOS else chr(t) if scored else chr(t).upper()
      for t, scored in zip(row.tolist(), mask.tolist(), strict=True)
    )
    for row, mask in zip(rows.tokens, rows.loss_mask, strict=True)
  ]


# Chunks.


def test_groups_are_cut_by_themselves_and_remainders_dropped():
  chunking = Chunking(shards=2, group=2, edges="none", remainder="drop")
  found = chunked(chunking, "abc", "defg", "h", "ijk", "lmnopqr")
  # Shards of three and two documents, the first in groups of two and one.
  assert as_text(found.rows) == ["abc|", "defg", "ijk|", "lmno", "pqr|"]
  assert (found.documents, found.found, found.scored) == (5, 23, 20)
  assert found.characters == 17


def test_edges_take_two_places_of_every_row():
  chunking = Chunking(shards=1, group=1000, edges="eos", remainder="drop")
  found = chunked(chunking, "abc", "defg", length=5)
  assert as_text(found.rows) == ["|abc|", "||de|", "|fg||"]
  assert found.scored == 15, "the original counts the tokens at the edges too"
  assert found.characters == 7


def test_a_completed_row_scores_every_token_once():
  chunking = Chunking(shards=1, group=0, edges="none", remainder="complete")
  found = chunked(chunking, "abc", "defg", "h")
  assert as_text(found.rows) == ["abc|", "defg", "G|h|"]
  assert found.rows.tokens[2].tolist() == [ord("g"), EOS, ord("h"), EOS]
  assert found.rows.loss_mask[2].tolist() == [False, True, True, True]
  assert (found.found, found.scored, found.characters) == (11, 11, 8)


@pytest.mark.parametrize("size", [8, 9, 11, 12])
def test_scored_tokens_joined_are_the_text(size):
  text = "abcdefghijkl"[: size - 1]
  found = chunked(STRICT.chunking, text)
  scored = found.rows.tokens[found.rows.loss_mask]
  assert scored.tolist() == [*text.encode(), EOS]
  assert found.rows.tokens[-1].tolist() == [*text.encode(), EOS][-4:]
  assert found.characters == len(text)


def test_without_an_end_of_text_token_a_blank_line_stands_between_documents():
  tokenizer = Chars("\nabcdef")
  found = chunked(MDLM.chunking, "abc", "def", tokenizer=tokenizer)
  assert [tokenizer.decode(row) for row in found.rows.tokens] == ["abc\n", "\ndef"]


@pytest.mark.parametrize(
  ("chunking", "texts", "message"),
  [
    (STRICT.chunking, ["ab"], r"^3 tokens in 1 documents make no chunk: 4 are needed$"),
    (SEDD.chunking, ["ab", "cd"], r"6 tokens in 2 documents .* 4 are needed in each group .* 3 "),
    (MDLM.chunking, [], "there is no text in it"),
  ],
)
def test_too_little_text_is_an_error_with_numbers(chunking, texts, message):
  with pytest.raises(ValueError, match=message):
    chunked(chunking, *texts)


def test_a_chunk_without_room_is_refused():
  with pytest.raises(ValueError, match="chunks of 2 tokens have no room"):
    chunked(MDLM.chunking, "abc", length=2)


# Documents.


def test_lines_of_a_text_file_are_the_records_of_the_hub(tmp_path):
  text = " = Title = \n \n One , two . \n = 2 = \n = = Part = = \n \n = Next = \n end \n"
  (tmp_path / "wiki.raw").write_text(text)
  rows = [line if line.strip() else "" for line in text.splitlines(keepends=True)]
  with (tmp_path / "wiki.jsonl").open("w") as file:
    file.writelines(json.dumps({"text": row}) + "\n" for row in rows)
  for protocol, name in ((SEDD, "wikitext103"), (STRICT, "wikitext")):
    test_set = protocol.set_of(name)
    raw, lines = (
      list(documents(test_set, str(tmp_path / file))) for file in ("wiki.raw", "wiki.jsonl")
    )
    assert raw == lines
  assert raw == [" = Title =\n One, two.\n = 2 =\n == Part ==\n", " = Next =\n end\n"]
  assert len(list(documents(SEDD.set_of("wikitext103"), str(tmp_path / "wiki.raw")))) == 8


def test_sentences_are_stripped_and_read_from_the_field_of_the_set(tmp_path):
  (tmp_path / "ptb.test.txt").write_text(" the <unk> of $ N \n no it was n't \n")
  assert list(documents(MDLM.set_of("ptb"), str(tmp_path / "ptb.test.txt"))) == [
    "the ? of $ N",
    "no it wasn't",
  ]
  (tmp_path / "papers.jsonl").write_text('{"article": "we ( x ) show ."}\n{"text": "no"}\n')
  found = documents(MDLM.set_of("arxiv"), str(tmp_path / "papers.jsonl"))
  assert next(found) == "we (x) show."
  with pytest.raises(ValueError, match=r"line 2 has no text in the field 'article'.*it has text"):
    next(found)


def test_long_documents_are_put_together(tmp_path):
  passage = " word ," * 40_000
  (tmp_path / "long.jsonl").write_text(json.dumps({"text": passage}) + "\n")
  assert list(documents(SEDD.set_of("lambada"), str(tmp_path / "long.jsonl"))) == [
    "\n" + passage.strip()
  ]


def test_every_protocol_is_whole():
  for name, protocol in SUITES["zero-shot"].items():
    assert protocol.name == name
    assert len({one.name for one in protocol.sets}) == len(protocol.sets)
    assert all(one.detokenizer in PUBLISHED for one in protocol.sets)
    assert all(f"@{one.split}" in one.source for one in protocol.sets)
  assert len(SEDD.sets) == 5
  assert len(MDLM.sets) == 7
  assert {one.split for one in STRICT.sets} == {"test"}
  with pytest.raises(ValueError, match=r"sedd has no set 'wiki'.*lambada, wikitext2, ptb"):
    SEDD.set_of("wiki")


# Golden tokens.


@pytest.fixture(scope="module")
def gpt2(pytestconfig):
  folder = pytestconfig.rootpath.parent / "shared/data/gpt2-tokenizer"
  if not folder.exists():
    pytest.skip("../shared/data/gpt2-tokenizer is not here: it is not part of the package")
  return from_name(f"gpt2:{folder}", ())


@pytest.mark.parametrize(("protocol", "name"), GOLDEN)
def test_golden_tokens(shared_path, gpt2, protocol, name):
  protocol = SUITES["zero-shot"][protocol]
  sources = {name: str(shared_path(FILES[name]))}
  (task,) = read_tasks(protocol, [name], sources, gpt2, 1024)
  assert task.status == "verified"
  assert task.chunks.rows.tokens.dtype == np.int32
  assert task.chunks.rows.loss_mask.dtype == bool


def test_other_text_is_not_taken_for_the_golden_one(shared_path, gpt2, tmp_path):
  with open_any(shared_path(FILES["lambada"]), text=True) as file:
    lines = file.readlines()
  lines[5000] = lines[5000].replace("the", "teh", 1)
  (tmp_path / "lambada.jsonl").write_text("".join(lines))
  (task,) = read_tasks(
    STRICT, ["lambada"], {"lambada": str(tmp_path / "lambada.jsonl")}, gpt2, 1024
  )
  assert task.status == "TOKENS DIFFER FROM THE GOLDEN ONES"


def test_another_length_has_no_golden_tokens(shared_path, gpt2):
  sources = {"wikitext": str(shared_path(FILES["wikitext"]))}
  (task,) = read_tasks(STRICT, ["wikitext"], sources, gpt2, 512)
  assert task.status == "not verified here"


def test_another_tokenizer_has_no_golden_tokens(shared_path):
  sources = {"lambada": str(shared_path(FILES["lambada"]))}
  (task,) = read_tasks(STRICT, ["lambada"], sources, Bytes(eos=True), 1024)
  assert task.status == "not verified here"
  text = "".join(documents(STRICT.set_of("lambada"), sources["lambada"]))
  assert task.chunks.scored == len(text.encode()) + 5153
  # A character of several bytes may be cut in two by the end of a row.
  assert 0 <= task.chunks.characters - len(text) < 2 * len(task.chunks.rows.tokens) / 50
