"""The description of a run, a checkpoint or an export, for a terminal."""

import collections
import time
from collections.abc import Iterator, Mapping
from typing import Any

# Kinds of folders that this package writes.
OURS = ("run", "checkpoint", "export")


def title(found: Mapping[str, Any]) -> str:
  """What the folder is, in a line."""
  text = f"{found['path']}: {found['kind']}"
  if found["kind"] == "run":
    if found["step"] is None:
      return f"{text}, not saved yet, of {found['steps']:,} steps"
    done = "finished" if found["finished"] else "not finished"
    return f"{text}, {done}: saved at step {found['step']:,} of {found['steps']:,}"
  return text if found.get("step") is None else f"{text}, step {found['step']:,}"


def rows(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
  """Names and values of what is known."""
  config = found["config"]
  if found.get("checkpoints"):
    yield "checkpoints", ", ".join(map(str, found["checkpoints"]))
  if found["parameters"] is not None:
    yield "parameters", f"{found['parameters']:,}"
  if found["kind"] in OURS:
    model = _section(config, "model")
    shape = f"width {model['width']}, {model['blocks']} block(s), {model['heads']} heads"
    yield "model", f"{shape}, {model['dtype']}"
    yield _kind(config)
    yield "sequences", f"{found['length']} tokens"
  if found.get("vocab_size"):
    yield "tokenizer", f"{found['tokenizer'] or 'not known'}, {found['vocab_size']:,} tokens"
  if corpus := found.get("corpus"):
    yield "corpus", f"{corpus.get('name', 'unnamed')}" + _sized(corpus)
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
    yield "not usable", fault


def fields(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
  """A line for each field of a config."""
  for key, value in config.items():
    if isinstance(value, Mapping):
      yield from fields(value, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key} = {value!r}"


def _is_causal(config: Mapping[str, Any]) -> bool:
  return config.get("objective") == "autoregressive"


def _kind(config: Mapping[str, Any]) -> tuple[str, str]:
  """The kind of the model; the section `diffusion` means nothing for an autoregressive one."""
  if _is_causal(config):
    return "objective", "autoregressive"
  diffusion = _section(config, "diffusion")
  text = f"{diffusion['process']}, {diffusion['noise']} noise, {diffusion['parameterization']}"
  if config.get("objective") == "discrete_time":
    text += f", {diffusion['timesteps']:,} steps"
  return "diffusion", text


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
  """A section of a config that may lack it or some of its fields."""
  section = config.get(name)
  return collections.defaultdict(lambda: "?", section if isinstance(section, Mapping) else {})


def _sized(corpus: Mapping[str, Any]) -> str:
  return f" ({corpus['characters']:,} characters)" if "characters" in corpus else ""


def _training(last: Mapping[str, Any]) -> Iterator[str]:
  if "train_bits_per_char" in last:
    yield f"{last['train_bits_per_char']:.3f} bits/char"
  if "tokens_per_second" in last:
    yield f"{last['tokens_per_second']:,.0f} tokens/s"
  if "mfu" in last:
    yield f"MFU {last['mfu']:.1%}"
