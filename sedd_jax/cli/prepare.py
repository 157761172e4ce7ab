"""sedd prepare: text to token shards, once."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from sedd_jax.cli import app, path_flags
from sedd_jax.data.config import DataConfig
from sedd_jax.data.detokenizers import DETOKENIZERS
from sedd_jax.data.faults import POLICIES
from sedd_jax.data.prepare import SHARD, prepare
from sedd_jax.data.prepared import check, open_prepared
from sedd_jax.data.progress import TokenProgress
from sedd_jax.data.tokenizers import TOKENIZERS
from sedd_jax.reports.prepared import faults_text, prepared_text, sound_text

USAGE = """Tokenizes text once, into shards that runs of any size read at once.

  sedd prepare --files='texts/*.jsonl.zst' --tokenizer=gpt2 --out=prepared/texts
  sedd prepare --files=hf:Skylion007/openwebtext --heldout_files=held/*.txt --out=prepared/owt
  sedd prepare --files='tfds:lm1b@train' --heldout_files='tfds:lm1b@test' --out=DIR
  sedd prepare --check=prepared/texts

Then train on them: --config.data.files=prepared/texts. The same command resumes what was stopped;
the shards are the same for any number of workers. --check reads every byte and compares hashes; it
exits with 2 if a file differs from what was written.
"""
_FILES = path_flags.define_source("files", None, "Text: globs, tfds:NAME@SPLIT or hf:NAME@SPLIT.")
_HELDOUT = path_flags.define_source(
  "heldout_files", "", "Held-out text; else --split cuts --files."
)
_SPLIT = flags.DEFINE_list(
  "split", ["0.95", "1.0"], "Shares at which training text and held-out text end."
)
_FIELD = flags.DEFINE_string("text_field", "text", "The field of a record that holds the text.")
_TOKENIZER = flags.DEFINE_string("tokenizer", "gpt2", TOKENIZERS.replace("'", "") + ".")
_EOS = flags.DEFINE_string(
  "tokenizer_eos", "", "End-of-text token of a tokenizer.json; by default found in the file."
)
_DETOKENIZER = flags.DEFINE_enum(
  "detokenizer", "none", list(DETOKENIZERS), "Undoes the spaces of a benchmark."
)
_ON_FAULT = flags.DEFINE_enum(
  "on_fault", "fail", list(POLICIES), "What to do with text that cannot be read."
)
_OUT = path_flags.define_path("out", None, "Folder to write: new, or one to resume.")
_WORKERS = flags.DEFINE_integer("workers", os.cpu_count() or 1, "Processes that tokenize.")
_SHARD = flags.DEFINE_integer("shard_characters", SHARD, "Characters in a shard.")
_CHECK = path_flags.define_path("check", None, "Folder to verify instead.")


def main() -> int:
  if _CHECK.value is not None:
    return _verify(_CHECK.value)
  files, out = app.require(USAGE, _FILES, _OUT)
  config = DataConfig(
    files=files,
    heldout_files=_HELDOUT.value,
    split=_shares(_SPLIT.value),
    text_field=_FIELD.value,
    tokenizer=_TOKENIZER.value,
    tokenizer_eos=_EOS.value,
    detokenizer=_DETOKENIZER.value,
    on_fault=_ON_FAULT.value,
  )
  began = time.monotonic()
  with TokenProgress() as progress:
    manifest = prepare(
      config,
      out,
      workers=_WORKERS.value,
      shard=_SHARD.value,
      say=print,
      on_progress=progress.advance,
    )
  print(prepared_text(out, manifest, time.monotonic() - began))
  return 0


def _shares(words: Sequence[str]) -> tuple[float, float]:
  try:
    first, last = map(float, words)
  except ValueError:
    raise ValueError(f"--split={','.join(words)} must be two shares, like 0.95,1.0") from None
  return first, last


def _verify(folder: Path) -> int:
  if faults := check(str(folder)):
    print(faults_text(folder, faults))
    return 2
  print(sound_text(folder, open_prepared(str(folder)).manifest))
  return 0


def run() -> None:
  app.run(main, USAGE)


if __name__ == "__main__":
  run()
