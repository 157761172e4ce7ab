"""sedd convert: converts a model from any layout to another."""

from absl import flags

from sedd_jax.cli import app, path_flags
from sedd_jax.interop.export import LAYOUTS, convert
from sedd_jax.interop.weights import DTYPES

USAGE = """Reads a run, an export, or weights of the original, MDLM or RADD; writes a folder.

  sedd convert --from=louaaron/sedd-small --to=sedd-small --tokenizer=gpt2
  sedd convert --from=sedd-small --to=sedd-small-pytorch --layout=original
"""
_FROM = path_flags.define_model("from", None, "Folder in any layout, or hub id (which downloads).")
_TO = path_flags.define_path("to", None, "Folder to write; new or empty.")
_LAYOUT = flags.DEFINE_enum(
  "layout", LAYOUTS[0], LAYOUTS, "original: what the original PyTorch code loads."
)
_WEIGHTS = flags.DEFINE_enum(
  "weights", DTYPES[0], DTYPES, "Dtype on disk; all but float32 round, to half the bytes."
)
_TOKENIZER = flags.DEFINE_string(
  "tokenizer", None, "gpt2, a tokenizer.json, a folder or a hub id, for weights without one."
)
_EOS = flags.DEFINE_string(
  "tokenizer_eos", "", "Its end-of-text token; by default found in its file."
)


def main() -> None:
  source, target = app.require(USAGE, _FROM, _TO)
  folder = convert(
    source,
    target,
    layout=_LAYOUT.value,
    weights=_WEIGHTS.value,
    tokenizer=_TOKENIZER.value,
    tokenizer_eos=_EOS.value,
  )
  print(f"wrote {folder}: {', '.join(sorted(file.name for file in folder.iterdir()))}")


def run() -> None:
  app.run(main, USAGE)


if __name__ == "__main__":
  run()
