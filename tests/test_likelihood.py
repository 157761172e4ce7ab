"""Likelihood of test sets: the numbers, on any batch and device, and through kills."""

import dataclasses
import json
import math
import re

import jax
import numpy as np
import pytest
from support.command import sedd
from support.networks import random_params, small_network

import sedd_jax
from sedd_jax.batch import Batch
from sedd_jax.data import Bytes
from sedd_jax.diffusion import MIN_TIME, Absorbing, LogLinear, Terms, Uniform
from sedd_jax.evaluation.bounds import Draws
from sedd_jax.evaluation.likelihood import estimate_rows, make_scorer, read_tasks, summary
from sedd_jax.evaluation.rowfile import Estimates, RowFile
from sedd_jax.evaluation.suites import SEDD, STRICT, Golden
from sedd_jax.interop.export import export
from sedd_jax.models.gpt2 import GPT2, GPT2Config

LENGTH = 24
TOKENIZER = Bytes(eos=True)
NOISE = LogLinear()


def network_of(process=Absorbing(257), parameterization="conditional"):
  network = small_network(process, width=16, blocks=1)
  return dataclasses.replace(network, parameterization=parameterization)


def test_gpt2_is_scored_on_any_devices_but_for_the_first_token():
  network = GPT2(GPT2Config(vocab_size=11, n_positions=8, n_embd=4, n_layer=1, n_head=2))
  keys = iter(jax.random.split(jax.random.key(0), 99))
  params = jax.tree.map(lambda leaf: jax.random.normal(next(keys), leaf.shape), network.shapes())
  rows = np.random.default_rng(0).integers(11, size=(5, 8))
  draws = Draws(estimator="exact", num_times=2)
  scorer = make_scorer(network, None, params, draws, batch_size=3, devices=jax.devices()[:2])
  found = scorer.estimator.terms(scorer.params, Batch.of(rows)).strict
  logits = np.asarray(network.logits(params, rows), np.float64)[:, :-1]
  law = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  nats = -np.take_along_axis(law, rows[:, 1:, None], axis=-1).sum((1, 2))
  np.testing.assert_allclose(found, np.stack([nats, nats]), rtol=1e-5)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
  """23 rows of 24 tokens, but for the last."""
  folder = tmp_path_factory.mktemp("texts")
  passages = [f"passage {i} says: {'and so on, ' * (i % 3)}{i * i}" for i in range(17)]
  lines = [json.dumps({"text": passage}) for passage in passages]
  (folder / "lambada.jsonl").write_text("\n".join(lines))
  return folder / "lambada.jsonl"


@pytest.fixture(scope="module")
def task(text):
  return read_tasks(STRICT, ["lambada"], {"lambada": str(text)}, TOKENIZER, LENGTH)[0]


def scored(network, params, task, draws, *, batch_size=8, devices=1, protocol=STRICT, passes=1):
  scorer = make_scorer(
    network, NOISE, params, draws, batch_size=batch_size, devices=jax.devices()[:devices]
  )
  found = estimate_rows(scorer, task, seed=0, passes=passes)
  return summary(scorer, protocol, task, found)


# Numbers.


def test_figures_are_those_of_the_terms(task):
  """By hand: two rows of estimates, the sums over scored tokens."""
  rows = Batch.of(np.zeros((2, 4), np.int32))
  chunks = dataclasses.replace(task.chunks, rows=rows, scored=7, characters=5)
  low, main = np.array([[1.0, 0.0], [3.0, 0.0]]), np.array([[10.0, 6.0], [12.0, 4.0]])
  found = Estimates(terms=Terms(low, main, 0 * main), seconds=1.5)  # pyright: ignore[reportArgumentType]
  draws = Draws(num_times=2)
  scorer = make_scorer(network_of(), NOISE, {}, draws, batch_size=2, devices=jax.devices()[:1])
  task = dataclasses.replace(task, chunks=chunks)
  report = summary(scorer, STRICT, task, found)
  nats, error = (13.0 + 5.0) / 7, math.sqrt(4.0 + 1.0) / 7  # Strict: 11, 15 and 6, 4.
  assert report["nats_per_token"] == pytest.approx(nats)
  assert report["nats_per_token_stderr"] == pytest.approx(error)
  assert report["perplexity"] == pytest.approx(math.exp(nats))
  assert report["perplexity_stderr"] == pytest.approx(math.exp(nats) * error)
  assert report["bits_per_char"] == pytest.approx(nats * 7 / 5 / math.log(2))
  assert report["bits_per_char_stderr"] == pytest.approx(error * 7 / 5 / math.log(2))
  published = report["figures"]["published"]["nats_per_token"]
  assert published == pytest.approx((11.0 + 5.0) / 7 / (1 - MIN_TIME))
  assert summary(scorer, SEDD, task, found)["nats_per_token"] == published


