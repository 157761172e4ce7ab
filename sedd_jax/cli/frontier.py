"""sedd frontier: quality of samples against calls of the network."""

from sedd_jax.cli import app, study_flags
from sedd_jax.reports.evaluations import grades_text
from sedd_jax.studies.frontier import FrontierConfig, frontier

USAGE = """Samples diffusion models in many ways and grades all samples against a baseline.

  sedd frontier --checkpoint=runs/sedd --baseline=runs/ar --judge=runs/judge \\
    --samplers=tweedie,euler --steps=4,16,64 --out=evaluations/frontier

The baseline is an autoregressive model at several temperatures. Quality is compared at equal token
entropy (docs/quality.md). The same command resumes a killed one.
"""
_FLAGS = study_flags.define(
  "checkpoint", "baseline", "tokenizer", "tokenizer_eos", "judge", "judge_tokenizer",
  "judge_tokenizer_eos", "reference", "files", "heldout_files",
  "samplers", "steps", "temperatures", "num", "length",
  "batch_size", "seed", "out", "json",
)  # fmt: skip


def main() -> None:
  app.require(USAGE, *(_FLAGS[name] for name in ("checkpoint", "baseline", "judge", "out")))
  report = frontier(FrontierConfig(**study_flags.settings(_FLAGS)), app.note)
  app.show(report, grades_text, as_json=_FLAGS["json"].value)


def run() -> None:
  app.run(main, USAGE)


if __name__ == "__main__":
  run()
