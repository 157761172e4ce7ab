"""Flags of the studies, which the verbs `grade`, `frontier` and `infilling` share."""

from collections.abc import Callable, Mapping
from typing import Any

from absl import flags

from sedd_jax.cli.path_flags import define_model, define_path, define_paths, define_source

flags.disclaim_key_flags()  # They belong to the verb that defines them here.


class _Numbers(flags.BaseListParser):
  """Parses positive numbers with commas between."""

  def __init__(self, kind: type[int] | type[float]):
    super().__init__(",", "numbers")
    self._kind = kind

  def parse(self, argument: Any) -> list[Any]:
    try:
      found = [self._kind(word) for word in super().parse(argument)]
    except ValueError:
      found = []
    if not found or min(found) <= 0:
      raise ValueError("must be positive numbers with commas between")
    return found


def _define_numbers(kind: type[int] | type[float]) -> Callable[..., flags.FlagHolder]:
  return lambda name, default, text: flags.DEFINE(_Numbers(kind), name, default, text)


_TOKENIZER = "gpt2, a tokenizer.json, a folder or a hub id, for weights without one."
_EOS = "End-of-text token of that tokenizer; by default found in its file."
_STEPS, _TEMPERATURES = "4,8,16,32,64", "0.6,0.8,0.9,1,1.1,1.2"
# How a flag is defined, its default and its help.
_FLAGS: Mapping[str, tuple[Callable[..., Any], Any, str]] = {
  "samples": (define_paths, None, "Files of samples: .jsonl, or .txt with one a line."),
  "checkpoint": (define_paths, None, "Diffusion models, separated by commas."),
  "baseline": (define_model, None, "Autoregressive model to compare with."),
  "tokenizer": (flags.DEFINE_string, None, _TOKENIZER),
  "tokenizer_eos": (flags.DEFINE_string, "", _EOS),
  "judge": (define_model, None, "Autoregressive run, or GPT-2 by folder or hub id."),
  "judge_tokenizer": (flags.DEFINE_string, None, _TOKENIZER),
  "judge_tokenizer_eos": (flags.DEFINE_string, "", _EOS),
  "reference": (define_source, "", "Real text: a run or files. Default: the judge's."),
  "files": (define_source, "", "Where the text of the runs is now, if data.files has moved."),
  "heldout_files": (define_source, "", "The same for data.heldout_files."),
  "length": (flags.DEFINE_integer, None, "Judge's tokens per sample. Default: the shortest's."),
  "samplers": (flags.DEFINE_list, ["tweedie"], "Separated by commas. Default: tweedie."),
  "steps": (_define_numbers(int), _STEPS, f"Numbers of sampling steps. Default: {_STEPS}."),
  "temperatures": (
    _define_numbers(float), _TEMPERATURES, f"Of the baseline. Default: {_TEMPERATURES}."
  ),
  "num": (flags.DEFINE_integer, 256, "Samples of each variant, or rows to fill in."),
  "batch_size": (flags.DEFINE_integer, 32, "Sequences per call of the network."),
  "seed": (flags.DEFINE_integer, 0, "Of everything random."),
  "out": (define_path, None, "Folder of the result: new, or one to resume."),
  "json": (flags.DEFINE_bool, False, "Print one JSON object."),
}  # fmt: skip


def define(*names: str) -> dict[str, flags.FlagHolder]:
  """Flags of the calling verb, by their names."""
  found = {}
  for name in names:
    defined, default, text = _FLAGS[name]
    found[name] = defined(name, default, text)
  return found


def settings(holders: Mapping[str, flags.FlagHolder]) -> dict[str, Any]:
  """Values of flags by the names of a `StudyConfig`, for all but `json`."""
  values = {name: holder.value for name, holder in holders.items() if name != "json"}
  if "checkpoint" in values:
    values["checkpoints"] = values.pop("checkpoint") or ()
  return values