DIFFUSION = ("times", "lambda", "orders")


@pytest.mark.parametrize("estimator", ["times", "orders"])
def test_a_network_that_knows_nothing_has_the_perplexity_of_the_vocabulary(task, estimator):
  """At its zero start every token costs log V when it is scored, and given ones cost nothing."""
  network = network_of()
  params = jax.jit(network.init)(jax.random.key(0))
  draws = Draws(estimator=estimator, num_times=8)
  report = scored(network, params, task, draws)
  assert abs(report["perplexity"] - 257) < 4 * report["perplexity_stderr"] + 1e-2
  if estimator == "orders":
    assert report["perplexity_stderr"] < 1e-3, "any number of masked tokens gives the same"
  else:
    assert 1 < report["perplexity_stderr"] < 150
  assert not task.chunks.rows.loss_mask[-1].all()
  assert task.chunks.scored == task.chunks.found


@pytest.mark.parametrize(
  "process",
  [Absorbing(257), pytest.param(Uniform(257), marks=pytest.mark.slow)],
  ids=["absorbing", "uniform"],
)
def test_a_number_is_the_same_on_any_batch_and_devices(task, process):
  network = network_of(process, "conditional" if process.mask_id else "score")
  params = random_params(network)
  draws = Draws(num_times=2)
  sizes = [(8, 1), (1, 1), (3, 4)] if process.mask_id else [(8, 1), (8, 4)]
  want, *others = (
    scored(network, params, task, draws, batch_size=size, devices=devices)
    for size, devices in sizes
  )
  for got in others:
    for figure in ("published", "strict"):
      for name, value in want["figures"][figure].items():
        assert got["figures"][figure][name] == pytest.approx(value, rel=1e-6), name


@pytest.mark.slow
def test_estimators_agree_on_a_network_without_time(task):
  network = network_of()
  network = dataclasses.replace(
    network, config=dataclasses.replace(network.config, time_input=False)
  )
  params = random_params(network, scale=0.2)
  draws = [Draws(estimator=e, num_times=16) for e in DIFFUSION]
  found = [scored(network, params, task, one, passes=4) for one in draws]
  for one in found:
    error = math.hypot(one["nats_per_token_stderr"], found[-1]["nats_per_token_stderr"])
    assert abs(one["nats_per_token"] - found[-1]["nats_per_token"]) < 4 * error
  errors = {e: one["nats_per_token_stderr"] for e, one in zip(DIFFUSION, found, strict=True)}
  assert errors["orders"] < 0.5 * min(errors["times"], errors["lambda"])


@pytest.mark.parametrize(
  ("process", "parameterization"), [(Absorbing(257), "scaled"), (Uniform(257), "score")]
)
def test_orders_are_refused_where_scores_are_no_probabilities(process, parameterization):
  network = network_of(process, parameterization)
  for estimator in ("lambda", "orders"):
    with pytest.raises(ValueError, match=f"{estimator!r} is for absorbing .*{parameterization!r}"):
      make_scorer(
        network,
        NOISE,
        {},
        Draws(estimator=estimator, num_times=2),
        batch_size=1,
        devices=jax.devices()[:1],
      )


# The command.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A random model on disk."""
  network = network_of()
  model = sedd_jax.Model(
    network=network,
    params=random_params(network),
    noise=NOISE,
    length=LENGTH,
    tokenizer=TOKENIZER,
    info={"source": "somewhere", "origin": "toy", "step": 7, "corpus": {"name": "none"}},
  )
  return export(model, tmp_path_factory.mktemp("models") / "tiny")


def evaluate(folder, text, *arguments):
  return sedd(
    "evaluate", f"--checkpoint={folder}", "--suite=zero-shot", "--protocol=strict",
    f"--data=lambada={text}", "--num_times=2", "--batch_size=8", *arguments,
  )  # fmt: skip


def numbers(report):
  return [{k: v for k, v in one.items() if k != "seconds"} for one in report["results"]]


