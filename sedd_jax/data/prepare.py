"""Text to token shards: made once, so that runs start at once and hold no tokens in memory.

One process reads the text in order and cuts it into groups of `SHARD` characters. Several processes
tokenize the groups, and each writes its group as a shard. So the shards are the same for any number
of workers, and only a few groups are held at a time. A shard with its own .json is complete; a
stopped preparation continues from there.
"""

import concurrent.futures
import concurrent.futures.process
import contextlib
import hashlib
import json
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sedd_jax.data.bpe import bpe_size
from sedd_jax.data.config import DataConfig
from sedd_jax.data.corpus import Corpus, Identity, load_corpus
from sedd_jax.data.faults import Faults, describe
from sedd_jax.data.patterns import MANIFEST, PREPARATION, note_twice
from sedd_jax.data.prepared import (
  FORMAT,
  SIDES,
  TOKENIZER,
  digest,
  open_prepared,
)
from sedd_jax.data.shards import DOCUMENTS, TOKENS, write_shard, wrong_files
from sedd_jax.data.sources import Piece
from sedd_jax.data.streams import encode, groups, separated, token_dtype
from sedd_jax.data.tokenizers import Tokenizer, from_json, from_name, read_stored
from sedd_jax.files.lock import FILE as LOCK
from sedd_jax.files.lock import FolderLock
from sedd_jax.files.paths import command, local_path
from sedd_jax.files.whole import PARTIAL, remove, sync, write_json, write_text

# Characters in a shard.
SHARD = 2**24

OnProgress = Callable[[int, int], None]  # Characters and tokens since the last call.


# What of a `DataConfig` the shards depend on.
_SETTINGS = (
  "files", "heldout_files", "split", "text_field", "tokenizer", "detokenizer", "on_fault",
)  # fmt: skip


def prepare(
  config: DataConfig,
  folder: Path,
  *,
  workers: int = 1,
  shard: int = SHARD,
  say: Callable[[str], None] = warnings.warn,
  on_progress: OnProgress = lambda characters, tokens: None,
) -> Mapping[str, Any]:
  """The manifest of a folder of shards, which is made or continued.

  Args:
    config: the text and its tokenizer; its length and packing do not matter.
    folder: new, empty, or started with the same settings.
    workers: processes that tokenize.
    shard: characters in a shard.
    say: is told if the file system of the folder has no locks.
    on_progress: is called after every shard.

  Raises:
    FileExistsError: the folder holds something else.
    ValueError: it was started with other settings or other text, or the text cannot be read.
    FileNotFoundError: there is no such text.
  """
  if workers < 1 or shard < 1:
    raise ValueError(f"workers={workers} and shard={shard} must be at least 1")
  if len(config.parts) > 1:
    raise ValueError(f"files={config.files!r}: prepare each part by itself; a run may mix them")
  folder = local_path(folder, "folder")
  settings = {name: getattr(config, name) for name in _SETTINGS}
  settings |= {"shard": shard, "format": FORMAT}
  if config.tokenizer_eos:
    settings["tokenizer_eos"] = config.tokenizer_eos
  faults = Faults(config.on_fault)
  corpus = load_corpus(
    config.files,
    config.heldout_files,
    config.split,
    config.text_field,
    config.detokenizer,
    faults,
  )
  note_twice(config.files, config.heldout_files, faults, known=False)
  _check_folder(folder, settings)
  tokenizer = _tokenizer(corpus, config, folder, faults)  # What fails here leaves no folder.
  with FolderLock(folder, say, "--out"):
    _check_folder(folder, settings)  # Again: nobody can change it any more.
    for left in folder.glob(f"*{PARTIAL}*"):
      remove(left)
    write_json(folder / PREPARATION, settings)
    spec = json.dumps(tokenizer.to_json(), ensure_ascii=False)
    write_text(folder / TOKENIZER, spec)
    identity, sides = Identity(corpus.name), {}
    with _pool(workers, spec) as submit:
      for side, pieces in zip(SIDES, corpus.sides(faults), strict=True):
        grouped = groups(separated(identity.watch(pieces), tokenizer), shard)
        sides[side] = _totals(_make(grouped, side, folder, submit, workers), on_progress)
    manifest = {
      "format": FORMAT,
      "settings": settings,
      "corpus": identity.to_json(),
      "tokenizer_sha256": hashlib.sha256(spec.encode()).hexdigest(),
      "dtype": token_dtype(tokenizer.vocab_size).name,
      **sides,
      "left_out": {"count": faults.count, "first": faults.first},
      "notes": faults.notes,
    }
    if not sides["train"]["tokens"]:
      raise ValueError(f"{corpus.name} has no text to train on; {describe(**manifest['left_out'])}")
    manifest["sha256"] = digest(manifest)
    write_json(folder / MANIFEST, manifest)
  return open_prepared(str(folder)).manifest


def _totals(made: Iterable[Mapping[str, Any]], on_progress: OnProgress) -> dict[str, Any]:
  """What the manifest says of one side."""
  shards = []
  for shard in made:
    on_progress(shard["characters"], shard["tokens"])
    shards.append(shard)
  counts = ("tokens", "characters", "documents")
  return {name: sum(s[name] for s in shards) for name in counts} | {"shards": shards}


