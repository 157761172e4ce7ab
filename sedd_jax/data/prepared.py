"""A prepared corpus: a folder of token shards with a manifest, which is written last.

manifest.json        source, corpus, counts, hashes; without it the folder is not whole
preparation.json     the settings; written first, so that nothing else goes on in the folder
tokenizer.json
train-00000.array_record, train-00000.documents.npy, train-00000.json, ...
heldout-00000.array_record, ...
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sedd_jax.data.faults import Faults
from sedd_jax.data.patterns import MANIFEST, PREPARATION, is_prepared
from sedd_jax.data.shards import TOKENS, Shards, wrong_files
from sedd_jax.data.tokenizers import Tokenizer, from_json
from sedd_jax.files.manifest import hash_of
from sedd_jax.files.paths import local_path

TOKENIZER = "tokenizer.json"
FORMAT = 1
SIDES = ("train", "heldout")


@dataclasses.dataclass(frozen=True)
class Prepared:
  """A prepared corpus.

  Attributes:
    folder: where it lies.
    manifest: the content of its manifest.json.
  """

  folder: Path
  manifest: Mapping[str, Any]

  @property
  def identity(self) -> Mapping[str, Any]:
    """The identity of the corpus: the same as if it had been read as text."""
    return self.manifest["corpus"]

  def tokenizer(self) -> Tokenizer:
    """The tokenizer that made the tokens.

    Raises:
      ValueError: its file is not the one that was written.
    """
    file = self.folder / TOKENIZER
    text = file.read_text(encoding="utf-8")
    if hashlib.sha256(text.encode()).hexdigest() != self.manifest["tokenizer_sha256"]:
      raise ValueError(f"{file} is not the tokenizer that {self.folder} was prepared with")
    return from_json(json.loads(text), str(file))

  def stream(self, side: str, faults: Faults) -> Shards:
    """The tokens of `train` or `heldout`."""
    dtype = np.dtype(self.manifest["dtype"])
    return Shards(self.folder, self.manifest[side]["shards"], dtype, faults)


def open_prepared(path: str) -> Prepared:
  """A folder that `sedd prepare` made.

  Raises:
    ValueError: it is not whole, or of another version; the message says what to do.
  """
  folder = local_path(path, "data.files")
  file = folder / MANIFEST
  if not is_prepared(path):
    raise FileNotFoundError(f"{folder} is no folder that sedd prepare made")
  if not file.is_file():
    made = len(list(folder.glob("*.json"))) - 2
    raise ValueError(
      f"{folder} is not prepared to its end ({max(made, 0)} shards so far): "
      f"the command that began it goes on with it (its settings: {folder / PREPARATION})"
    )
  try:
    manifest = json.loads(file.read_text(encoding="utf-8"))
    if manifest["sha256"] != digest(manifest):
      raise ValueError("its hash differs")
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(
      f"{file} is damaged ({error}): delete it, and the command that made the folder makes it again"
    ) from error
  if manifest.get("format") != FORMAT:
    raise ValueError(
      f"{file} is of format {manifest.get('format')!r}; this version reads {FORMAT}: prepare it "
      "again"
    )
  return Prepared(folder, manifest)


def digest(manifest: Mapping[str, Any]) -> str:
  """The hash of a manifest without its own entry `sha256`."""
  return hash_of({name: value for name, value in manifest.items() if name != "sha256"})


def check(path: str) -> list[str]:
  """Errors in a prepared folder, of which every byte is read.

  Returns:
    One line per damaged file; empty if there is none.
  """
  prepared = open_prepared(path)
  folder, manifest, wrong = prepared.folder, prepared.manifest, []
  try:
    prepared.tokenizer()
  except (OSError, ValueError) as error:
    wrong.append(str(error))
  for side in SIDES:
    shards = manifest[side]["shards"]
    wrong += [fault for shard in shards for fault in wrong_files(folder, shard)]
    if manifest[side]["tokens"] != sum(shard["tokens"] for shard in shards):
      wrong.append(f"{folder / MANIFEST}: {side} does not add up to its shards")
  known = {shard["name"] + TOKENS for side in SIDES for shard in manifest[side]["shards"]}
  for file in sorted(folder.glob("*" + TOKENS)):
    if file.name not in known:
      wrong.append(f"{file} is not in the manifest")
  return wrong
