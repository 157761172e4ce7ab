"""Samples from a model: numbered, in batches, around templates, into files."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from sedd_jax.data.tokenizers import Chars
from sedd_jax.diffusion import Absorbing, LogLinear, Uniform
from sedd_jax.generation.model import Model
from sedd_jax.generation.samples import SampleFile, SampleRequest, generate, records, to_line
from sedd_jax.generation.settings import SamplerSettings
from sedd_jax.generation.templates import Template, between, parse_template
from sedd_jax.models import Network, ScoreTransformerConfig

pytestmark = pytest.mark.usefixtures("quick_compilation")
LENGTH = 12
TOKENIZER = Chars("abcdefgh")


@functools.cache
def model(process=Absorbing(8)):
  """A random network that depends on all it is given."""
  shape = ScoreTransformerConfig(
    num_states=process.num_states,
    width=16,
    blocks=1,
    heads=2,
    cond_dim=8,
    dropout=0.0,
    dtype="float64",
  )
  kind = "score" if process.mask_id is None else "conditional"
  network = Network(config=shape, process=process, parameterization=kind)
  params = jax.tree.map(
    lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape),
    network.init(jax.random.key(0)),
  )
  return Model(
    network=network,
    params=params,
    noise=LogLinear(),
    length=LENGTH,
    tokenizer=TOKENIZER,
    info={"source": "tests", "step": 3},
  )


def nothing(num, length=LENGTH):
  return np.zeros((num, length), np.int32), np.zeros((num, length), bool)


# The law of numbers.


@pytest.mark.parametrize("sampler", ["tweedie", "first_hitting"])
def test_a_sample_depends_on_seed_and_number_alone(sampler, x64):
  settings = SamplerSettings(sampler=sampler, steps=None if sampler == "first_hitting" else 5)
  make = functools.partial(model().generate, settings=settings, seed=3)
  whole = make(*nothing(8)).tokens
  assert len(np.unique(whole, axis=0)) > 6
  for numbers in ([5], [7, 0, 2]):
    some = make(*nothing(len(numbers)), numbers=numbers).tokens
    np.testing.assert_array_equal(some, whole[numbers])
  assert (make(*nothing(8), numbers=range(8, 16)).tokens != whole).any()
  other = model().generate(*nothing(8), settings=settings, seed=4).tokens
  assert (other != whole).any()


@pytest.mark.parametrize(
  ("process", "num"),
  [(Absorbing(8), 8), (Uniform(8), 5)],  # The second is no multiple of the devices.
  ids=str,
)
def test_a_sample_does_not_depend_on_the_devices(process, num, x64):
  one = model(process)
  four = dataclasses.replace(one, devices=jax.devices("cpu"))
  assert len(four.devices) == 4
  settings = SamplerSettings(steps=4)
  want = one.generate(*nothing(num), settings=settings)
  got = four.generate(*nothing(num), settings=settings)
  np.testing.assert_array_equal(got.tokens, want.tokens)
  assert got.tokens.shape == (num, LENGTH)


def test_recording_and_progress_change_nothing(x64):
  settings, told = SamplerSettings(steps=6), []
  plain = model().generate(*nothing(3), settings=settings)
  watched = model().generate(
    *nothing(3), settings=settings, record=True, on_progress=lambda *news: told.append(news)
  )
  np.testing.assert_array_equal(watched.tokens, plain.tokens)
  assert (watched.steps, watched.calls) == (plain.steps, plain.calls) == (6, 6)
  assert watched.frames.shape == (8, 3, LENGTH)  # Before, after each step, and denoised.
  assert (watched.frames[0] == 8).all()
  np.testing.assert_array_equal(watched.frames[-1], plain.tokens)
  assert watched.times[0, 0] == 1.0
  assert watched.times[-1, 0] == 0.0
  assert (np.diff(watched.times, axis=0) < 0).all()
  assert watched.calls_by_frame.tolist() == [0, 1, 2, 3, 4, 5, 6, 6]
  assert not len(plain.frames)
  seen = []
  model().generate(*nothing(3), settings=settings, on_snapshot=seen.append)
  np.testing.assert_array_equal([one.tokens for one in seen], watched.frames)
  np.testing.assert_array_equal([one.times for one in seen], watched.times)
  assert [one.calls for one in seen] == watched.calls_by_frame.tolist()
  steps, shares = zip(*told, strict=True)
  assert list(steps) == sorted(steps)
  assert shares[-1] == 1.0


def test_what_a_snapshot_raises_ends_the_sampling(x64):
  seen = []

  def stop(snapshot):
    seen.append(snapshot.calls)
    if snapshot.calls == 2:
      raise InterruptedError

  with pytest.raises(InterruptedError):
    model().generate(*nothing(1), settings=SamplerSettings(steps=6), on_snapshot=stop)
  assert seen == [0, 1, 2]


def test_other_steps_and_temperatures_need_no_other_program(x64):
  """Their numbers are arguments of the compiled functions."""
  one = dataclasses.replace(model())
  for settings in (
    SamplerSettings(steps=3, temperature=0.7),
    SamplerSettings(steps=5, temperature=0.7, schedule="noise"),
    SamplerSettings(steps=6, temperature=1.3),
  ):
    made = one.generate(*nothing(1), settings=settings)
    assert made.steps == settings.steps
  generator = one._generator
  for function in (generator._advance, generator._finish):
    assert function._cache_size() == 1


@pytest.mark.slow
def test_best_of_keeps_the_lowest_bound(x64):
  settings = SamplerSettings(steps=4)
  best = model().generate(*nothing(4), settings=settings, best_of=4)
  one = model().generate(*nothing(4), settings=settings)
  bounds, others = (model().bound(x.tokens).strict for x in (best, one))
  assert (bounds <= others).all()
  assert (bounds < others).any()
  assert best.calls == 4 * one.calls
  some = model().generate(*nothing(3), settings=settings, best_of=4, numbers=[3, 0, 2])
  np.testing.assert_array_equal(some.tokens, best.tokens[[3, 0, 2]])
  # A sample that no candidate beats stays.
  kept = (best.tokens == one.tokens).all(axis=1)
  np.testing.assert_array_equal(kept, bounds == others)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"best_of": 0}, "best_of=0 must be at least 1"),
    ({"best_of": 2**31 - 2**14}, "best_of=.* must be at most 65,535"),
    ({"best_of": 2, "record": True}, "best_of=2"),
    ({"seed": -1}, "seed=-1"),
    ({"numbers": [1, 2]}, "numbers must be 1"),
    ({"numbers": [2**31]}, "numbers must be 1"),
    ({"numbers": [-1]}, "numbers must be 1"),
  ],
)
def test_arguments_out_of_range_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    model().generate(*nothing(1), **change)


@pytest.mark.parametrize("tokens", [[1, 2], 1, [[[1]]], []])
def test_only_rows_are_decoded(tokens):
  with pytest.raises(ValueError, match=r"tokens must be int\[B, L\]"):
    model().decode(tokens)


def test_samples_longer_than_the_model_are_refused():
  with pytest.raises(ValueError, match="length=13 exceeds the 12 tokens"):
    model().sample(1, length=13)
  with pytest.raises(ValueError, match="num=-1"):
    model().sample(-1)


# Settings in words.


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"sampler": "tweede"}, "did you mean 'tweedie'"),
    ({"sampler": "remdm:cab=1"}, "'cab=1' is unknown; remdm has cap=0.02, rescale=1.0"),
    ({"sampler": "remdm:cap"}, "option 'cap' is unknown"),
    ({"sampler": "remdm:cap=much"}, "cap='much' must be of type float"),
    ({"sampler": "remdm:cap=2"}, "cap=2.0 must lie in"),
    ({"sampler": "tweedie:size=1"}, "tweedie has none"),
    ({"steps": 0}, "steps=0"),
    ({"temperature": -1.0}, "temperature=-1.0"),
    ({"schedule": "times"}, "did you mean 'time'"),
    ({"schedule": "1,0.5,0.7"}, "must start at 1 and fall"),
    ({"schedule": "1,0.5", "steps": 3}, "steps=3: schedule='1,0.5' sets its own times"),
    ({"schedule": "adaptive"}, "needs a sampler that estimates its error"),
    ({"schedule": "adaptive:tolerance=0", "sampler": "trapezoidal"}, "tolerance=0.0"),
    ({"schedule": "adaptive", "sampler": "trapezoidal", "steps": 9}, "steps=9"),
    ({"sampler": "first_hitting", "steps": 9}, "steps=9: sampler='first_hitting' sets"),
    ({"sampler": "entropy_bounded", "schedule": "noise"}, "sets its own times"),
  ],
  ids=str,
)
def test_settings_that_make_no_sense_are_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    SamplerSettings(**settings).sampling(Absorbing(8), LogLinear())


def test_settings_reach_the_sampler():
  settings = SamplerSettings(sampler="remdm:cap=0.5,rescale=0.25", schedule="1,0.5,0.125", top_k=3)
  how = settings.sampling(Absorbing(8), LogLinear())
  assert (how.sampler.cap, how.sampler.rescale) == (0.5, 0.25)
  assert how.schedule.times == (1.0, 0.5, 0.125)
  assert how.truncation.top_k == 3
  words = SamplerSettings(sampler="predictor_corrector:predictor=euler,corrections=2")
  assert words.make_sampler().corrections == 2
  adaptive = SamplerSettings(sampler="trapezoidal", schedule="adaptive:tolerance=0.5")
  assert adaptive.sampling(Uniform(8), LogLinear()).schedule.tolerance == 0.5


# Templates.


def template(text, length=None, longest=LENGTH):
  return parse_template(text, TOKENIZER.encode, length=length, longest=longest)


def pattern(made):
  return "".join(
    TOKENIZER.decode([t]) if g else "." for t, g in zip(made.tokens, made.given, strict=True)
  )


@pytest.mark.parametrize(
  ("text", "length", "want"),
  [
    ("ab[[3]]c", None, "ab...c"),
    ("ab[[3]]c[[1]]", None, "ab...c."),
    ("ab[[3]]c", 8, "ab...c.."),
    ("ab[[*]]c", 8, "ab.....c"),
    ("ab[[*]]c", None, "ab.........c"),
    ("[[*]]", 3, "..."),
    ("[[2]]a[[*]]b[[1]]", 7, "..a..b."),
    ("abc", 5, "abc.."),
    ("a[[*]]bc", 4, "a.bc"),
  ],
)
def test_templates(text, length, want):
  assert pattern(template(text, length)) == want


def test_escaped_blanks_are_text():
  encode = Chars("[]*34\\").encode
  made = parse_template("\\[[34]][[2]]", encode, length=None, longest=12)
  assert made.given.tolist() == [True] * 6 + [False] * 2
  made = parse_template("\\\\[[2]]", encode, length=None, longest=12)
  assert made.tokens[made.given].tolist() == encode("\\").tolist()  # Two stand for one.


@pytest.mark.parametrize(
  ("prefix", "suffix"), [("34\\", ""), ("[[3]]", "\\"), ("", "[[*]]"), ("", "")]
)
def test_prefix_and_suffix_are_text(prefix, suffix):
  characters = Chars("[]*34\\")
  made = between(prefix, suffix, characters.encode, length=11, longest=12)
  assert characters.decode(made.tokens[made.given]) == prefix + suffix
  assert made.given[: len(prefix)].all()
  assert made.given[11 - len(suffix) :].all()
  assert len(made.given) == 11


@pytest.mark.parametrize(
  ("text", "length", "message"),
  [
    ("abc", None, "leaves nothing to fill in"),
    ("a[[2]]", 0, "length=0 must be at least 1"),
    ("a[[*]]bcd", 4, "leaves nothing to fill in"),
    ("a[[*]]b[[*]]", None, "2 blanks"),
    ("a[[0]]b", None, "at least one token"),
    ("a[[-1]]b[[3]]", None, r"\[\[-1\]\] must hold a number"),
    ("a[[ 4 ]]b[[3]]", None, r"\[\[ 4 \]\] must hold a number"),
    ("a[[]]b[[3]]", None, r"\[\[\]\] must hold a number"),
    ("a[[**]]b[[3]]", None, r"\[\[\*\*\]\] must hold a number"),
    ("ab[[9]]cd", None, "13 tokens exceed the 12"),
    ("ab[[4]]cd", 6, "takes 8 tokens and does not fit length=6"),
    ("ab[[4]]", 20, "20 tokens exceed the 12"),
    ("xyz[[2]]", None, "characters 'x', 'y', 'z'"),
  ],
)
def test_templates_that_do_not_fit_are_refused(text, length, message):
  with pytest.raises(ValueError, match=message):
    template(text, length)


def test_an_end_of_text_ends_it():
  class Ended(Chars):
    eos_id = 7

  ended = dataclasses.replace(model(), tokenizer=Ended("abcdefgh"))
  tokens = np.array([0, 7, 1, 2, 7, 3])
  assert ended.text(tokens) == "a"
  given = np.arange(6) == 3  # What stands before a given token belongs to the text.
  assert ended.text(tokens, given) == "ahbc"
  assert ended.text(tokens, np.ones(6, bool)) == "ahbchd"
  assert model().text(tokens) == "ahbchd"


# Files.


def order_of(num=5, **change):
  settings = SamplerSettings(steps=3)
  templates = [template("ab[[4]]"), template("[[4]]cde")]
  return SampleRequest(**(dict(templates=templates, num=num, settings=settings, seed=1) | change))


def written(path, order, batch, most=None):
  """Writes a file, stopping short after so many batches."""
  file = SampleFile(path, model(), order)
  for count, (numbers, made) in enumerate(generate(model(), order, batch=batch, skip=file.there)):
    if count == most:
      return
    file.write(numbers, made)
  file.close()


def lines_of(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_has_no_other_ends_of_line():
  record = {"text": "a\x85b\u2028c\u2029d\n\x1ce ü"}
  line = to_line(record)
  assert line.splitlines() == [line]
  assert "ü" in line
  assert json.loads(line) == record


def test_a_killed_run_goes_on_without_repeating_or_losing_a_sample(tmp_path, x64):
  order = order_of()
  written(tmp_path / "whole.jsonl", order, batch=3)
  path = tmp_path / "killed.jsonl"
  written(path, order, batch=2, most=2)
  assert not path.exists()  # What is not whole does not have the name.
  part = tmp_path / "killed.jsonl.part"
  whole = part.read_bytes()
  part.write_bytes(whole[:-7])  # Killed while the fourth was written.
  assert SampleFile(path, model(), order).there == 3
  written(path, order, batch=3)
  assert not part.exists()
  found, want = lines_of(path), lines_of(tmp_path / "whole.jsonl")
  assert [line["index"] for line in found] == list(range(10))
  for line in (*found, *want):
    del line["calls"]  # Of the batch that a sample was in.
  assert found == want
  assert all(line["text"].startswith("ab") for line in found[:5])
  assert all(line["text"].endswith("cde") for line in found[5:])
  assert len({line["text"] for line in found}) == 10


def test_a_whole_file_is_never_overwritten(tmp_path, x64):
  written(tmp_path / "a.jsonl", order_of(1), batch=2)
  before = (tmp_path / "a.jsonl").read_bytes()
  with pytest.raises(FileExistsError, match="never overwritten"):
    SampleFile(tmp_path / "a.jsonl", model(), order_of(1))
  assert (tmp_path / "a.jsonl").read_bytes() == before
  # Nor one that appears while samples are made.
  file = SampleFile(tmp_path / "b.jsonl", model(), order_of(1))
  (tmp_path / "b.jsonl").write_text("precious")
  with pytest.raises(FileExistsError):
    file.close()
  assert (tmp_path / "b.jsonl").read_text() == "precious"
  assert (tmp_path / "b.jsonl.part").exists()


def test_one_process_at_a_time_writes_a_file(tmp_path):
  first = SampleFile(tmp_path / "a.jsonl", model(), order_of())
  with pytest.raises(BlockingIOError, match="another process"):
    SampleFile(tmp_path / "a.jsonl", model(), order_of())
  first.close()


@pytest.mark.slow
def test_templates_of_one_length_share_batches(x64):
  texts = [template("ab[[4]]"), template("[[4]]cd"), template("a[[5]]"), template("[[4]]cde")]
  made = list(generate(model(), order_of(1, templates=texts), batch=8))
  assert [list(numbers) for numbers, _ in made] == [[0, 1, 2], [3]]
  (_, first), (_, last) = made
  assert [TOKENIZER.decode(row[g]) for row, g in zip(first.tokens, first.given, strict=True)] == [
    "ab", "cd", "a"
  ]  # fmt: skip
  assert last.tokens.shape == (1, 7)


@pytest.mark.parametrize(
  "change",
  [
    {"seed": 2},
    {"first": 1},
    {"settings": SamplerSettings(steps=4)},
    {"best_of": 2},
    {"num": 7},
    {"templates": [template("ab[[4]]", 8), template("[[4]]cde")]},
    {"templates": [template("ab[[4]]")._replace(tokens=np.full(6, 2)), template("[[4]]cde")]},
    {"templates": [Template("other", *nothing(1)), template("[[4]]cde")]},
  ],
  ids=str,
)
def test_samples_made_otherwise_are_not_gone_on_with(tmp_path, change, x64):
  written(tmp_path / "a.jsonl", order_of(), batch=2, most=1)
  before = (tmp_path / "a.jsonl.part").read_bytes()
  with pytest.raises(ValueError, match="not sample"):
    SampleFile(tmp_path / "a.jsonl", model(), order_of(**change))
  assert (tmp_path / "a.jsonl.part").read_bytes() == before


def test_other_files_are_not_touched(tmp_path):
  (tmp_path / "a.jsonl.part").write_text("something else\n")
  with pytest.raises(ValueError, match="is no file of samples"):
    SampleFile(tmp_path / "a.jsonl", model(), order_of())
  assert (tmp_path / "a.jsonl.part").read_text() == "something else\n"
  with pytest.raises(ValueError, match=r"must end in \.jsonl"):
    SampleFile(tmp_path / "a.txt", model(), order_of())
  with pytest.raises(FileNotFoundError, match="there is no folder"):
    SampleFile(tmp_path / "no" / "a.jsonl", model(), order_of())


def test_records_say_all_that_made_them(x64):
  order = order_of(2, templates=[template("ab[[4]]")])
  ((numbers, made),) = generate(model(), order, batch=8)
  first, second = records(model(), order, numbers, made)
  assert first["index"] == 0
  assert second["text"] == TOKENIZER.decode(second["tokens"])
  assert (first["seed"], first["steps"], first["calls"]) == (1, 3, made.calls)
  assert first["settings"]["sampler"] == "tweedie"
  assert first["settings"]["source"] == "tests"
  assert first["template"] == "ab[[4]]"
  json.dumps(first)
  silent = dataclasses.replace(model(), tokenizer=None)
  assert records(silent, order, numbers, made)[0]["text"] is None


@pytest.mark.parametrize(
  ("change", "message"), [({"num": 0}, "num=0"), ({"first": -1}, "first=-1")]
)
def test_orders_out_of_range_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    order_of(**change)
  with pytest.raises(ValueError, match="batch=0"):
    next(generate(model(), order_of(), batch=0))
