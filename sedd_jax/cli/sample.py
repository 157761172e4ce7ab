"""sedd sample: text from a trained model."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from absl import flags

import sedd_jax
from sedd_jax.cli import app, path_flags, streams
from sedd_jax.diffusion import SAMPLERS
from sedd_jax.generation.model import LanguageModel
from sedd_jax.generation.progress import generate_with_bar
from sedd_jax.generation.samples import (
  SampleRequest,
  check_path,
  records,
  to_line,
  to_text,
  write_samples,
)
from sedd_jax.generation.settings import SamplerSettings
from sedd_jax.generation.templates import Prompts
from sedd_jax.generation.traces import Trace, check_trace_path, write_trace
from sedd_jax.interop.load import STORIES

USAGE = """Prints samples, fills in templates, or writes many samples to a file.

  sedd sample
  sedd sample --checkpoint=runs/quickstart --num=4 --steps=64 --seed=0
  sedd sample --checkpoint=runs/quickstart --template='The [[20]] statement is [[*]].' --length=80
  sedd sample --checkpoint=runs/quickstart --sampler=remdm:cap=0.05 --schedule=tokens --top_p=0.9
  sedd sample --checkpoint=runs/quickstart --trace=page.html
  sedd sample --checkpoint=runs/quickstart --num=10000 --batch=64 --out=samples.jsonl
"""
_CHECKPOINT = path_flags.define_model(
  "checkpoint",
  None,
  "Run directory, folder of weights or hub id; by default the model that comes with the package.",
)
_NUM = flags.DEFINE_integer("num", 1, "Number of samples, of each template.")
_FIRST = flags.DEFINE_integer("first", 0, "Number of the first sample.")
_SEED = flags.DEFINE_integer("seed", 0, "Sample i depends on (seed, i) alone.")
_STEPS = flags.DEFINE_integer("steps", None, "Sampling steps; 64 by default.")
_SAMPLER = flags.DEFINE_string(
  "sampler", "tweedie", f"{', '.join(SAMPLERS)}; options follow a colon: remdm:cap=0.05."
)
_SCHEDULE = flags.DEFINE_string(
  "schedule", "time", "time, noise, tokens, adaptive[:tolerance=0.1], or times: 1,0.5,0.1."
)
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Of each new token; below 1 sharpens.")
_TOP_K = flags.DEFINE_integer("top_k", 0, "Only so many of the most likely tokens; 0 for all.")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Only the likeliest tokens with this mass together.")
_BEST_OF = flags.DEFINE_integer("best_of", 1, "Candidates a sample; the best by the bound stays.")
_LENGTH = flags.DEFINE_integer("length", None, "Tokens; by default the length it was trained at.")
_PREFIX = flags.DEFINE_string("prefix", "", "Text that every sample starts with.")
_SUFFIX = flags.DEFINE_string("suffix", "", "Text that every sample ends with.")
_TEMPLATE = flags.DEFINE_string(
  "template", None, "Text with blanks: [[40]] of 40 tokens, [[*]] of what is left of --length."
)
_TEMPLATES = path_flags.define_path("templates", None, "File of templates, one a line.")
_TOKENIZER = flags.DEFINE_string(
  "tokenizer", None, "gpt2, a tokenizer.json, a folder or a hub id, for weights without one."
)
_EOS = flags.DEFINE_string(
  "tokenizer_eos", "", "Its end-of-text token; by default found in its file."
)
_BATCH = flags.DEFINE_integer("batch", 16, "Samples at a time, on all devices together.")
_DEVICES = flags.DEFINE_integer("devices", 0, "Devices that share the samples; 0 for all.")
_OUT = path_flags.define_path(
  "out", None, "FILE.jsonl: written batch by batch, resumed after a kill."
)
_JSON = flags.DEFINE_bool("json", False, "Print JSON lines.")
_TRACE = path_flags.define_path(
  "trace", None, "Replay of the samples: FILE.html, FILE.gif, FILE.txt."
)

# A replay holds every frame of every sample.
_MOST_TRACED = 64


def main() -> None:
  checkpoint = _CHECKPOINT.value or STORIES
  out, trace = _OUT.value, _TRACE.value
  if trace is not None:
    check_trace_path(trace)
    if _NUM.value > _MOST_TRACED:
      raise ValueError(f"--trace takes --num={_MOST_TRACED} at most, not {_NUM.value}")
  if out is not None:
    if _JSON.value or trace is not None:
      raise ValueError("--out excludes --json and --trace")
    check_path(out)
  prompts = Prompts(
    template=_TEMPLATE.value,
    file=_TEMPLATES.value,
    prefix=_PREFIX.value,
    suffix=_SUFFIX.value,
    length=_LENGTH.value,
  )
  settings = SamplerSettings(
    sampler=_SAMPLER.value,
    steps=_STEPS.value,
    schedule=_SCHEDULE.value,
    temperature=_TEMPERATURE.value,
    top_k=_TOP_K.value,
    top_p=_TOP_P.value,
  )
  model = sedd_jax.load(checkpoint, tokenizer=_TOKENIZER.value, tokenizer_eos=_EOS.value)
  model = dataclasses.replace(model, devices=_devices())
  request = SampleRequest(
    templates=prompts.templates(model.encode, model.length, model.encode_behind),
    num=_NUM.value,
    first=_FIRST.value,
    seed=_SEED.value,
    settings=settings,
    best_of=_BEST_OF.value,
  )
  if out is not None:
    _write(model, request, out)
  elif trace is not None:
    _write_trace(model, request, trace)
  else:
    _print(model, request)


def _print(model: LanguageModel, request: SampleRequest) -> None:
  calls = 0
  for numbers, made in generate_with_bar(model, request, batch=_BATCH.value):
    calls += made.calls
    for record in records(model, request, numbers, made):
      print(_shown(record), flush=True)
    if streams.reader_gone():
      return
  if not _JSON.value:
    app.note(f"{calls} calls of the network")


def _shown(record: Mapping[str, Any]) -> str:
  if not _JSON.value:
    return to_text(record)
  return to_line(record) if streams.is_unicode() else json.dumps(record)


def _write(model: LanguageModel, request: SampleRequest, path: Path) -> None:
  write_samples(model, request, path, batch=_BATCH.value, generate=generate_with_bar)
  print(f"{len(request.numbers)} samples in {path}")


def _write_trace(model: LanguageModel, request: SampleRequest, path: Path) -> None:
  if len(request.templates) > 1 or request.num > _BATCH.value or request.best_of > 1:
    raise ValueError("--trace takes one template, one batch and --best_of=1")
  ((_, made),) = generate_with_bar(model, request, batch=_BATCH.value, record=True)
  write_trace(Trace.of(made, model, request), path, model.tokenizer)
  print(f"{path}: {len(made.frames)} frames, {made.calls} calls, {made.seconds:.1f} s")


def _devices() -> list[Any]:
  there = jax.local_devices()
  if not 0 <= _DEVICES.value <= len(there):
    raise ValueError(f"--devices={_DEVICES.value} must lie in [0, {len(there)}]")
  return there[: _DEVICES.value or len(there)]


def run() -> None:
  app.run(main, USAGE)


if __name__ == "__main__":
  run()
