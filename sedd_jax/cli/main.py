"""`sedd VERB [flags]`: runs the main of a verb."""

import difflib
import importlib
import shutil
import sys
import textwrap

from sedd_jax.cli import streams

VERBS = {
  "prepare": "tokenize text once, into shards for runs of any size",
  "train": "train a model, or resume a run",
  "sweep": "train one config with many overrides, on any launcher, and print a table",
  "sample": "print text from a trained model",
  "demo": "fill in text on a page in the browser, or by POST /v1/infill",
  "info": "describe a run, a checkpoint or an export",
  "evaluate": "bound the perplexity of a trained model on held-out text",
  "grade": "grade files of samples by a judge and by counting",
  "frontier": "compare quality and calls of samplers with an autoregressive baseline",
  "infilling": "fill gaps in held-out text and grade the result",
  "report": "compare runs and their evaluations: tables, charts, samples on one page",
  "export": "write a trained model as a folder to publish, for this code or the original",
  "convert": "convert a model from any known layout to another",
  "plan": "compile a run for an absent TPU slice: memory, traffic, time",
}
_EXAMPLES = """
  sedd train --config=quickstart --workdir=runs/quickstart
  sedd info runs/quickstart
  sedd sample --checkpoint=runs/quickstart --num=4

`sedd VERB --help` lists a verb's flags, with examples."""


def main() -> None:
  """The console command."""
  streams.protect()
  verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
  if verb in ("--help", "-h", "help"):
    print(f"{_usage()}\n{_EXAMPLES}")
    return
  if verb not in VERBS:
    near = difflib.get_close_matches(verb, VERBS, n=1)
    print(
      f"sedd: unknown verb {verb!r}" + (f", did you mean {near[0]!r}?" if near else ""),
      _usage(),
      sep="\n",
      file=sys.stderr,
    )
    sys.exit(2)
  del sys.argv[1]
  importlib.import_module(f"sedd_jax.cli.{verb}").run()


def _usage() -> str:
  width = max(min(shutil.get_terminal_size((100, 24)).columns, 100), 30)
  lines = [
    textwrap.fill(what, width, initial_indent=f"  {verb:<9} ", subsequent_indent=" " * 12)
    for verb, what in VERBS.items()
  ]
  return "\n".join(["usage: sedd VERB [flags]", "", *lines])


if __name__ == "__main__":
  main()
