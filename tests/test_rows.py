"""Streams of tokens in rows, and rows in batches."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.rows import ArrayRows

from sedd_jax.batch import Batch
from sedd_jax.data import BPE, Batches, Bytes, Chars, DataConfig, load_dataset
from sedd_jax.data.faults import Faults
from sedd_jax.data.rows import Joined, make_rows, spread
from sedd_jax.data.sources import LONGEST, PIECE, Cut, Documents, Files, Piece, cut_document
from sedd_jax.data.streams import encode, groups, heads, separated
from sedd_jax.diffusion import (
  Absorbing,
  Geometric,
  LogLinear,
  TimeIntegral,
  Uniform,
  denoising_score_entropy,
)
from sedd_jax.evaluation.bounds import Bound
from sedd_jax.training.report import HeldoutBound

EOS = 256


def stream_of(texts, tokenizer=None):
  tokenizer = tokenizer or Bytes(eos=True)
  return encode(separated(map(Piece, texts), tokenizer), tokenizer)


def rows_of(stream, length, packing, fill="given", eos_id=EOS, visibility="row"):
  tokenizer = "bytes" if eos_id is None else "bytes:eos"
  config = DataConfig(
    tokenizer=tokenizer, length=length, packing=packing, fill=fill, visibility=visibility
  )
  return make_rows(stream, config, eos_id, "some")


def texts_of(rows):
  """The documents that rows hold, from the tokens that count."""
  kept = rows.tokens[rows.loss_mask]
  return "".join(chr(token) if token != EOS else "|" for token in kept)


# Streams.


def test_documents_without_eos_are_joined_by_a_blank_line():
  assert Bytes().decode(stream_of(["a", "b"], Bytes()).tokens) == "a\n\nb"
  assert stream_of(["a", "b"], Bytes()).characters == 4


def test_eos_follows_every_document_and_is_no_character():
  stream = stream_of(["ab", "", "c"])
  assert stream.tokens.tolist() == [97, 98, EOS, EOS, 99, EOS]
  assert stream.starts.tolist() == [0, 3, 4]
  assert stream.characters == 3
  assert stream.tokens.dtype == np.uint16


def test_windows_behind_the_end_hold_no_token():
  stream = stream_of(["abc"])
  tokens, readable = stream.windows(np.array([0, 2]), 4)
  assert tokens.tolist() == [[97, 98, 99, EOS], [99, EOS, 0, 0]]
  assert readable.tolist() == [[True] * 4, [True, True, False, False]]


def test_heads_take_as_much_of_each_stream():
  one, two = stream_of(["aaaa"]), stream_of(["b"])
  assert heads([one, two], 6).tolist() == [97, 97, 97, 98, EOS]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=40), max_size=8), st.data())
def test_cutting_a_source_divides_its_characters_and_nothing_else(texts, data):
  source = Documents("some", tuple(texts))
  size = sum(map(len, texts))
  first = data.draw(st.integers(0, size))
  last = data.draw(st.integers(first, size))
  parts = [Cut(source, a, b) for a, b in ((0, first), (first, last), (last, size))]
  pieces = [list(part.pieces(None)) for part in parts]
  assert "".join(p.text for part in pieces for p in part) == "".join(texts)
  for part in pieces:
    depth = 0
    for piece in part:  # Documents begin and end in turn.
      assert piece.begins == (depth == 0)
      depth = 0 if piece.ends else 1
    assert depth == 0


@pytest.fixture(scope="module")
def bpe():
  from support.paths import SHARED

  if not (SHARED / "data").is_dir():
    pytest.skip("../shared/data is not here: it is not part of the package")
  return BPE.from_folder(SHARED / "data/gpt2-tokenizer")


WORDS = st.lists(
  st.sampled_from(
    [" ", "  ", "\n", "\n\n", "\t", "a", "it's", "don't", "12", "é", "東京", "\x1c", "\xa0",
     "\u2028", "!?", "<|endoftext|>", "_", "\r\n", " \n x", "word " * 9]
  ),
  max_size=60,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(words=WORDS)
def test_pieces_give_the_tokens_of_the_whole(bpe, words):
  from unittest import mock

  text = "".join(words)
  with mock.patch("sedd_jax.data.sources.PIECE", 8):
    pieces = list(cut_document(text))
  assert "".join(piece.text for piece in pieces) == text
  assert encode(pieces, bpe).tokens.tolist() == [*bpe.encode(text), bpe.eos_id]


def test_text_without_white_space_comes_in_pieces(tmp_path):
  """Not read to its end, nor again from its start, before the first piece."""
  text = "ACGT" * (LONGEST // 2)
  (tmp_path / "a.txt").write_text(text)
  for pieces in (list(cut_document(text)), list(Files(f"{tmp_path}/a.txt").pieces(Faults()))):
    assert max(len(piece.text) for piece in pieces) <= 2 * LONGEST
    assert len(pieces) >= 2
    assert "".join(piece.text for piece in pieces) == text
    assert [piece.ends for piece in pieces] == [False] * (len(pieces) - 1) + [True]


def test_long_documents_come_in_pieces():
  text = "some words in a line of text\n" * (PIECE // 5)
  pieces = list(cut_document(text))
  assert max(len(piece.text) for piece in pieces) <= 2 * PIECE
  assert len(pieces) > 2
  assert [piece.begins for piece in pieces] == [True] + [False] * (len(pieces) - 1)
  assert "".join(piece.text for piece in pieces) == text
  assert [len(group) for group in groups(pieces, 1)] == [1] * len(pieces)


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=80))
def test_tokenizers_give_any_text_back(bpe, text):
  for tokenizer in (Bytes(), Bytes(eos=True), Chars.of([text]), bpe):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert "".join(tokenizer.pieces(ids)) == text
    assert not len(ids) or ids.max() < tokenizer.vocab_size


# Rows.


def test_blocks_drop_the_remainder():
  rows = rows_of(stream_of(["abcdefghij"], Bytes()), 4, "stream", eos_id=None)
  assert [Bytes().decode(row) for row in rows[:].tokens] == ["abcd", "efgh"]
  assert rows[:].loss_mask.all()
  assert rows.tokens() == 8


def test_padded_rows_hold_a_document_each_and_its_end():
  rows = rows_of(stream_of(["ab", "abcdef", ""]), 4, "pad")
  assert rows[:].tokens.tolist() == [
    [97, 98, EOS, EOS],
    [97, 98, 99, 100],
    [101, 102, EOS, EOS],
    [EOS, EOS, EOS, EOS],
  ]
  assert rows[:].loss_mask.sum(axis=1).tolist() == [3, 4, 3, 1]
  assert np.all(np.diff(rows[:].loss_mask.astype(int)) <= 0), "what counts comes first"
  assert rows.tokens() == 3 + 7 + 1
  counted = rows_of(stream_of(["ab", "abcdef", ""]), 4, "pad", "counted")
  np.testing.assert_array_equal(counted[:].tokens, rows[:].tokens)
  assert counted[:].loss_mask.all()
  assert counted.tokens() == rows.tokens()


def test_packed_rows_hold_whole_documents():
  rows = rows_of(stream_of(["ab", "c", "defg", "h", "i"]), 6, "pack")
  assert [texts_of(rows[i : i + 1]) for i in range(3)] == ["ab|c|", "defg|", "h|i|"]
  assert rows[:].tokens[1].tolist()[-1] == EOS
  assert not rows[:].loss_mask[1, -1]
  assert rows[:].segments is None


def test_documents_of_a_packed_row_that_are_told_apart_are_numbered():
  stream = stream_of(["ab", "c", "defgh", "i", "abcdefghij", "k", "", "l"])
  apart = rows_of(stream, 6, "pack", visibility="document")
  together = rows_of(stream, 6, "pack")
  rows = apart[:]
  assert [texts_of(apart[i : i + 1]) for i in range(len(apart))] == [
    "ab|c|", "defgh|", "i|", "abcdef", "ghij|", "k||l|",
  ]  # fmt: skip
  assert rows.segments.dtype == np.int32
  assert rows.segments.tolist() == [
    [0, 0, 0, 1, 1, 2],
    [0, 0, 0, 0, 0, 0],
    [0, 0, 1, 1, 1, 1],
    [0, 0, 0, 0, 0, 0],
    [0, 0, 0, 0, 0, 1],  # It goes on from the row before.
    [0, 0, 1, 2, 2, 3],  # The fill at the end of the text.
  ]
  np.testing.assert_array_equal(rows.tokens, together[:].tokens)
  np.testing.assert_array_equal(rows.loss_mask, together[:].loss_mask)
  for index in (slice(2, 5), np.array([5, 0, 4])):
    for got, want in zip(apart[index], rows, strict=True):
      np.testing.assert_array_equal(got, None if want is None else want[index])
  counted = rows_of(stream, 6, "pack", "counted", visibility="document")[:]
  assert counted.loss_mask.all()
  np.testing.assert_array_equal(counted.segments, rows.segments)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("abc", max_size=12), min_size=1, max_size=12), st.integers(1, 9))
def test_a_new_number_begins_behind_every_end_of_text_of_a_packed_row(texts, length):
  rows = rows_of(stream_of(texts), length, "pack", visibility="document")[:]
  for tokens, counts, segments in zip(rows.tokens, rows.loss_mask, rows.segments, strict=True):
    ends = np.cumsum((tokens == EOS) & counts)
    assert segments.tolist() == [0, *ends[:-1]]


@settings(max_examples=100, deadline=None)
@given(
  st.lists(st.text("abc", max_size=12), min_size=1, max_size=12),
  st.integers(1, 9),
  st.sampled_from(["pad", "pack"]),
)
def test_no_text_is_lost_or_counted_twice(texts, length, packing):
  stream = stream_of(texts)
  rows = rows_of(stream, length, packing)
  whole = rows[:]
  assert texts_of(whole) == "".join(f"{text}|" for text in texts)
  assert rows.tokens() == np.sum(whole.loss_mask) == len(stream)
  for row, counted in zip(whole.tokens, whole.loss_mask, strict=True):
    assert counted[0]
    assert not np.any(np.diff(counted.astype(int)) > 0), "what counts comes first"
    assert np.all(row[~counted] == EOS)
    if packing == "pad":
      assert np.sum(row[:-1] == EOS) == 0 or np.argmax(row == EOS) == counted.sum() - 1


def test_packing_needs_an_end_of_text():
  config = DataConfig(tokenizer="bytes:eos", length=4, packing="pad")
  with pytest.raises(ValueError, match=r"data\.packing='pad' needs .*'bytes:eos'"):
    make_rows(stream_of(["a"], Bytes()), config, None, "some")


def test_joined_rows_are_one_after_the_other():
  streams = [stream_of([text], Bytes()) for text in ("abcd", "efg")]
  parts = [rows_of(stream, 2, "stream", eos_id=None) for stream in streams]
  joined = Joined(parts, [1.0, 3.0])
  assert joined.shape == (3, 2)
  assert [Bytes().decode(row) for row in joined[:].tokens] == ["ab", "cd", "ef"]
  assert [Bytes().decode(row) for row in joined[np.array([2, 0])].tokens] == ["ef", "ab"]
  assert [Bytes().decode(row) for row in joined[1:].tokens] == ["cd", "ef"]
  assert joined[:].loss_mask.all()
  assert joined.tokens() == 6
  assert joined.characters() == 2 * 2 + 3 * 2
  assert joined.characters(np.array([1, 2])) == 2 + 3 * 2


def test_rows_that_are_judged_are_spread_and_have_their_own_characters():
  assert spread(10, 3).tolist() == [0, 4, 9]
  assert spread(3, 10).tolist() == [0, 1, 2]
  rows = rows_of(stream_of(["a", "abcdef", "ab"]), 8, "pad")
  assert [rows.tokens(np.array([i])) for i in range(3)] == [2, 7, 3]


def test_a_bound_is_over_the_characters_of_the_rows_that_are_judged():
  """Rows of a part with few characters a token must not be divided by the mean of all."""
  streams = [stream_of([text], Bytes()) for text in ("abcd", "efg")]
  parts = [rows_of(stream, 2, "stream", eos_id=None) for stream in streams]

  def bound(params, blocks, *, chars_per_block, **options):
    return Bound(paper=chars_per_block, paper_stderr=0, strict=chars_per_block, strict_stderr=0)

  estimator = types.SimpleNamespace(bound=bound)
  heldout = HeldoutBound(rows=Joined(parts, [1.0, 3.0]), estimator=estimator, entropies={})
  for numbers, characters in (([0, 1], 2.0), ([2], 6.0), ([1, 2], 4.0)):
    line = heldout.metrics(None, np.array(numbers), passes=1)
    assert line["heldout_bits_per_char_strict"] == characters


# Batches.


def test_batches_are_a_function_of_the_step_and_visit_every_row_once_an_epoch():
  rows = np.arange(24, dtype=np.int32).reshape(12, 2)
  batches = Batches([ArrayRows(rows)], batch_size=4, seed=3)
  assert batches[0].loss_mask.all()
  first, second = (
    np.concatenate([batches[step].tokens for step in steps]) for steps in ((0, 1, 2), (3, 4, 5))
  )
  for epoch in (first, second):
    assert sorted(map(tuple, epoch)) == sorted(map(tuple, rows))
  assert not np.array_equal(first, second), "the order is the same in every epoch"
  again = Batches([ArrayRows(rows)], batch_size=4, seed=3)
  np.testing.assert_array_equal(again[4].tokens, batches[4].tokens)
  other = Batches([ArrayRows(rows)], batch_size=4, seed=4)
  assert not np.array_equal(other[0].tokens, batches[0].tokens)


def test_the_global_order_does_not_depend_on_who_reads():
  rows = np.arange(40, dtype=np.int32).reshape(20, 2)
  parts = [ArrayRows(rows), ArrayRows(-rows)]
  batches = Batches(parts, batch_size=8, seed=1, weights=(1, 3))
  for processes in (1, 2, 4):
    share = 8 // processes
    for step in (0, 7):
      parts = [batches.rows(step, slice(i * share, (i + 1) * share)) for i in range(processes)]
      tokens = np.concatenate([part.tokens for part in parts])
      np.testing.assert_array_equal(tokens, batches[step].tokens)


def test_mixtures_have_their_shares_and_each_part_its_epochs():
  one, two = np.zeros((5, 1), np.int32), np.ones((20, 1), np.int32)
  one[:, 0], two[:, 0] = np.arange(5), 100 + np.arange(20)
  parts = [ArrayRows(one), ArrayRows(two)]
  batches = Batches(parts, batch_size=10, seed=0, weights=(0.3, 0.7))
  drawn = np.concatenate([batches[step].tokens for step in range(20)])[:, 0]
  assert abs(np.sum(drawn < 100) - 60) <= 1
  of_one, of_two = drawn[drawn < 100], drawn[drawn >= 100]
  for epoch in range(12):
    assert sorted(of_one[epoch * 5 : epoch * 5 + 5]) == [0, 1, 2, 3, 4]
  for epoch in range(6):
    assert sorted(of_two[epoch * 20 : epoch * 20 + 20]) == list(range(100, 120))


@pytest.mark.parametrize("weights", [(1.0,), (0.0, 1.0), (1.0, float("nan")), ("a", 1.0)], ids=str)
def test_weights_that_do_not_fit_are_refused(weights):
  with pytest.raises(ValueError, match=r"data\.weights=.* positive number for each of the 2"):
    DataConfig(files="a.txt; b.txt", weights=weights)


def test_a_mixture_of_texts_is_a_dataset(tmp_path):
  (tmp_path / "a.txt").write_text("aaaa" * 100)
  (tmp_path / "b.txt").write_text("bbbb" * 300)
  files = f"{tmp_path}/a.txt; {tmp_path}/b.txt"
  config = DataConfig(files=files, length=4, weights=(3.0, 1.0))
  mixed = load_dataset(config)
  batch = mixed.batches(64, 0)[0]
  assert np.sum(np.all(batch.tokens == 0, axis=1)) == 48
  together = load_dataset(DataConfig(files=files, length=4))
  assert together.identity == mixed.identity
  assert len(together.train_rows) == 1
  assert len(together.train_rows[0]) == 95 + 285
  assert len(together.heldout_rows) == 5 + 15


# What is given.


@pytest.mark.parametrize(
  ("process", "noise"),
  [(Absorbing(5), LogLinear()), (Uniform(5), Geometric())],
  ids=["absorbing", "uniform"],
)
def test_given_tokens_stay_clean_and_have_no_loss(process, noise):
  """The entropy of a row is a sum over positions, so a mask and its complement share it out."""
  rng = np.random.default_rng(0)
  x0 = jnp.asarray(rng.integers(0, 5, (6, 7), np.int32))
  counts = jnp.asarray(rng.random((6, 7)) < 0.6)
  scores = jnp.asarray(rng.normal(size=(6, 7, process.num_states)), jnp.float32)
  keys, t = jax.random.split(jax.random.key(0), 6), jnp.linspace(0.1, 0.9, 6)

  seen = []

  def stats_fn(x, x0, total):
    seen.append((x, x0))
    return process.stats(scores, x, x0)

  network = types.SimpleNamespace(process=process, stats_fn=lambda params, batch: stats_fn)
  estimator = TimeIntegral(network=network, noise=noise, num_draws=4)

  def loss(mask):
    batch = Batch(x0, mask)
    return denoising_score_entropy(stats_fn, batch, t, keys, process=process, noise=noise)

  def bound(mask):
    return estimator.terms(None, Batch(x0, mask), keys).strict

  loss(counts)
  for found in seen[0]:
    np.testing.assert_array_equal(found[~counts], x0[~counts])
  assert not np.array_equal(seen[0][0], x0), "nothing was corrupted"
  everything = jnp.ones_like(counts)
  for measure in (loss, bound):
    np.testing.assert_allclose(measure(counts) + measure(~counts), measure(everything), rtol=2e-5)
    np.testing.assert_array_equal(measure(~everything), 0.0)
    assert np.sum(measure(counts)) > 0
