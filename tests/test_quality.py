"""Statistics of samples against counts by hand, the verdict on text, loops and noise, the judge."""

import itertools
import math

import jax
import numpy as np
import pytest
from stories import BOS, load_stories

from sedd_jax.data import Bytes, Chars, embedded
from sedd_jax.evaluation.judge import Judge, retokenized
from sedd_jax.evaluation.quality import flat, quality, statistics, verdict
from sedd_jax.models.gpt2 import GPT2, GPT2Config

LENGTH = 128


@pytest.fixture(scope="module")
def text():
  """Rows of real text, int[N, 128]."""
  pieces = (piece.text for piece in embedded().pieces("train"))
  tokens = Bytes().encode("".join(itertools.islice(pieces, 60)))[: 400 * LENGTH]
  return tokens[: len(tokens) // LENGTH * LENGTH].reshape(-1, LENGTH)


def by_hand(samples, n):
  """All n-grams of each sample, as tuples."""
  return [[tuple(row[i : i + n]) for i in range(len(row) - n + 1)] for row in samples]


def test_statistics_are_those_counted_by_hand():
  rng = np.random.default_rng(0)
  samples = [rng.integers(0, 3, size) for size in (12, 20, 9, 30, 4, 2)]
  found = quality(samples)
  everything = np.concatenate(samples)
  shares = np.bincount(everything) / len(everything)
  assert found.unigram_entropy == pytest.approx(-(shares * np.log(shares)).sum())
  for n in (1, 2, 3, 4):
    grams = [gram for row in by_hand(samples, n) for gram in row]
    assert found.distinct[n - 1] == len(set(grams)) / len(grams)
  each = statistics(samples)
  grams8 = by_hand(samples, 8)
  for i, row in enumerate(samples):
    shares = np.unique(row, return_counts=True)[1] / len(row)
    assert each["token_entropy"][i] == pytest.approx(-(shares * np.log(shares)).sum())
    covered, seen = set(), set()
    for at, gram in enumerate(by_hand([row], 4)[0]):
      covered |= set(range(at, at + 4)) if gram in seen else set()
      seen.add(gram)
    assert each["repetition"][i] == len(covered) / len(row)
    others = {gram for j, other in enumerate(grams8) if j != i for gram in other}
    mine = grams8[i]
    assert each["novelty"][i] == (np.mean([g not in others for g in mine]) if mine else 1.0)
  assert found.token_entropy == pytest.approx(each["token_entropy"].mean())
  assert found.token_entropy_stderr == pytest.approx(each["token_entropy"].std(ddof=1) / 6**0.5)
  assert (found.samples, found.tokens) == (6, 77)


def test_ids_matter_only_by_being_the_same():
  rng = np.random.default_rng(1)
  samples = rng.integers(0, 20, (8, 40))
  renamed = rng.choice(2**31 - 1, 20, replace=False)[samples]
  assert flat(quality(samples)) == pytest.approx(flat(quality(renamed)), rel=1e-12)


def test_extremes():
  loop = quality(np.full((3, 50), 7))
  assert (loop.unigram_entropy, loop.token_entropy, loop.novelty) == (0, 0, 0)
  assert loop.repetition == pytest.approx(49 / 50), "the first token stands alone"
  assert loop.distinct == (1 / 150, 1 / 147, 1 / 144, 1 / 141)
  new = quality(np.arange(200).reshape(4, 50))
  assert new.token_entropy == pytest.approx(math.log(50))
  assert new.unigram_entropy == pytest.approx(math.log(200))
  assert (new.repetition, new.novelty, new.distinct) == (0, 1, (1, 1, 1, 1))
  single = flat(quality(np.arange(50)[None]))
  assert "repetition_stderr" not in single
  assert single["distinct_4"] == 1


def test_real_text_passes(text):
  found = verdict(text[::2], text[1::2])
  assert found.word == "like text"
  assert not found.reasons
  for r in found.ranges:
    assert max(r.below, r.above) < 0.06
    assert r.low <= r.reference_mean <= r.high


def test_reasons_say_what_lies_outside_and_where(text):
  """The mean of a statistic may lie inside: what counts is the share of samples beyond an end."""
  held = text[::2].copy()
  held[: len(held) // 3] = held[0, 0]
  found = verdict(held, text[1::2])
  reasons = dict(reason.split(" ", 1) for reason in found.reasons)
  for r in found.ranges:
    if r.side:
      share, end = (r.below, r.low) if r.side == "low" else (r.above, r.high)
      assert f"{share:.0%} of the samples are" in reasons[r.name]
      assert f"{end:.4g}, the end of the range" in reasons[r.name]
  assert len(reasons) >= 1


def test_what_is_no_text_is_named(text):
  rng = np.random.default_rng(0)
  reference, held = text[1::2], text[::2]
  loops = np.repeat(rng.integers(97, 123, (100, 1)), LENGTH, axis=1)
  phrase = np.tile(held[:100, :8], 16)
  few = np.repeat(held[3:4], 8, axis=0)
  noise = rng.integers(0, 256, (100, LENGTH))
  copies = np.repeat(held[3:4], 100, axis=0)
  mixed = np.concatenate([loops[:35], noise[:65]])

  def sides(samples):
    found = verdict(samples, reference)
    assert found.word == ("poor" if samples is noise else "degenerate")
    assert len(found.reasons) >= 1
    return {r.name: r.side for r in found.ranges if r.side}

  assert sides(loops)["token_entropy"] == "low"
  assert sides(phrase)["repetition"] == "high"
  assert sides(noise)["token_entropy"] == "high"
  assert sides(copies) == {"novelty": "low"}, "each copy alone is good text"
  assert sides(few) == {"novelty": "low"}
  entropy = verdict(mixed, reference).ranges[0]
  assert entropy.low < entropy.mean < entropy.high
  assert sides(mixed)["token_entropy"] == "high", "noise and loops do not make up for each other"


def test_text_that_repeats_nothing_is_no_worse_for_that(text):
  """The reference repeats itself and phrases of its other rows; the samples do not."""
  theirs = text[1::2].copy()
  theirs[:, :60] = theirs[0, :60]
  theirs[:, 60:90] = theirs[:, 90:120]
  found = verdict(text[::2], theirs)
  ranges = {r.name: r for r in found.ranges}
  assert ranges["novelty"].above > 0.5
  assert ranges["repetition"].below > 0.5
  assert found.word == "like text"


def test_the_verdict_with_a_judge(text):
  """Nats under a judge: below those of text is degenerate, above is poor."""
  rng = np.random.default_rng(0)
  ours, theirs = text[::2], text[1::2]
  reference = rng.normal(1.5, 0.1, len(theirs))
  for mean, word in ((1.5, "like text"), (1.0, "degenerate"), (2.5, "poor")):
    nats = rng.normal(mean, 0.1, len(ours))
    assert verdict(ours, theirs, nats=nats, reference_nats=reference).word == word
  with pytest.raises(ValueError, match="give both or none"):
    verdict(ours, theirs, nats=np.ones(len(ours)))
  with pytest.raises(ValueError, match="reference_nats has shape"):
    verdict(ours, theirs, nats=np.ones(len(ours)), reference_nats=np.ones(3))


def test_samples_that_are_refused(text):
  with pytest.raises(ValueError, match="there are no samples"):
    quality([])
  with pytest.raises(ValueError, match="sample 1 must be token ids"):
    quality([np.arange(9), np.zeros(0, int)])
  with pytest.raises(ValueError, match="sample 0 must be token ids"):
    quality(np.ones((2, 9)))
  with pytest.raises(ValueError, match="4 tokens at least"):
    quality(np.ones((2, 3), int))
  with pytest.raises(ValueError, match="64 to 128 tokens: cut all to one length"):
    verdict(text[:, :64], text)
  with pytest.raises(ValueError, match="49 rows of reference text"):
    verdict(text, text[:49])


# The judge.


@pytest.fixture(scope="module")
def tiny():
  """A GPT-2 of random weights that reads 16 tokens."""
  network = GPT2(GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2))
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: rng.normal(0, 0.4, x.shape).astype(np.float32), network.shapes())
  return network, params


