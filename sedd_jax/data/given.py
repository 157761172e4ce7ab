"""Rows of tokens that exist already, as a prepared corpus.

For text whose tokens are known and must stay as they are: drawn by another model, or made by
another program.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sedd_jax.data.library_tokenizer import checked_ids
from sedd_jax.data.patterns import MANIFEST, PREPARATION
from sedd_jax.data.prepared import FORMAT, SIDES, TOKENIZER, digest, open_prepared
from sedd_jax.data.shards import write_shard
from sedd_jax.data.streams import Encoded, token_dtype
from sedd_jax.data.tokenizers import Tokenizer
from sedd_jax.files.paths import local_path
from sedd_jax.files.whole import write_json, write_text


def prepare_rows(
  train: np.ndarray,
  heldout: np.ndarray,
  tokenizer: Tokenizer,
  folder: Path,
  *,
  name: str,
  tokenizer_name: str,
) -> Mapping[str, Any]:
  """The manifest of a new folder, which a config names as `data.files`.

  With `data.length` = L and `data.packing=stream` a run's rows are these, no token more or less.

  Args:
    train: int[N, L], each row a document. No end-of-text token is added.
    heldout: int[M, L].
    tokenizer: what the tokens mean.
    folder: where it is to be; it must not exist.
    name: of the corpus.
    tokenizer_name: what a config calls the tokenizer (`data.tokenizer`).

  Raises:
    FileExistsError: the folder exists.
    ValueError: a token is not in [0, V), or a side has no rows of one length.
  """
  folder = local_path(folder, "folder")
  encoded = {
    side: _encoded(rows, tokenizer, side)
    for side, rows in zip(SIDES, (train, heldout), strict=True)
  }
  folder.mkdir(parents=True)
  settings = {
    "files": name, "heldout_files": "", "split": [0.95, 1.0], "text_field": "text",
    "tokenizer": tokenizer_name, "detokenizer": "none", "on_fault": "fail", "format": FORMAT,
  }  # fmt: skip
  write_json(folder / PREPARATION, settings)
  spec = json.dumps(tokenizer.to_json(), ensure_ascii=False)
  write_text(folder / TOKENIZER, spec)
  counts = ("tokens", "characters", "documents")
  sides, content, characters = {}, hashlib.sha256(), 0
  for side, tokens in encoded.items():
    shard = write_shard(folder / f"{side}-00000", tokens)
    write_json(folder / f"{side}-00000.json", shard)
    sides[side] = {count: shard[count] for count in counts} | {"shards": [shard]}
    content.update(tokens.starts.tobytes() + tokens.tokens.tobytes())
    characters += tokens.characters
  manifest = {
    "format": FORMAT,
    "settings": settings,
    "corpus": {
      "name": name,
      "characters": characters,
      "sha256": content.hexdigest(),
    },
    "tokenizer_sha256": hashlib.sha256(spec.encode()).hexdigest(),
    "dtype": token_dtype(tokenizer.vocab_size).name,
    **sides,
    "left_out": {"count": 0, "first": []},
    "notes": [],
  }
  manifest["sha256"] = digest(manifest)
  write_json(folder / MANIFEST, manifest)
  return open_prepared(str(folder)).manifest


def _encoded(rows: np.ndarray, tokenizer: Tokenizer, side: str) -> Encoded:
  if rows.ndim != 2 or not rows.size or not np.issubdtype(rows.dtype, np.integer):
    raise ValueError(
      f"{side}: rows of shape {rows.shape} and type {rows.dtype} must be int[rows, tokens]"
    )
  checked_ids((int(rows.min()), int(rows.max())), tokenizer.vocab_size)
  return Encoded(
    tokens=rows.reshape(-1).astype(token_dtype(tokenizer.vocab_size)),
    starts=np.arange(len(rows), dtype=np.int64) * rows.shape[1],
    characters=sum(len(tokenizer.decode(row)) for row in rows),
  )
