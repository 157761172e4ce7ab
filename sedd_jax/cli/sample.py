"""sedd sample: text from a trained model."""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags

import sedd_jax
from sedd_jax.cli import app
from sedd_jax.diffusion import SAMPLERS
from sedd_jax.generation.generator import Generation, OnProgress
from sedd_jax.generation.model import LanguageModel
from sedd_jax.generation.samples import Order, SampleFile, check_path, generate, records, to_line
from sedd_jax.generation.settings import SamplerSettings
from sedd_jax.generation.templates import Template, between, parse_template
from sedd_jax.generation.traces import Trace, check_trace_path, write_trace

USAGE = """Prints samples, fills in templates, or writes many samples to a file.

  sedd sample --checkpoint=runs/quickstart --num=4 --steps=64 --seed=0
  sedd sample --checkpoint=runs/quickstart --template='The [[20]] statement is [[*]].' --length=80
  sedd sample --checkpoint=runs/quickstart --sampler=remdm:cap=0.05 --schedule=tokens --top_p=0.9
  sedd sample --checkpoint=runs/quickstart --trace=page.html
  sedd sample --checkpoint=runs/quickstart --num=10000 --batch=64 --out=samples.jsonl
"""
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Run directory, folder of weights or hub id.")
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
_TEMPLATES = flags.DEFINE_string("templates", None, "File of templates, one a line.")
_TOKENIZER = flags.DEFINE_string(
  "tokenizer", None, "gpt2 or gpt2:FOLDER, for weights that come without one."
)
_BATCH = flags.DEFINE_integer("batch", 16, "Samples at a time, on all devices together.")
_DEVICES = flags.DEFINE_integer("devices", 0, "Devices that share the samples; 0 for all.")
_OUT = flags.DEFINE_string("out", None, "FILE.jsonl: written batch by batch, resumed after a kill.")
_JSON = flags.DEFINE_bool("json", False, "Print JSON lines.")
_TRACE = flags.DEFINE_string("trace", None, "Replay of the samples: FILE.html, FILE.gif, FILE.txt.")

# A replay holds every frame of every sample.
_MOST_TRACED = 64


def main() -> None:
  (checkpoint,) = app.require(USAGE, _CHECKPOINT)
  if _TRACE.value is not None:
    check_trace_path(Path(_TRACE.value))
    if _NUM.value > _MOST_TRACED:
      raise ValueError(f"--trace takes --num={_MOST_TRACED} at most, not {_NUM.value}")
  if _OUT.value is not None and (_JSON.value or _TRACE.value):
    raise ValueError("--out excludes --json and --trace")
  if _OUT.value is not None:
    check_path(Path(_OUT.value))
  settings = SamplerSettings(
    sampler=_SAMPLER.value,
    steps=_STEPS.value,
    schedule=_SCHEDULE.value,
    temperature=_TEMPERATURE.value,
    top_k=_TOP_K.value,
    top_p=_TOP_P.value,
  )
  model = sedd_jax.load(checkpoint, tokenizer=_TOKENIZER.value)
  model = dataclasses.replace(model, devices=_devices())
  order = Order(
    templates=_templates(model),
    num=_NUM.value,
    first=_FIRST.value,
    seed=_SEED.value,
    settings=settings,
    best_of=_BEST_OF.value,
  )
  if _OUT.value is not None:
    _write(model, order, Path(_OUT.value))
  elif _TRACE.value is not None:
    _write_trace(model, order, Path(_TRACE.value))
  else:
    _print(model, order)


def _print(model: LanguageModel, order: Order) -> None:
  made_calls = 0
  for numbers, made in _batches(model, order):
    made_calls += made.calls
    for line in records(model, order, numbers, made):
      if _JSON.value:
        print(to_line(line), flush=True)
        continue
      shown = line["text"] if model.tokenizer is not None else " ".join(map(str, line["tokens"]))
      print(f"--- sample {line['index']} (seed {order.seed}, {made.steps} steps)\n{shown}")
  if not _JSON.value:
    print(f"{made_calls} calls of the network", file=sys.stderr)


def _write(model: LanguageModel, order: Order, path: Path) -> None:
  file = SampleFile(path, model, order)
  if file.there:
    print(f"going on after the {file.there} samples that are there", file=sys.stderr)
  for numbers, made in _batches(model, order, skip=file.there):
    file.write(numbers, made)
  file.close()
  print(f"{len(order.numbers)} samples in {path}")


def _write_trace(model: LanguageModel, order: Order, path: Path) -> None:
  if len(order.templates) > 1 or order.num > _BATCH.value or order.best_of > 1:
    raise ValueError("--trace takes one template, one batch and --best_of=1")
  ((_, made),) = _batches(model, order, record=True)
  trace = Trace(
    tokens=made.frames,
    given=made.given,
    times=made.times,
    calls=made.calls_by_frame,
    seconds=made.seconds,
    mask_id=model.mask_id,
    settings={
      "checkpoint": str(model.info["source"]),
      "sampler": order.settings.sampler,
      "schedule": order.settings.schedule,
      "steps": made.steps,
      "seed": order.seed,
    },
  )
  write_trace(trace, path, model.tokenizer)
  print(f"{path}: {len(made.frames)} frames, {made.calls} calls, {made.seconds:.1f} s")


def _batches(
  model: LanguageModel, order: Order, *, skip: int = 0, record: bool = False
) -> Iterator[tuple[Sequence[int], Generation]]:
  """Batches, with a bar of progress where somebody looks."""
  with _bar(len(order.numbers), skip) as (told, advance):
    made = generate(model, order, batch=_BATCH.value, skip=skip, record=record, on_progress=told)
    for numbers, generation in made:
      yield numbers, generation
      advance(len(numbers))


@contextlib.contextmanager
def _bar(samples: int, there: int) -> Iterator[tuple[OnProgress | None, Callable[[int], None]]]:
  if not sys.stderr.isatty():
    yield None, lambda done: None
    return
  from rich.console import Console
  from rich.progress import Progress

  with Progress(console=Console(stderr=True), transient=True) as progress:
    whole = progress.add_task("samples", total=samples, completed=there)
    steps = progress.add_task("steps", total=1.0)
    yield (
      lambda made, share: progress.update(steps, completed=share),
      lambda done: progress.advance(whole, done),
    )


def _templates(model: LanguageModel) -> list[Template]:
  ends = bool(_PREFIX.value or _SUFFIX.value)
  if (_TEMPLATE.value is not None) + (_TEMPLATES.value is not None) + ends > 1:
    raise ValueError("give --template, --templates, or --prefix and --suffix: only one of them")
  sizes = {"length": _LENGTH.value, "longest": model.length}
  if _TEMPLATE.value is not None:
    texts = [_TEMPLATE.value]
  elif _TEMPLATES.value is None:
    return [between(_PREFIX.value, _SUFFIX.value, model.encode, **sizes)]
  else:
    lines = Path(_TEMPLATES.value).read_text(encoding="utf-8").split("\n")
    texts = [line for line in lines if line.strip()]
    if not texts:
      raise ValueError(f"--templates={_TEMPLATES.value} has no line with a template")
  return [parse_template(text, model.encode, **sizes) for text in texts]


def _devices() -> list[Any]:
  there = jax.local_devices()
  if not 0 <= _DEVICES.value <= len(there):
    raise ValueError(f"--devices={_DEVICES.value} must lie in [0, {len(there)}]")
  return there[: _DEVICES.value or len(there)]


def run() -> None:
  app.run(main, USAGE)


if __name__ == "__main__":
  run()