@pytest.fixture(scope="module")
def whole(folder, text, tmp_path_factory):
  """The folder of an evaluation, and what it printed."""
  out = tmp_path_factory.mktemp("evaluations") / "whole"
  done = evaluate(folder, text, f"--out={out}", "--json")
  assert done.returncode == 0, done.stderr
  return out, json.loads(done.stdout)


def test_the_folder_holds_settings_estimates_and_report(whole, folder, text, task):
  out, report = whole
  assert {path.name for path in out.iterdir()} == {
    "settings.json", "lambada.jsonl", "evaluation.json", "lock",
  }  # fmt: skip
  assert json.loads((out / "evaluation.json").read_text()) == report
  assert report["checkpoint"] == str(folder)
  assert report["step"] == 7
  assert report["versions"]["jax"] == jax.__version__
  assert report["not_evaluated"] == ["wikitext", "ptb", "lm1b", "ag_news", "pubmed", "arxiv"]
  (found,) = report["results"]
  assert (found["chunks"], found["tokens"]) == (len(task.chunks.rows.tokens), task.chunks.scored)
  assert (found["sha256"], found["golden"]) == (task.chunks.sha256, None)
  assert found["source"] == str(text)
  header, *lines = map(json.loads, (out / "lambada.jsonl").read_text().splitlines())
  assert header["sha256"] == task.chunks.sha256
  strict = [np.mean([line[name] for name in ("low", "main", "high")], axis=0) * 3 for line in lines]
  nats = np.mean(strict, axis=1).sum() / task.chunks.scored
  assert found["nats_per_token"] == pytest.approx(nats, rel=1e-9)


def test_a_table_is_printed_and_a_whole_set_not_done_again(whole, folder, text, monkeypatch):
  out, report = whole
  monkeypatch.setattr("sedd_jax.evaluation.bounds.BoundEstimator.terms", None)
  done = evaluate(folder, text, f"--out={out}")
  assert done.returncode == 0, done.stderr
  (found,) = report["results"]
  assert f"{found['perplexity']:.3f} ± {found['perplexity_stderr']:.3f}" in done.stdout
  assert "not verified here" in done.stdout
  assert "not evaluated: wikitext, ptb" in done.stdout


def test_a_killed_evaluation_goes_on_where_it_stopped(whole, folder, text, tmp_path, monkeypatch):
  want, append, batches = whole[1], RowFile.append, []

  def dies_in_the_third(self, estimates):
    if len(batches) == 2:
      with (out / "lambada.jsonl.part").open("a") as file:
        file.write('{"row": 16, "lo')  # What a kill leaves of a line.
      raise KeyboardInterrupt
    append(self, estimates)
    batches.append(len(estimates))

  monkeypatch.setattr(RowFile, "append", dies_in_the_third)
  out = tmp_path / "out"
  assert evaluate(folder, text, f"--out={out}").returncode == 130
  assert {path.name for path in out.iterdir()} == {"settings.json", "lambada.jsonl.part", "lock"}

  def counts(self, estimates):
    append(self, estimates)
    batches.append(len(estimates))

  monkeypatch.setattr(RowFile, "append", counts)
  done = evaluate(folder, text, f"--out={out}", "--json")
  assert done.returncode == 0, done.stderr
  assert sum(batches) == want["results"][0]["chunks"], "no row twice"
  assert numbers(json.loads(done.stdout)) == numbers(want)
  lines = [(path / "lambada.jsonl").read_text().splitlines() for path in (out, whole[0])]
  rows = [[json.loads(line) | {"seconds": 0} for line in one] for one in lines]
  assert rows[0] == rows[1]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (("--seed=1",), r"other settings:\n  seed: 0 -> 1\n"),
    (("--num_times=4", "--estimator=orders"), "'times' -> 'orders'\n  num_times: 2 -> 4"),
    (("--data=ptb=x",), "sets: \\['lambada'\\] -> \\['lambada', 'ptb'\\]"),
  ],
)  # fmt: skip
def test_other_settings_do_not_go_on_in_a_folder(whole, folder, text, arguments, message):
  done = evaluate(folder, text, f"--out={whole[0]}", *arguments)
  assert done.returncode == 2
  assert re.search(message, done.stderr), done.stderr


