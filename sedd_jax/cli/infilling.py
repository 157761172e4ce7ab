"""sedd infilling: fills gaps in held-out text and grades the result."""

from absl import flags

from sedd_jax.cli import app, study_flags
from sedd_jax.reports.evaluations import grades_text
from sedd_jax.studies.infilling import InfillingConfig, infilling

USAGE = """Fills gaps in held-out text with diffusion models and a baseline, and grades the texts.

  sedd infilling --checkpoint=runs/sedd --baseline=runs/ar --judge=runs/judge --out=evaluations/fill

The gap is the second half of each row, the first half, or the middle. The baseline, an
autoregressive model, sees only the text before the gap (docs/quality.md).
"""
_FLAGS = study_flags.define(
  "checkpoint", "baseline", "tokenizer", "tokenizer_eos", "judge", "judge_tokenizer",
  "judge_tokenizer_eos", "reference", "files", "heldout_files",
  "num", "length", "batch_size", "seed", "out", "json",
)  # fmt: skip
_SAMPLER = flags.DEFINE_string("sampler", "tweedie", "Of the diffusion models.")
_STEPS = flags.DEFINE_integer("steps", 64, "Sampling steps.", lower_bound=1)


def main() -> None:
  app.require(USAGE, *(_FLAGS[name] for name in ("checkpoint", "baseline", "judge", "out")))
  config = InfillingConfig(
    **study_flags.settings(_FLAGS), sampler=_SAMPLER.value, steps=_STEPS.value
  )
  app.show(infilling(config, app.note), grades_text, as_json=_FLAGS["json"].value)


def run() -> None:
  app.run(main, USAGE)


if __name__ == "__main__":
  run()