def test_texts_of_any_length_and_batch_are_judged_alike(tiny):
  network, params = tiny
  rng = np.random.default_rng(1)
  texts = [rng.integers(0, 50, size) for size in (16, 3, 1, 3, 16, 16, 1)]
  found = Judge(network, params, batch_size=3).nats(texts)
  np.testing.assert_array_equal(found.counts, [15, 2, 0, 2, 15, 15, 0])
  log_prob, hidden = jax.jit(network.log_prob), jax.jit(network.hidden)
  one_by_one = [-float(log_prob(params, row[None])[0].sum()) for row in texts]
  np.testing.assert_allclose(found.sums, one_by_one, rtol=1e-5, atol=1e-5)
  features = Judge(network, params, batch_size=2).features(texts)
  states = [hidden(params, row[None])[0, -1] for row in texts]
  np.testing.assert_allclose(features, states, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scores_first", [False, True])
def test_long_texts_are_cut_into_windows(tiny, scores_first):
  """Every token is scored once, but for the first where it has no law."""
  network, params = tiny
  log_prob = jax.jit(network.log_prob)

  class Scorer:
    vocab_size, longest = 50, 16

    def __init__(self):
      self.scores_first, self.hidden = scores_first, network.hidden

    def log_prob(self, params, tokens):
      return log_prob(params, tokens).at[:, 0].set(-1.0 if scores_first else 0.0)

  text = np.random.default_rng(2).integers(0, 50, 40)
  judge = Judge(Scorer(), params)
  found = judge.nats([text, text[:16]])
  starts = (0, 16, 32) if scores_first else (0, 15, 30)
  windows = [text[i : i + 16][None] for i in starts]
  want = -sum(float(Scorer().log_prob(params, window).sum()) for window in windows)
  assert found.sums[0] == pytest.approx(want, rel=1e-5)
  np.testing.assert_array_equal(found.counts, [40, 16] if scores_first else [39, 15])
  np.testing.assert_allclose(*judge.features([text, text[:16]]), rtol=1e-6)


def test_perplexities_both_ways():
  from sedd_jax.evaluation.judge import Nats

  rng = np.random.default_rng(0)
  counts = rng.integers(50, 100, 400)
  rates = rng.normal(3.0, 0.2, 400)
  found = Nats(sums=rates * counts, counts=counts)
  pooled, stderr = found.perplexity()
  each, each_stderr = found.mean_sequence_perplexity()
  assert pooled == pytest.approx(np.exp((rates * counts).sum() / counts.sum()))
  assert each == pytest.approx(np.exp(rates).mean())
  assert each > pooled
  # By resampling the texts.
  drawn = [rng.integers(0, 400, 400) for _ in range(2000)]
  again = [Nats(sums=found.sums[i], counts=counts[i]).perplexity()[0] for i in drawn]
  assert stderr == pytest.approx(np.std(again), rel=0.1)
  assert each_stderr == pytest.approx(np.std([np.exp(rates[i]).mean() for i in drawn]), rel=0.1)


def test_texts_that_are_refused(tiny):
  judge = Judge(*tiny)
  with pytest.raises(ValueError, match="there are no texts"):
    judge.nats([])
  with pytest.raises(ValueError, match="text 1 must be token ids"):
    judge.nats([np.arange(4), np.ones(3)])
  with pytest.raises(ValueError, match=r"the judge knows \[0, 50\): has it another tokenizer"):
    judge.features(np.full((2, 5), 50))
  with pytest.raises(ValueError, match="no text has a token to score"):
    judge.nats(np.zeros((3, 1), int))
  with pytest.raises(ValueError, match="batch_size=0"):
    Judge(*tiny, batch_size=0)


def test_retokenized_texts_are_the_same_texts():
  source, target = Chars("abc \u00e9"), Bytes()
  texts = [source.encode("a c\u00e9"), source.encode("bb")]
  found = retokenized(texts, source, target)
  assert [target.decode(row) for row in found] == ["a c\u00e9", "bb"]
  same = retokenized(texts, source, Chars("abc \u00e9"))
  np.testing.assert_array_equal(same[0], texts[0])
  with pytest.raises(ValueError, match="text 0 is empty"):
    retokenized([np.zeros(0, int)], source, target)


# A real model: its own samples are what it expects.


@pytest.fixture(scope="module")
def stories(request):
  folder = request.config.rootpath.parent / "shared" / "data" / "stories260K"
  if not folder.exists():
    pytest.skip("../shared/data/stories260K is not here: it is not part of the package")
  network, params, tokenizer = load_stories(folder)
  tokens, log_likelihood = network.sample(params, 128, 64)
  return network, params, tokenizer, tokens, log_likelihood


@pytest.mark.slow
def test_a_judge_of_its_own_samples_finds_their_likelihood(stories):
  """numpy draws them in float64, jax judges them in float32."""
  network, params, _, tokens, log_likelihood = stories
  begun = np.insert(tokens, 0, BOS, axis=1)
  judge = Judge(network, params, batch_size=64)
  found = judge.nats(begun)
  np.testing.assert_array_equal(found.counts, 64)
  np.testing.assert_allclose(found.sums, -log_likelihood, rtol=0, atol=2e-3)
  mean, stderr = found.perplexity()
  assert mean == pytest.approx(math.exp(-log_likelihood.sum() / tokens.size), rel=1e-5)
  assert 2.5 < mean < 5
  assert stderr < 0.2
  assert network.vocab_size == 512


@pytest.mark.slow
def test_the_stories_are_stories(stories):
  _, _, tokenizer, tokens, _ = stories
  texts = [tokenizer.decode(row) for row in tokens]
  assert sum(text.startswith(("Once upon a time", "One day", "Lily")) for text in texts) > 96
  line = "Once upon a time, there was a little dog named Spot."
  encoded = tokenizer.encode(line)
  assert tokenizer.decode(encoded) == line
  assert len(encoded) < len(line) / 2, "pieces were joined"


def test_one_token_said_again_has_the_best_perplexity_and_the_worst_verdict(stories):
  """Only the statistics of its tokens tell it from text."""
  network, params, tokenizer, tokens, _ = stories
  rng = np.random.default_rng(0)
  judge = Judge(network, params, batch_size=64)
  reference, held = tokens[:64], tokens[64:]
  shuffled = rng.permuted(held, axis=1)
  (again,) = (i for i in range(512) if tokenizer.decode([i]) == "ittle")
  loops = np.full_like(held, again)
  nats = {
    name: judge.nats(rows)
    for name, rows in (("text", held), ("words", shuffled), ("loops", loops), ("ref", reference))
  }
  perplexity = {name: found.perplexity()[0] for name, found in nats.items()}
  assert perplexity["loops"] < perplexity["text"] < perplexity["words"] / 5

  def word(rows, name):
    options = {"nats": nats[name].per_token, "reference_nats": nats["ref"].per_token}
    return verdict(rows, reference, **options).word

  assert word(held, "text") == "like text"
  assert word(loops, "loops") == "degenerate"
  assert word(shuffled, "words") in ("poor", "degenerate")