def test_a_folder_of_something_else_is_refused(folder, text, tmp_path):
  (tmp_path / "thesis.tex").write_text("precious")
  done = evaluate(folder, text, f"--out={tmp_path}")
  assert done.returncode == 2
  assert "is not empty and holds no evaluation" in done.stderr
  assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_other_text_or_damage_is_named(whole, folder, text, tmp_path):
  out = tmp_path / "out"
  out.mkdir()
  for name in ("settings.json", "lambada.jsonl", "evaluation.json"):
    (out / name).write_bytes((whole[0] / name).read_bytes())
  other = tmp_path / "other.jsonl"
  other.write_text(text.read_text().replace("says", "told"))
  done = evaluate(folder, other, f"--out={out}")
  assert done.returncode == 2
  assert "holds estimates of something else:\n  sha256: " in done.stderr
  (out / "evaluation.json").unlink()
  good = (out / "lambada.jsonl").read_text()
  for damaged, message in (
    (good.replace('"row": 3', '"ro'), "is no file of estimates"),
    (good.replace('"row": 3', '"row": 4'), "its rows are not 0, 1, 2"),
    (good.replace('"low"', '"high"', 1), "is damaged: 'low'"),
    ("".join(good.splitlines(keepends=True)[:-1]), "and the set"),
    ("", "holds estimates of something else"),
  ):
    (out / "lambada.jsonl").write_text(damaged)
    done = evaluate(folder, text, f"--out={out}")
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (("--suite=zero-shot",), "--protocol is missing: --suite=zero-shot has sedd, mdlm, strict"),
    (("--suite=all",), "--suite='all' must be one of zero-shot"),
    (("--suite=zero-shot", "--protocol=duo"), "--protocol 'duo' is not known"),
    (("--protocol=sedd", "--passes=2"), "--protocol, --passes: only with --suite"),
    (("--suite=zero-shot", "--protocol=strict", "--sets=text8"), "has no set 'text8': it has lam"),
    (("--suite=zero-shot", "--protocol=strict", "--data=lambada"), "must be SET=SOURCE"),
    (
      ("--suite=zero-shot", "--protocol=strict", "--sets=ptb", "--data=lambada=x"),
      "--data names lambada, which --sets=ptb leaves out",
    ),
    (
      ("--suite=zero-shot", "--protocol=strict", "--data=lambada=nowhere.jsonl", "--data=ptb=no"),
      "2 of 2 sets of protocol strict cannot be evaluated",
    ),
    (("--suite=zero-shot", "--protocol=strict", "--num_times=3"), "--num_times=3 must be even"),
    (("--suite=zero-shot", "--protocol=strict", "--passes=0"), "--passes=0 must be at least 1"),
  ],
)
def test_what_makes_no_sense_is_refused(folder, arguments, message):
  done = sedd("evaluate", f"--checkpoint={folder}", *arguments)
  assert done.returncode == 2
  assert message in done.stderr
  assert "Traceback" not in done.stderr


def test_text_that_cannot_be_read_is_named_with_what_would_help(folder, tmp_path):
  (tmp_path / "short.jsonl").write_text('{"text": "short"}\n')
  done = sedd(
    "evaluate", f"--checkpoint={folder}", "--suite=zero-shot", "--protocol=sedd",
    f"--data=lambada={tmp_path / 'short.jsonl'}", "--data=ptb=nowhere.txt",
  )  # fmt: skip
  assert done.returncode == 2
  assert "7 tokens in 1 documents make no chunk: 24 are needed" in done.stderr
  assert "no file matches 'nowhere.txt'" in done.stderr
  assert "--data=SET=SOURCE" in done.stderr


def test_a_model_without_a_tokenizer_needs_one_that_it_knows(folder, text, monkeypatch):
  load = sedd_jax.load

  def without(*arguments, **options):
    return dataclasses.replace(load(*arguments, **options), tokenizer=None)

  monkeypatch.setattr("sedd_jax.studies.suites.load", without)
  done = evaluate(folder, text)
  assert done.returncode == 2
  assert "--tokenizer=gpt2" in done.stderr


def test_differing_tokens_are_said_loudly(folder, text, monkeypatch):
  golden = Golden(sha256="0" * 64, rows=23, length=LENGTH)
  monkeypatch.setattr("sedd_jax.evaluation.likelihood.golden_of", lambda *_: golden)
  done = evaluate(folder, text)
  assert done.returncode == 0, done.stderr
  assert "TOKENS DIFFER FROM THE GOLDEN ONES" in done.stdout
  assert "WARNING: the tokens of lambada are not those" in done.stdout
