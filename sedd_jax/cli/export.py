"""sedd export: writes a trained model as a folder to publish."""

from absl import flags

from sedd_jax.cli import app, path_flags
from sedd_jax.interop.export import LAYOUTS, convert
from sedd_jax.interop.weights import DTYPES

USAGE = """Writes the moving average of a run's weights, its config, tokenizer and a model card.

  sedd export --checkpoint=runs/quickstart --out=exports/quickstart
  sedd export --checkpoint=runs/owt --out=exports/owt-pytorch --layout=original
  sedd export --checkpoint=runs/quickstart --out=exports/small --weights=float16
"""
_CHECKPOINT = path_flags.define_model("checkpoint", None, "Run directory.")
_OUT = path_flags.define_path("out", None, "Folder to write; new or empty.")
_LAYOUT = flags.DEFINE_enum(
  "layout", LAYOUTS[0], LAYOUTS, "original: what the original PyTorch code loads."
)
_WEIGHTS = flags.DEFINE_enum(
  "weights", DTYPES[0], DTYPES, "Dtype on disk; all but float32 round, to half the bytes."
)


def main() -> None:
  checkpoint, out = app.require(USAGE, _CHECKPOINT, _OUT)
  folder = convert(checkpoint, out, layout=_LAYOUT.value, weights=_WEIGHTS.value)
  print(f"wrote {folder}: {', '.join(sorted(file.name for file in folder.iterdir()))}")


def run() -> None:
  app.run(main, USAGE)


if __name__ == "__main__":
  run()
