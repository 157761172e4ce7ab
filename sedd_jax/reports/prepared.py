"""Prepared corpora as text for a terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sedd_jax.data.faults import describe
from sedd_jax.data.patterns import MANIFEST
from sedd_jax.data.prepared import SIDES
from sedd_jax.files.paths import command


def prepared_text(folder: Path, manifest: Mapping[str, Any], seconds: float) -> str:
  """What `sedd prepare` has written into a folder."""
  lines = [f"{folder}: {manifest['corpus']['name']}, in {seconds:.1f} s"]
  for side in SIDES:
    of = manifest[side]
    lines.append(
      f"  {side:<8} {of['tokens']:,} tokens, {of['documents']:,} documents, "
      f"{of['characters']:,} characters, {len(of['shards'])} shard(s)"
    )
  if left_out := describe(**manifest["left_out"]):
    lines.append(left_out)
  lines += manifest.get("notes", [])
  if not manifest["heldout"]["tokens"]:
    lines.append(
      "0 held-out tokens: a run on this folder alone has nothing to evaluate on. Name held-out "
      "text by --heldout_files, or by --config.data.heldout_files of the run, or leave more by "
      "--split"
    )
  files = f"--config.data.files={folder}"
  lines.append(f"Next: {command('sedd', 'train', '--config=...', files)}")
  return "\n".join(lines)


def faults_text(folder: Path, faults: Sequence[str]) -> str:
  """The faults of a folder, and how to repair it."""
  repair = (
    f"{len(faults)} fault(s). Delete {folder / MANIFEST}, and give the command that made the "
    "folder again: what is whole stays"
  )
  return "\n".join([*faults, repair])


def sound_text(folder: Path, manifest: Mapping[str, Any]) -> str:
  """What a folder without faults holds."""
  tokens = " and ".join(f"{manifest[side]['tokens']:,} {side}" for side in SIDES)
  return f"{folder} is whole: {tokens} tokens; every file is what was written"
