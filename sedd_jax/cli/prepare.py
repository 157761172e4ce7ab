"""sedd prepare: text to token shards, once."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from sedd_jax.cli import app
from sedd_jax.data.config import DataConfig
from sedd_jax.data.detokenizers import DETOKENIZERS
from sedd_jax.data.faults import POLICIES, describe
from sedd_jax.data.prepare import SHARD, prepare
from sedd_jax.data.prepared import MANIFEST, SIDES, check, open_prepared
from sedd_jax.data.tokenizers import TOKENIZERS
from sedd_jax.training.lock import FolderLock

USAGE = """Tokenizes text once, into shards that runs of any size read at once.

  sedd prepare --files='texts/*.jsonl.zst' --tokenizer=gpt2 --out=prepared/texts
  sedd prepare --files=hf:Skylion007/openwebtext --heldout_files=held/*.txt --out=prepared/owt
  sedd prepare --files='tfds:lm1b@train' --heldout_files='tfds:lm1b@test' --out=DIR
  sedd prepare --check=prepared/texts

Then train on them: --config.data.files=prepared/texts. The same command goes on with what was
stopped; the shards are the same for any number of workers. --check reads every byte and compares
hashes; it exits with 2 if a file is not what was written.
"""
_FILES = flags.DEFINE_string("files", None, "Text: globs, tfds:NAME@SPLIT or hf:NAME@SPLIT.")
_HELDOUT = flags.DEFINE_string("heldout_files", "", "Held-out text; else --split cuts --files.")
_SPLIT = flags.DEFINE_list(
  "split", ["0.95", "1.0"], "Shares at which training text and held-out text end."
)
_FIELD = flags.DEFINE_string("text_field", "text", "The field of a record that holds the text.")
_TOKENIZER = flags.DEFINE_string("tokenizer", "gpt2", TOKENIZERS.replace("'", "") + ".")
_DETOKENIZER = flags.DEFINE_enum(
  "detokenizer", "none", list(DETOKENIZERS), "Undoes the spaces of a benchmark."
)
_ON_FAULT = flags.DEFINE_enum(
  "on_fault", "fail", list(POLICIES), "What to do with text that cannot be read."
)
_OUT = flags.DEFINE_string("out", None, "Folder to write: new, or one to go on with.")
_WORKERS = flags.DEFINE_integer("workers", os.cpu_count() or 1, "Processes that tokenize.")
_SHARD = flags.DEFINE_integer("shard_characters", SHARD, "Characters in a shard.")
_CHECK = flags.DEFINE_string("check", None, "Folder to verify instead.")


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
    detokenizer=_DETOKENIZER.value,
    on_fault=_ON_FAULT.value,
  )
  folder, began = Path(out).expanduser(), time.monotonic()
  with _Bar() as bar:
    manifest = prepare(
      config,
      folder,
      workers=_WORKERS.value,
      shard=_SHARD.value,
      lock=lambda folder: FolderLock(folder, print, "--out"),
      on_progress=bar.advance,
    )
  print(_summary(folder, time.monotonic() - began, manifest))
  return 0


def _shares(words: Sequence[str]) -> tuple[float, float]:
  try:
    first, last = map(float, words)
  except ValueError:
    raise ValueError(f"--split={','.join(words)} must be two shares, like 0.95,1.0") from None
  return first, last


def _summary(folder: Path, seconds: float, manifest: Any) -> str:
  lines = [f"{folder}: {manifest['corpus']['name']}, in {seconds:.1f} s"]
  for side in SIDES:
    of = manifest[side]
    lines.append(
      f"  {side:<8} {of['tokens']:,} tokens, {of['documents']:,} documents, "
      f"{of['characters']:,} characters, {len(of['shards'])} shard(s)"
    )
  if left_out := describe(**manifest["left_out"]):
    lines.append(left_out)
  lines.append(f"Next: sedd train --config=... --config.data.files={folder}")
  return "\n".join(lines)


def _verify(folder: str) -> int:
  if wrong := check(folder):
    print("\n".join(wrong))
    print(
      f"{len(wrong)} fault(s). Delete {Path(folder) / MANIFEST}, and give the command that made "
      "the folder again: what is whole stays"
    )
    return 2
  manifest = open_prepared(folder).manifest
  tokens = " and ".join(f"{manifest[side]['tokens']:,} {side}" for side in SIDES)
  print(f"{folder} is whole: {tokens} tokens; every file is what was written")
  return 0


class _Bar:
  """A live line on a terminal, a line every quarter of a minute elsewhere; a context manager."""

  _INTERVAL = 15.0

  def __init__(self):
    console = Console(highlight=False, soft_wrap=True)
    self._console, self._last = console, time.monotonic()
    self._began, self._characters, self._tokens = time.monotonic(), 0, 0
    self._progress = Progress(
      TextColumn("{task.description}"),
      BarColumn(),
      TimeElapsedColumn(),
      console=console,
      disable=not console.is_terminal,
    )
    # The size of the text is not known before its end.
    self._task = self._progress.add_task("reading", total=None)

  def __enter__(self) -> "_Bar":
    self._progress.start()
    return self

  def __exit__(self, *exception) -> None:
    self._progress.stop()

  def advance(self, characters: int, tokens: int) -> None:
    self._characters += characters
    self._tokens += tokens
    now = time.monotonic()
    rate = self._tokens / max(now - self._began, 1e-9)
    line = (
      f"{self._characters / 1e6:,.0f} M characters  {self._tokens / 1e6:,.1f} M tokens  "
      f"{rate / 1e6:,.2f} M tok/s"
    )
    self._progress.update(self._task, description=line)
    if not self._console.is_terminal and now - self._last >= self._INTERVAL:
      self._last = now
      self._console.print(line)


def run() -> None:
  app.run(main, USAGE)


if __name__ == "__main__":
  run()
