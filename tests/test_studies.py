"""Files of samples, frontiers and infilling, graded by a judge and by counting."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest
from support.command import sedd
from support.experiments import TINY

import sedd_jax
from sedd_jax.data import DataConfig, load_dataset
from sedd_jax.studies import frontier, infilling
from sedd_jax.studies.frontier import FrontierConfig
from sedd_jax.studies.setup import EvaluationSetup, common_length, heldout_rows
from sedd_jax.studies.study import in_folder
from sedd_jax.training.loop import train

SMALL = dataclasses.replace(
  TINY, report=dataclasses.replace(TINY.report, evaluate_every=0, preview_every=0, samples=1)
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """Two tiny runs: a diffusion model, and an autoregressive one that also judges."""
  root = tmp_path_factory.mktemp("runs")
  assert train(dataclasses.replace(SMALL, label="masked"), root / "sedd") == 0
  assert train(dataclasses.replace(SMALL, objective="autoregressive"), root / "ar") == 0
  return root


def write_samples(file, texts):
  file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
  return file


@pytest.fixture(scope="module")
def real(runs):
  """Held-out texts."""
  model = sedd_jax.load(runs / "ar")
  return model.decode(heldout_rows(model, "ar")[5::7][:120])


def test_one_token_repeated_is_bad_though_its_perplexity_is_low(runs, real, tmp_path):
  """Under a judge that likes repetition most: its law of a token is that of the ones before."""
  files = [
    write_samples(tmp_path / "repeated.jsonl", ["e" * 32] * 60),
    write_samples(tmp_path / "real.jsonl", real),
  ]
  done = sedd("grade", f"--samples={files[0]},{files[1]}", f"--judge={runs / 'ar'}", "--json")
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  assert found["kind"] == "quality"
  rows = {row["label"]: row for row in found["rows"]}
  repeated, text = rows["repeated"], rows["real"]
  assert repeated["perplexity"] < 1.2 * text["perplexity"]
  assert repeated["verdict"] == "degenerate"
  assert "token_entropy low" in repeated["reasons"]
  assert "repetition high" in repeated["reasons"]
  assert repeated["token_entropy"] == 0.0
  assert repeated["mauve"] < 0.5 * text["mauve"]
  assert text["verdict"] == rows["held-out text"]["verdict"] == "like text"


def test_a_table_says_perplexity_with_entropy_and_why_samples_are_bad(runs, real, tmp_path):
  file = write_samples(tmp_path / "samples.jsonl", ["abab" * 8, "cdcd" * 8] * 20)
  out = tmp_path / "graded"
  arguments = ["grade", file, f"--judge={runs / 'ar'}", f"--out={out}"]
  done = sedd(*arguments)
  assert done.returncode == 0, done.stderr
  assert "perplexity" in done.stdout
  assert "token entropy" in done.stdout
  assert "degenerate" in done.stdout
  assert "repetition high" in done.stdout
  report = json.loads((out / "evaluation.json").read_text())
  assert report["settings"]["judge"] == str(runs / "ar")
  again = sedd(*arguments, "--json")
  assert json.loads(again.stdout) == report
  other = sedd(*arguments, "--length=20")
  assert other.returncode == 2
  assert "length: None -> 20" in other.stderr
  assert "mauve" not in report["rows"][1], "of 40 texts it says nothing"
  assert "mauve" in report["rows"][0]
  write_samples(file, ["abab" * 8])
  assert sedd(*arguments[:3]).returncode == 0, "one sample is graded too"
  changed = sedd(*arguments)
  assert changed.returncode == 2
  assert "samples: " in changed.stderr


def test_samples_that_cannot_be_judged_are_refused_by_name(runs, tmp_path):
  judge = f"--judge={runs / 'ar'}"
  short = write_samples(tmp_path / "short.jsonl", ["The statement is executed here."[:20], "a"])
  no_text = tmp_path / "tokens.jsonl"
  no_text.write_text('{"tokens": [1]}\n')
  for arguments, message in (
    ([f"--samples={short}", judge], "--length=16 would leave out 1 of 2"),
    ([f"--samples={no_text}", judge], "line 1 must be an object with a text"),
    ([f"--samples={tmp_path / 'none.jsonl'}", judge], "there is no file"),
    ([f"--samples={short}"], "--judge is missing"),
    ([f"--samples={short}", f"--judge={runs / 'sedd'}"], "must be autoregressive"),
    ([f"--samples={short}", judge, "--suite=zero-shot"], "one at a time"),
    ([f"--samples={short}", judge, "--num_times=4"], "--num_times cannot be combined with --samp"),
    (["--frontier", judge], "--frontier needs --checkpoint and --baseline and --out"),
    (["--frontier", judge, "--suite=zero-shot", "--batch_size=0"], "--batch_size=0 must be at"),
    ([f"--checkpoint={runs / 'ar'}", judge], "--judge: of sedd grade, sedd frontier"),
    ([f"--checkpoint={runs / 'ar'}", "--passes=2"], "--passes: only with --suite"),
  ):
    refused = sedd("evaluate", *arguments)
    assert refused.returncode == 2
    assert message in refused.stderr
  for arguments, message in (
    (["grade", short], "--judge is missing; for example"),
    (["frontier", judge, "--steps=0,x"], "--steps=0,x: must be positive numbers"),
    (["infilling", judge], "--checkpoint and --baseline and --out are missing"),
  ):
    refused = sedd(*arguments)
    assert refused.returncode == 2
    assert message in refused.stderr


def test_a_frontier_is_sampled_graded_and_gone_on_with(runs, tmp_path, monkeypatch):
  out = tmp_path / "frontier"
  arguments = [
    "frontier", f"--checkpoint={runs / 'sedd'}", f"--baseline={runs / 'ar'}",
    f"--judge={runs / 'ar'}", "--steps=2,4", "--temperatures=0.5,1", "--num=24",
    "--batch_size=12", "--length=20", f"--out={out}",
  ]  # fmt: skip
  write = frontier.write_samples
  made = []

  def counted(model, request, path, *, batch):
    made.append(path)
    write(model, request, path, batch=batch)

  def killed(*arguments, batch):
    if len(made) == 2:
      raise KeyboardInterrupt
    counted(*arguments, batch=batch)

  monkeypatch.setattr(frontier, "write_samples", killed)
  assert sedd(*arguments).returncode == 130
  assert not (out / "evaluation.json").exists()
  monkeypatch.setattr(frontier, "write_samples", counted)
  done = sedd(*arguments)
  assert done.returncode == 0, done.stderr
  assert len(made) == len(set(made)) == 4
  report = json.loads((out / "evaluation.json").read_text())
  rows = report["rows"]
  assert [(row["label"], row.get("sampler"), row.get("calls")) for row in rows] == [
    ("masked", "tweedie", 3.0), ("masked", "tweedie", 5.0),
    ("ar", "autoregressive", 32.0), ("ar", "autoregressive", 32.0), ("held-out text", None, None),
  ]  # fmt: skip
  assert "high" in report["settings"]["precision"]
  assert report["settings"]["judged_length"] == 20
  assert {row["tokens"] for row in rows[:-1]} == {24 * 20}
  assert rows[2]["token_entropy"] < rows[3]["token_entropy"]
  assert len(report["headline"]) == 2
  assert "masked, tweedie" in done.stdout
  page = tmp_path / "report.html"
  shown = sedd("report", str(runs / "sedd"), str(out), f"--out={page}")
  assert shown.returncode == 0, shown.stderr
  assert "tweedie" in page.read_text()


def test_gaps_are_measured_at_equal_entropy():
  def row(label, entropy, perplexity, calls=64, temperature=1.0):
    return {
      "label": label, "sampler": label, "token_entropy": entropy, "perplexity": perplexity,
      "perplexity_stderr": 0.01, "calls": calls, "temperature": temperature,
      "verdict": "like text", "steps": None,
    }  # fmt: skip

  rows = [
    row("ar", 2.0, 10.0, temperature=0.5),
    row("ar", 3.0, 40.0),
    row("good", 2.5, 20.0, calls=8),
    row("good", 2.5, 19.0, calls=16),
    row("bad", 2.5, 30.0),
    row("low", 1.0, 2.0),
  ]
  frontier.add_gaps(rows, "ar")
  np.testing.assert_allclose(rows[2]["nats_above_baseline"], 0.0, atol=1e-12)
  np.testing.assert_allclose(rows[4]["nats_above_baseline"], np.log(1.5))
  assert "nats_above_baseline" not in rows[5], "no baseline has its entropy"
  said = frontier.headline(rows, "ar")
  assert said[0].startswith("ar at temperature 1:")
  assert "good, good: as good as ar" in said[1]
  assert "with 8 calls, 8 times fewer" in said[1]
  assert "not as good" in said[2]
  assert "0.405 nats a token worse" in said[2]
  assert "beyond the baseline's entropies" in said[3]
  rows[2]["verdict"] = "degenerate"
  assert "with 16 calls" in frontier.headline(rows, "ar")[1]
  rows[3]["calls"] = 128
  assert "with 128 calls, 2 times more" in frontier.headline(rows, "ar")[1]
  rows[3]["verdict"] = "degenerate"
  assert "not as good as ar with up to 128 calls; all of it" in frontier.headline(rows, "ar")[1]


def test_infilling_keeps_what_is_given_and_grades_all_alike(runs, tmp_path):
  out = tmp_path / "fill"
  arguments = [
    "infilling", f"--checkpoint={runs / 'sedd'}", f"--baseline={runs / 'ar'}",
    f"--judge={runs / 'ar'}", "--num=24", "--batch_size=10", "--length=24", f"--out={out}",
  ]  # fmt: skip
  done = sedd(*arguments, "--steps=4")
  assert done.returncode == 0, done.stderr
  report = json.loads((out / "evaluation.json").read_text())
  other = sedd(*arguments, "--steps=2")
  assert other.returncode == 2
  assert "ways: " in other.stderr
  assert {row["tokens"] for row in report["rows"]} == {24 * 24}
  assert [(row["prompt"], row["label"]) for row in report["rows"]] == [
    (prompt, label)
    for prompt in ("prefix", "suffix", "middle")
    for label in ("the text itself", "masked", "ar")
  ]
  for row in report["rows"]:
    assert 0.0 <= row.get("accuracy", 0.0) <= 1.0
    assert row["nats_from_gap"] > 0
  truth = report["rows"][0]
  setup = EvaluationSetup.load(str(runs / "ar"), "", tokenizer=None, batch_size=8)
  rows = heldout_rows(setup.model, "ar")
  rows = rows[np.unique(np.linspace(0, len(rows) - 1, 24).round().astype(int))]
  log_prob = setup.model.log_prob(rows)
  np.testing.assert_allclose(truth["nats_from_gap"], -log_prob[:, 16:].mean(), rtol=1e-5)


def test_filling_gives_an_autoregressive_model_the_prefix_alone(runs):
  model = sedd_jax.load(runs / "ar")
  rows = heldout_rows(model, "ar")[:5]
  gap = infilling.gap_of("middle", 32)
  assert gap.nonzero()[0].tolist() == list(range(8, 24))
  settings = sedd_jax.generation.settings.SamplerSettings()
  filled = infilling.fill(model, rows, gap, settings, seed=0, batch=2)
  np.testing.assert_array_equal(filled.tokens[:, ~gap], rows[:, ~gap])
  other = np.where(np.arange(32) >= 24, 0, rows)
  again = infilling.fill(model, other, gap, settings, seed=0, batch=5)
  np.testing.assert_array_equal(again.tokens[:, gap], filled.tokens[:, gap])


class Pairs:
  """A tokenizer of two characters a token."""

  eos_id = None

  def encode_batch(self, texts):
    return [np.arange(len(text) // 2) for text in texts]

  def to_json(self):
    return {"kind": "pairs"}


def test_real_text_of_a_run_is_joined_where_its_rows_are_few_tokens_of_the_judges(runs):
  model = sedd_jax.load(runs / "ar")
  name = str(runs / "ar")
  setup = EvaluationSetup(model=model, tokenizer=Pairs(), name=name, reference=name, batch_size=8)
  held = heldout_rows(model, "ar")
  rows = setup.real_rows(24)  # Of 32 characters each, 16 pairs.
  pieces = held.size // (64 * 24)
  assert rows.shape[1] == 24
  assert held.size // 2 // 24 - pieces <= len(rows) <= held.size // 2 // 24
  own = EvaluationSetup.load(name, "", tokenizer=None, batch_size=8)
  np.testing.assert_array_equal(own.real_rows(32), held)


def test_rows_that_hold_given_tokens_are_no_real_text(tmp_path):
  (tmp_path / "texts.txt").write_text("\n\n".join(["some words", "a few more"] * 20))
  data = DataConfig(
    files=f"{tmp_path}/texts.txt", tokenizer="bytes:eos", length=7, packing="pad", split=(0.5, 1.0)
  )
  for fill in ("counted", "given"):
    data = dataclasses.replace(data, fill=fill)
    dataset = load_dataset(data)
    info = {"experiment": types.SimpleNamespace(data=data), "corpus": dataset.identity}
    model = types.SimpleNamespace(tokenizer=dataset.tokenizer, info=info)
    if fill == "counted":
      np.testing.assert_array_equal(heldout_rows(model, "a"), dataset.heldout_rows[:].tokens)
      continue
    with pytest.raises(ValueError, match=r"a: its rows hold given tokens \(data\.packing\)"):
      heldout_rows(model, "a")


def test_a_frontier_of_a_run_that_was_trained_on_is_another(runs, tmp_path):
  """Samples that are there are of the weights that were."""
  settings, name = {"mode": "frontier"}, str(runs / "ar")
  config = FrontierConfig(checkpoints=["a"], judge="b", baseline="b", out=str(tmp_path / "out"))
  setup = EvaluationSetup.load(name, "", tokenizer=None, batch_size=8)
  model = sedd_jax.load(runs / "sedd")
  made = in_folder(config, settings, setup, {"a": model}, lambda _: {"rows": []}, print)
  assert made["rows"] == []
  later = dataclasses.replace(model, params=jax.tree.map(lambda p: p + 1, model.params))
  with pytest.raises(ValueError, match="weights: "):
    in_folder(config, settings, setup, {"a": later}, lambda _: {}, print)


@pytest.mark.slow
def test_older_flags_of_evaluate_do_what_the_verbs_do(runs, real, tmp_path):
  """Into the folders of the verbs: they hold the same study."""
  models = [f"--checkpoint={runs / 'sedd'}", f"--baseline={runs / 'ar'}", f"--judge={runs / 'ar'}"]
  common = [*models, "--steps=2", "--num=8", "--length=16"]
  file = write_samples(tmp_path / "real.jsonl", real)
  for verb, older, arguments in (
    ("grade", f"--samples={file}", [models[-1]]),
    ("infilling", "--infilling", common),
    ("frontier", "--frontier", [*common, "--temperatures=1"]),
  ):
    out = f"--out={tmp_path / verb}"
    first = [f"--samples={file}"] if verb == "grade" else []
    done = sedd(verb, *first, *arguments, out, "--json")
    assert done.returncode == 0, done.stderr
    again = sedd("evaluate", older, *arguments, out, "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout) == json.loads(done.stdout)
    assert f"is now the verb sedd {verb}" in again.stderr
    assert again.stderr.count("\n") == 1


def test_common_length_is_that_of_the_shortest_or_what_is_asked():
  rows = [np.zeros(n, np.int32) for n in (40, 50, 20)]
  assert common_length(rows, None) == 20
  assert common_length(rows, 30) == 30
  with pytest.raises(ValueError, match="--length=60"):
    common_length(rows, 60)