def _check_folder(folder: Path, settings: Mapping[str, Any]) -> None:
  """Refuses a folder that is not new, empty, or begun with these settings."""
  file = folder / PREPARATION
  if (folder / MANIFEST).is_file():
    raise FileExistsError(
      f"{folder} is prepared already: {command('sedd', 'prepare', f'--check={folder}')} reads all "
      "of it. To prepare something else choose a new folder"
    )
  if file.is_file() and _has_shards(folder):
    stored = json.loads(file.read_text(encoding="utf-8"))
    now = json.loads(json.dumps(settings))
    if differing := [key for key in now if stored.get(key) != now[key]]:
      lines = [f"  {key}: {stored.get(key)!r} -> {now[key]!r}" for key in differing]
      raise ValueError(
        "\n".join([f"{folder} was begun with other settings:", *lines])
        + "\nGo on with those, or choose a new folder."
      )
  elif not file.is_file() and folder.is_dir() and not all(map(_may_stay, folder.iterdir())):
    raise FileExistsError(f"{folder} is not empty and holds nothing of ours: choose a new folder")


def _has_shards(folder: Path) -> bool:
  """Whether an attempt has made a whole shard."""
  return any(next(folder.glob(f"{side}-*.json"), None) for side in SIDES)


def _may_stay(path: Path) -> bool:
  """Whether a file can be left over from an attempt that ended before its first write."""
  return path.suffix == PARTIAL or (
    path.name == LOCK and path.read_bytes()[:7] in (b"", b"process")
  )


def _tokenizer(corpus: Corpus, config: DataConfig, folder: Path, faults: Faults) -> Tokenizer:
  """The tokenizer that an earlier attempt wrote, else the one that the settings name."""
  if _has_shards(folder) and (folder / TOKENIZER).is_file():
    return read_stored(folder / TOKENIZER)
  training_only = bpe_size(config.tokenizer) is not None
  texts = (
    (piece.text for piece in corpus.pieces("train", faults))
    if training_only
    else corpus.texts(faults)
  )
  return from_name(config.tokenizer, texts, config.tokenizer_eos)


def _make(
  grouped: Iterable[list[Piece]], side: str, folder: Path, submit: Any, workers: int
) -> Iterator[dict[str, Any]]:
  """The description of each shard, in order; complete shards are not made again."""
  waiting: list[concurrent.futures.Future[dict[str, Any]]] = []
  for number, group in enumerate(grouped):
    waiting.append(submit(_shard, folder / f"{side}-{number:05d}", group))
    while len(waiting) > workers:
      yield waiting.pop(0).result()
  for future in waiting:
    yield future.result()


def _shard(path: Path, group: list[Piece]) -> dict[str, Any]:
  """The description of a shard, which is tokenized and written unless it is complete."""
  text = hashlib.sha256()
  for piece in group:
    text.update(f"{piece.begins:d}{piece.ends:d}{len(piece.text)}|".encode())
    text.update(piece.text.encode("utf-8", "surrogatepass"))
    if piece.before or piece.after:
      text.update(f"|{piece.before}|{piece.after}".encode("utf-8", "surrogatepass"))
  file = path.with_name(path.name + ".json")
  if file.is_file():
    known = json.loads(file.read_text(encoding="utf-8"))
    if known["text_sha256"] != text.hexdigest():
      raise ValueError(f"{path}: the text is not the one that this shard was made of")
    if not wrong_files(path.parent, known):
      return known
  partial = path.with_name(path.name + PARTIAL)
  try:
    made = write_shard(partial, encode(group, _TOKENIZER[0]))
  except RuntimeError as error:  # All that the array_record writer raises.
    raise OSError(f"{path} cannot be written: {str(error).split(';')[0]}") from error
  files = {}
  for suffix in (TOKENS, DOCUMENTS):
    here, there = (p.with_name(p.name + suffix) for p in (partial, path))
    sync(here)
    os.replace(here, there)
    files[there.name] = made["files"][here.name]
  made |= {"name": path.name, "files": files, "text_sha256": text.hexdigest()}
  write_text(file, json.dumps(made) + "\n")
  return made


# The tokenizer of a worker: made once, when it starts.
_TOKENIZER: list[Tokenizer] = []


def _start_worker(spec: str) -> None:
  _TOKENIZER[:] = [from_json(json.loads(spec))]
  if (parent := multiprocessing.parent_process()) is not None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the reader.
    # One that is killed cannot end its workers.
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


@contextlib.contextmanager
def _pool(workers: int, spec: str):
  """Yields a `submit`: it runs a function in one of several processes, or here if there is one."""
  if workers == 1:
    _start_worker(spec)
    yield _here
    return
  os.environ["TOKENIZERS_PARALLELISM"] = "false"  # One core each; workers inherit it.
  executor = concurrent.futures.ProcessPoolExecutor(
    workers,
    mp_context=multiprocessing.get_context("spawn"),
    initializer=_start_worker,
    initargs=(spec,),
  )
  try:
    yield executor.submit
  except concurrent.futures.process.BrokenProcessPool as error:
    raise OSError(
      "a worker was ended, perhaps for want of memory: the same command goes on; fewer --workers "
      "take less"
    ) from error
  finally:
    executor.shutdown(cancel_futures=True)


def _here(function, *arguments) -> concurrent.futures.Future:
  future = concurrent.futures.Future()
  future.set_result(function(*arguments))
  return future
