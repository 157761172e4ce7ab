"""sedd demo: a page and an endpoint on which a trained model fills in text."""

from absl import flags

import sedd_jax
from sedd_jax.cli import app, path_flags
from sedd_jax.interop.load import STORIES
from sedd_jax.ranges import check

USAGE = """Serves a page on which a trained model fills in text, and POST /v1/infill for programs.

  sedd demo
  sedd demo --checkpoint=runs/quickstart
  sedd demo --checkpoint=exports/quickstart --port=0
  curl http://127.0.0.1:8000/v1/infill -d '{"template": "The [[20]] is [[*]].", "seed": 1}'

It answers this machine alone unless --host says otherwise. docs/demo.md has the endpoint's keys.
"""
_CHECKPOINT = path_flags.define_model(
  "checkpoint",
  None,
  "Run directory, folder of weights or hub id; by default the model that comes with the package.",
)
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address or name to bind to; 0.0.0.0 for all.")
_PORT = flags.DEFINE_integer("port", 8000, "Port; 0 takes a free one, which is printed.")
_TOKENIZER = flags.DEFINE_string(
  "tokenizer", None, "gpt2, a tokenizer.json, a folder or a hub id, for weights without one."
)
_EOS = flags.DEFINE_string(
  "tokenizer_eos", "", "Its end-of-text token; by default found in its file."
)


def main() -> None:
  check("--port", _PORT.value, 0, 65_535)
  try:
    from sedd_jax.demo import server
  except ModuleNotFoundError as error:
    raise ImportError(f"{error}; pip install 'sedd-jax[demo]' has what sedd demo needs") from error
  bound = server.bind(_HOST.value, _PORT.value)  # First, so that a port in use is known at once.
  checkpoint = _CHECKPOINT.value or STORIES
  model = sedd_jax.load(checkpoint, tokenizer=_TOKENIZER.value, tokenizer_eos=_EOS.value)
  server.serve(model, bound, host=_HOST.value, note=app.note)


def run() -> None:
  app.run(main, USAGE)


if __name__ == "__main__":
  run()
