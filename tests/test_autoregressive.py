"""The autoregressive baseline through the whole house: trained, loaded, sampled, judged."""

import dataclasses
import json
import time

import jax
import numpy as np
import pytest
from support.command import sedd
from support.experiments import TINY, with_steps
from support.runs import final_state

import sedd_jax
from sedd_jax.data import load_dataset
from sedd_jax.interop.info import describe
from sedd_jax.models import CausalNetwork
from sedd_jax.reports.evaluations import heldout_text
from sedd_jax.training.experiment import Experiment
from sedd_jax.training.loop import train

AR = dataclasses.replace(TINY, objective="autoregressive")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A finished tiny autoregressive run, on a mesh of four devices."""
  workdir = tmp_path_factory.mktemp("runs") / "ar"
  assert train(AR, workdir) == 0
  return workdir


@pytest.mark.slow
def test_a_run_stopped_halfway_ends_where_an_uninterrupted_one_does(run, tmp_path):
  assert train(with_steps(4, AR), tmp_path / "ar") == 0
  assert train(AR, tmp_path / "ar") == 0
  step, resumed = final_state(tmp_path / "ar", AR)
  want_step, whole = final_state(run, AR)
  assert step == want_step == 8
  for name in ("params", "ema", "opt_state"):
    jax.tree.map(np.testing.assert_array_equal, getattr(resumed, name), getattr(whole, name))


def test_held_out_loss_is_the_exact_likelihood(run):
  model = sedd_jax.load(run)
  assert isinstance(model, sedd_jax.CausalModel)
  report = json.loads((run / "evaluation.json").read_text())
  assert report["heldout_bits_per_char_strict_stderr"] == 0.0
  assert report["heldout_bits_per_char_paper"] == report["heldout_bits_per_char_strict"]
  # By dense logits, from the tokens alone.
  rows = load_dataset(model.info["experiment"].data, tokenizer=model.tokenizer).heldout_rows
  tokens = rows[np.arange(3)].tokens
  law = np.asarray(model.logits(tokens), np.float64)
  law -= np.log(np.exp(law).sum(-1, keepdims=True))
  later = np.take_along_axis(law[:, :-1], tokens[:, 1:, None], axis=2)[..., 0]
  log_prob = model.log_prob(tokens)
  np.testing.assert_allclose(log_prob[:, 1:], later, atol=1e-5)
  bound = model.bound(tokens)
  np.testing.assert_allclose(bound.strict, -log_prob.sum(1), rtol=1e-6)
  assert not bound.strict_stderr.any()


def test_it_is_sampled_from_the_command_line(run, tmp_path):
  shown = sedd("sample", f"--checkpoint={run}", "--num=2", "--prefix=The ", "--top_p=0.9")
  assert shown.returncode == 0, shown.stderr
  assert shown.stdout.count("The ") >= 2
  out = tmp_path / "samples.jsonl"
  done = sedd("sample", f"--checkpoint={run}", "--num=3", "--batch=2", f"--out={out}")
  assert done.returncode == 0, done.stderr
  lines = [json.loads(line) for line in out.read_text().splitlines()]
  assert [line["index"] for line in lines] == [0, 1, 2]
  assert lines[0]["settings"]["sampler"] == "autoregressive"
  assert lines[0]["calls"] == 32
  np.testing.assert_array_equal([line["tokens"] for line in lines], sedd_jax.load(run).sample(3))
  page = tmp_path / "trace.txt"
  done = sedd("sample", f"--checkpoint={run}", f"--trace={page}")
  assert done.returncode == 0, done.stderr
  assert page.exists()


def test_what_only_diffusion_can_do_is_refused(run, tmp_path):
  for flags, message in (
    (["--suffix=end"], "continues a prefix"),
    (["--steps=8"], "steps=8"),
    (["--sampler=euler"], "sampler='euler'"),
    (["--best_of=2"], "best_of=2"),
  ):
    refused = sedd("sample", f"--checkpoint={run}", *flags)
    assert refused.returncode == 2
    assert message in refused.stderr
  refused = sedd("export", f"--checkpoint={run}", f"--out={tmp_path / 'export'}")
  assert refused.returncode == 2
  assert "autoregressive" in refused.stderr
  assert not (tmp_path / "export").exists()


def test_evaluate_prints_one_number_without_an_error_bar(run):
  done = sedd("evaluate", f"--checkpoint={run}", "--json")
  assert done.returncode == 0, done.stderr
  report = json.loads(done.stdout)
  stored = json.loads((run / "evaluation.json").read_text())
  np.testing.assert_allclose(
    report["bits_per_char_strict"], stored["heldout_bits_per_char_strict"], rtol=1e-6
  )
  assert report["exact"]
  assert report["num_times"] is None
  shown = heldout_text(report)
  assert f"cross entropy    {report['bits_per_char_strict']:.4f}\n" in shown
  assert not any(word in shown for word in ("bound", "draws", "±"))


def test_info_says_that_it_is_no_diffusion_model(run):
  shown = sedd("info", str(run)).stdout
  assert "objective     autoregressive" in shown
  assert "cross entropy" in shown
  assert not any(word in shown for word in ("diffusion", "noise", "strict", "±"))
  network = sedd_jax.load(run).network
  assert isinstance(network, CausalNetwork)
  assert describe(run)["parameters"] == network.num_parameters()


def test_the_seconds_of_a_sample_are_its_own(run):
  model = sedd_jax.load(run)
  began = time.monotonic()
  made = model.generate(np.zeros((1, 32), int), np.zeros((1, 32), bool))
  assert 0 < made.seconds < time.monotonic() - began


@pytest.mark.slow
def test_weights_go_to_a_run_of_the_same_kind_alone(run, tmp_path):
  tuned = dataclasses.replace(with_steps(1, AR), init_from=str(run))
  assert train(tuned, tmp_path / "tuned", load=sedd_jax.load) == 0
  other = dataclasses.replace(with_steps(1), init_from=str(run))
  with pytest.raises(ValueError, match="objective='score_entropy' is 'autoregressive' there"):
    train(other, tmp_path / "other", load=sedd_jax.load)


def test_objective_is_checked():
  with pytest.raises(ValueError, match="objective='next' must be"):
    Experiment(objective="next")


def test_a_suite_gives_the_exact_likelihood_of_every_token(run, tmp_path):
  model = sedd_jax.load(run)
  text = "The statement is executed. A name refers to an object. " * 3
  (tmp_path / "text.txt").write_text(text)
  arguments = [
    "evaluate", f"--checkpoint={run}", "--suite=zero-shot", "--protocol=strict", "--json",
    f"--data=lambada={tmp_path / 'text.txt'}",
  ]  # fmt: skip
  done = sedd(*arguments)
  assert done.returncode == 0, done.stderr
  report = json.loads(done.stdout)
  (result,) = report["results"]
  assert report["estimator"] == "exact"
  assert result["nats_per_token_stderr"] == 0.0
  tokens = model.encode("\n" + text.strip())  # As the published code reads a passage of LAMBADA.
  assert result["tokens"] == len(tokens) == result["characters"]
  rows = tokens[: len(tokens) // 32 * 32].reshape(-1, 32)
  last = model.log_prob(tokens[None, -32:])[0, -(len(tokens) % 32) :]
  nats = -(model.log_prob(rows).sum() + last.sum()) / len(tokens)
  np.testing.assert_allclose(result["nats_per_token"], nats, rtol=1e-6)
  refused = sedd(*arguments, "--estimator=orders")
  assert refused.returncode == 2
  assert "'exact'" in refused.stderr
