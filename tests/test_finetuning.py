"""Runs that start from other weights: which fit, what they start with, that they go on alone."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest
from support.experiments import TINY, with_steps
from support.runs import final_state

import sedd_jax
from sedd_jax.data import Chars, DataConfig, load_dataset
from sedd_jax.parallel import MeshConfig, make_mesh
from sedd_jax.training.initialization import Initialization
from sedd_jax.training.loop import train
from sedd_jax.training.metrics import read_metrics
from sedd_jax.training.objectives import ScoreEntropy
from sedd_jax.training.program import Program
from sedd_jax.training.step import loss_and_grad

TEXT = "the quick brown fox jumps over the lazy dog. " * 300


def tuned(source, **changes):
  """A short run of the tiny model that starts from a source."""
  model = dataclasses.replace(TINY.model, dropout=0.0)
  report = dataclasses.replace(TINY.report, log_every=1, evaluate_every=0, preview_every=0)
  experiment = dataclasses.replace(with_steps(2), model=model, report=report, init_from=str(source))
  return dataclasses.replace(experiment, **changes)


def initialized(experiment, mesh=MeshConfig(replica=4)):
  """Its programs on a mesh, its text, its state before the first step, and a note on the source."""
  initialization = Initialization(experiment, sedd_jax.load)
  dataset = load_dataset(experiment.data, tokenizer=initialization.tokenizer())
  program = Program(
    experiment=experiment, mesh=make_mesh(mesh), vocab_size=dataset.tokenizer.vocab_size
  )
  state, said = initialization.create(program, dataset.tokenizer)
  return program, dataset, state, said


def assert_same(got, want):
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), got, want)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("sources") / "run"
  assert train(TINY, workdir) == 0
  return workdir


@pytest.fixture(scope="module")
def text(tmp_path_factory):
  file = tmp_path_factory.mktemp("text") / "fox.txt"
  file.write_text(TEXT)
  return file


@pytest.fixture(scope="module")
def sources(source, tmp_path_factory):
  """One model as a run, an export, and weights in the original's layout, without tokenizer."""
  folder = tmp_path_factory.mktemp("exports")
  model = sedd_jax.load(source)
  published = sedd_jax.export(model, folder / "original", layout="original")
  (published / "sedd_tokenizer.json").unlink()
  return {"run": source, "export": sedd_jax.export(model, folder / "ours"), "published": published}


@pytest.mark.parametrize("kind", ["run", "export", "published"])
@pytest.mark.parametrize("mesh", [dict(replica=4), dict(fsdp=2, tensor=2)], ids=str)
def test_weights_and_average_are_the_sources_to_the_bit(sources, kind, mesh):
  program, _, state, said = initialized(tuned(sources[kind]), MeshConfig(**mesh))
  want = sedd_jax.load(sources["run"])
  want = want.network.unpad(want.params)
  for params in (state.params, state.ema):
    assert_same(program.network.unpad(params), want)
  assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(
    lambda x: x.sharding, program.state
  )
  assert int(state.step) == 0
  moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
  assert moments
  assert not any(np.asarray(x).any() for x in moments)
  assert str(sources[kind]) in said


@pytest.mark.slow
def test_first_loss_is_the_sources_and_the_run_goes_on_without_it(source, tmp_path):
  moved = shutil.copytree(source, tmp_path / "source")
  experiment, workdir = tuned(moved), tmp_path / "run"
  assert train(experiment, workdir, load=sedd_jax.load) == 0

  program, dataset, _, _ = initialized(experiment)
  model = sedd_jax.load(source)
  batch = dataset.batches(experiment.train.batch_size, experiment.seed)[0]
  shape = dataclasses.replace(model.network.config, dropout=0.0)
  objective = ScoreEntropy(
    network=dataclasses.replace(model.network, config=shape), noise=model.noise
  )
  evaluate = jax.jit(functools.partial(loss_and_grad, objective, accumulation=1))
  key = jax.random.split(jax.random.key(experiment.seed))[1]
  loss, _ = evaluate(model.params, batch, key, np.int32(0))
  first = next(x for x in read_metrics(workdir) if "loss_nats_per_sequence" in x)
  assert first["step"] == 1
  assert first["loss_nats_per_sequence"] == pytest.approx(float(loss), rel=1e-5)
  _, random = program.step(program.create(), program_batch(program, batch))
  assert float(random["loss"]) != pytest.approx(float(loss), rel=1e-3), "the source taught nothing"

  shutil.rmtree(moved)
  longer = with_steps(3, experiment)
  assert train(longer, workdir, load=sedd_jax.load) == 0
  assert final_state(workdir, longer)[0] == 3
  with pytest.raises(ValueError, match=r"config\.init_from: .* -> ''"):
    train(dataclasses.replace(longer, init_from=""), workdir)


