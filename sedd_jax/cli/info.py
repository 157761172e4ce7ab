"""sedd info: what a run, a checkpoint or an export is."""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from absl import flags

from sedd_jax.cli import app
from sedd_jax.cli.text import row
from sedd_jax.interop.info import describe

USAGE = """Says what a run directory, one of its checkpoints, an export or a folder of weights is.

  sedd info runs/quickstart
  sedd info runs/quickstart/checkpoints/1200 --all
  sedd info --checkpoint=exports/quickstart --json

It reads small files only and writes nothing, so that it can be asked while a run goes.
"""
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "The folder; its name alone does too.")
_ALL = flags.DEFINE_bool("all", False, "Every field of the config as well.")
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object, config and versions included.")

_OURS = ("run", "checkpoint", "export")


def main() -> None:
  (checkpoint,) = app.require(USAGE, _CHECKPOINT)
  # Shapes are counted, nothing is computed: a device that a run holds is left alone.
  jax.config.update("jax_platforms", "cpu")
  found = describe(Path(checkpoint).expanduser())
  if _JSON.value:
    print(json.dumps(found, ensure_ascii=False))
    return
  print(_title(found))
  for name, value in _rows(found):
    print(row(name, value, sys.stdout))
  if _ALL.value or found["kind"] not in _OURS:  # Of other layouts nothing else is said.
    print("\n".join(sorted(_fields(found["config"]))))


def _title(found: Mapping[str, Any]) -> str:
  title = f"{found['path']}: {found['kind']}"
  if found["kind"] == "run":
    if found["step"] is None:
      return f"{title}, not saved yet, of {found['steps']:,} steps"
    done = "finished" if found["finished"] else "not finished"
    return f"{title}, {done}: saved at step {found['step']:,} of {found['steps']:,}"
  return title if found.get("step") is None else f"{title}, step {found['step']:,}"


def _rows(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
  """Names and values, of what is known."""
  config = found["config"]
  if found.get("checkpoints"):
    yield "checkpoints", ", ".join(map(str, found["checkpoints"]))
  if found["parameters"] is not None:
    yield "parameters", f"{found['parameters']:,}"
  if found["kind"] in _OURS:
    model = config["model"]
    shape = f"width {model['width']}, {model['blocks']} block(s), {model['heads']} heads"
    yield "model", f"{shape}, {model['dtype']}"
    yield _kind(config)
    yield "sequences", f"{found['length']} tokens"
  if found.get("vocab_size"):
    yield "tokenizer", f"{found['tokenizer'] or 'not known'}, {found['vocab_size']:,} tokens"
  if corpus := found.get("corpus"):
    yield "corpus", f"{corpus['name']}" + _sized(corpus)
  if found.get("origin"):
    yield "origin", str(found["origin"])
  if config.get("init_from"):
    yield "began from", config["init_from"]
  if bound := found.get("bound"):
    text = "in the report at the end" if bound["at_end"] else "on the way"
    figures = (
      f"{bound['bits_per_char_strict']:.3f} ± {bound['bits_per_char_strict_stderr']:.3f} bits/char "
      f"strict, {bound['bits_per_char_paper']:.3f} paper"
    )
    if _is_causal(config):
      figures = f"{bound['bits_per_char_strict']:.3f} bits/char"
    yield (
      "cross entropy" if _is_causal(config) else "bound",
      f"{figures}, at step {bound['step']:,}, {text}",
    )
  if last := found.get("last"):
    yield "training", ", ".join(_training(last))
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(last["time"]))
    yield "last metrics", f"{when}, step {last['step']:,}"
  if versions := found.get("versions"):
    names = ("sedd-jax", "jax", "python", "commit")
    shown = (f"{name} {versions[name][:12]}" for name in names if name in versions)
    yield "versions", ", ".join(shown)
  yield "on disk", f"{found['bytes'] / 2**20:,.1f} MiB"
  for fault in found.get("config_faults", ()):
    yield "not known here", fault


def _is_causal(config: Mapping[str, Any]) -> bool:
  return config.get("objective") == "autoregressive"


def _kind(config: Mapping[str, Any]) -> tuple[str, str]:
  """What sort of model it is: of an autoregressive one, `diffusion` means nothing."""
  if _is_causal(config):
    return "objective", "autoregressive"
  diffusion = config["diffusion"]
  said = f"{diffusion['process']}, {diffusion['noise']} noise, {diffusion['parameterization']}"
  if config.get("objective") == "discrete_time":
    said += f", {diffusion['timesteps']:,} steps"
  return "diffusion", said


def _sized(corpus: Mapping[str, Any]) -> str:
  return f" ({corpus['characters']:,} characters)" if "characters" in corpus else ""


def _training(last: Mapping[str, Any]) -> Iterator[str]:
  if "train_bits_per_char" in last:
    yield f"{last['train_bits_per_char']:.3f} bits/char"
  if "tokens_per_second" in last:
    yield f"{last['tokens_per_second']:,.0f} tokens/s"
  if "mfu" in last:
    yield f"MFU {last['mfu']:.1%}"


def _fields(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
  for key, value in config.items():
    if isinstance(value, Mapping):
      yield from _fields(value, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key} = {value!r}"


def run() -> None:
  app.run(main, USAGE, takes="checkpoint")


if __name__ == "__main__":
  run()
