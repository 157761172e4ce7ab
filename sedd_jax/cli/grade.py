"""sedd grade: grades files of samples."""

from sedd_jax.cli import app, study_flags
from sedd_jax.reports.evaluations import grades_text
from sedd_jax.studies.grades import GradeConfig, grade

USAGE = """Grades samples by a judge, an autoregressive run or GPT-2, and by counting.

  sedd grade --samples=a.jsonl,b.jsonl --judge=runs/ar --out=evaluations/samples
  sedd grade --samples=a.jsonl --judge=openai-community/gpt2-large --reference=runs/sedd --json

A perplexity alone says little: repeated words have a low one. docs/quality.md explains the table.
"""
_FLAGS = study_flags.define(
  "samples", "judge", "judge_tokenizer", "judge_tokenizer_eos", "reference", "files",
  "heldout_files", "length", "batch_size", "out", "json",
)  # fmt: skip


def main() -> None:
  app.require(USAGE, _FLAGS["samples"], _FLAGS["judge"])
  report = grade(GradeConfig(**study_flags.settings(_FLAGS)), app.note)
  app.show(report, grades_text, as_json=_FLAGS["json"].value)


def run() -> None:
  app.run(main, USAGE, takes="samples")


if __name__ == "__main__":
  run()