def program_batch(program, batch):
  return jax.device_put(batch, program.batch.tokens.sharding)


def test_another_corpus_and_length_are_taken_with_the_sources_tokenizer(source, text):
  data = DataConfig(files=str(text), length=48)
  _, dataset, state, said = initialized(tuned(source, data=data, init_tokenizer="source"))
  want = sedd_jax.load(source)
  assert dataset.tokenizer.to_json() == want.tokenizer.to_json()
  assert_same(state.ema, want.params)
  assert "sequences of 32 tokens, this run has 48" in said


def test_unknown_characters_are_named(source, text):
  text.with_name("other.txt").write_text(TEXT + "東京")
  data = DataConfig(files=str(text.with_name("other.txt")), length=32)
  with pytest.raises(ValueError, match=r"'東'"):
    initialized(tuned(source, data=data, init_tokenizer="source"))


def test_new_tables_stand_beside_the_old_trunk(source, text):
  data = DataConfig(files=str(text), length=32)
  program, dataset, state, said = initialized(tuned(source, data=data, init_tokenizer="new"))
  assert isinstance(dataset.tokenizer, Chars)
  assert dataset.tokenizer.vocab_size < 40
  want, fresh = sedd_jax.load(source).params, program.create().params
  assert_same(state.params["blocks"], want["blocks"])
  for name, layer in state.params["ends"].items():
    assert_same(layer, (fresh if name in ("embedding", "output") else want)["ends"][name])
  assert "new tables" in said


def test_another_tokenizer_is_refused_before_anything_is_written(source, text, tmp_path):
  data = DataConfig(files=str(text), length=32)
  message = r"'chars' of \d+ tokens.*'chars' of \d\d\..*init_tokenizer=source.*init_tokenizer=new"
  with pytest.raises(ValueError, match=message):
    train(tuned(source, data=data), tmp_path / "run", load=sedd_jax.load)
  with pytest.raises(FileNotFoundError, match="does not exist"):
    train(tuned(tmp_path / "nothing"), tmp_path / "run", load=sedd_jax.load)
  assert not (tmp_path / "run").exists()


def test_weights_without_tokenizer_are_known_by_their_size(sources, text):
  data = DataConfig(files=str(text), length=32)
  with pytest.raises(ValueError, match=r"a vocabulary of \d+ tokens.*of \d\d\. --config.init_tok"):
    initialized(tuned(sources["published"], data=data))
  with pytest.raises(ValueError, match="came without a tokenizer"):
    initialized(tuned(sources["published"], init_tokenizer="source"))


def test_every_difference_of_kind_is_listed_with_its_flag(source):
  model = dataclasses.replace(TINY.model, width=32, time_input=False)
  diffusion = dataclasses.replace(TINY.diffusion, parameterization="conditional", eps=1e-2)
  with pytest.raises(ValueError, match="another kind of model") as refused:
    initialized(tuned(source, model=model, diffusion=diffusion))
  assert str(refused.value).split("\n")[1:] == [
    "diffusion.parameterization='conditional' is 'scaled' there: "
    "--config.diffusion.parameterization=scaled",
    "diffusion.eps=0.01 is 0.001 there: --config.diffusion.eps=0.001",
    "model.width=32 is 16 there: --config.model.width=16",
    "model.time_input=False is True there: --config.model.time_input=True",
  ]


def test_same_tokens_written_differently_are_the_same(shared_path):
  """Two definitions of one BPE, as two versions of a library may write them."""
  from sedd_jax.data import BPE
  from sedd_jax.data.tokenizers import same_tokenizer

  bpe = BPE.from_folder(shared_path("data/gpt2-tokenizer"))
  definition = json.loads(bpe.to_json()["definition"])
  definition["pre_tokenizer"]["trim_offsets"] = not definition["pre_tokenizer"]["trim_offsets"]
  again = BPE(json.dumps(definition))
  assert again.to_json() != bpe.to_json()
  assert same_tokenizer(bpe, again)
  assert not same_tokenizer(Chars("ab"), Chars("ba"))
