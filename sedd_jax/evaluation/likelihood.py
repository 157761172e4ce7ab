"""The likelihood of whole test sets: every chunk is estimated once, stored, and summed.

The estimate of a row depends on its tokens, the seed and its number alone, and sums run in float64,
so that a number is the same for any batch size and any number of devices (to the rounding of the
network's own products).

N: rows, G: independent estimates of each.
"""

import contextlib
import dataclasses
import functools
import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sedd_jax.data import Tokenizer
from sedd_jax.data.tokenizers import fingerprint
from sedd_jax.diffusion import Noise, Terms
from sedd_jax.evaluation.bounds import BoundEstimator, Draws, make_estimator
from sedd_jax.evaluation.chunks import Chunks, make_chunks, without_first
from sedd_jax.evaluation.rowfile import Estimates, RowFile
from sedd_jax.evaluation.suites import Golden, Protocol, TestSet, golden_of
from sedd_jax.evaluation.texts import documents
from sedd_jax.models import Autoregressive, Network, Params
from sedd_jax.parallel import MeshConfig, OnMesh, make_mesh

# Is called with (set, rows done, rows) after every batch.
OnProgress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scorer:
  """A model that estimates rows, on some devices.

  Attributes:
    estimator: of its bound.
    params: its parameters, where they belong.
    published: what the literature reports of its terms.
  """

  estimator: BoundEstimator
  params: Params
  published: Callable[[Terms], Any]


def make_scorer(
  network: Network | Autoregressive,
  noise: Noise | None,
  params: Params,
  draws: Draws,
  *,
  batch_size: int,
  devices: Sequence[Any],
) -> Scorer:
  """A model on devices that share the rows; each holds all parameters.

  Args:
    network: a score network, or an autoregressive one.
    noise: the schedule of a score network.
    params: the network's.
    draws: what is estimated from what.
    batch_size: rows at a time.
    devices: which.

  Raises:
    ValueError: the estimator is not for such a network.
  """
  mesh = make_mesh(MeshConfig(replica=-1, fsdp=1, tensor=1), devices)
  network = dataclasses.replace(network, placement=OnMesh(mesh))  # pyright: ignore[reportArgumentType]
  return Scorer(
    estimator=BoundEstimator(
      make_estimator(network, noise, draws), batch_size=batch_size, mesh=mesh
    ),
    params=jax.device_put(params, jax.sharding.NamedSharding(mesh, jax.P())),
    published=draws.published,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """A test set, read.

  Attributes:
    test_set: which.
    source: where it was read from.
    chunks: its rows.
    golden: what they should be, if that is known.
  """

  test_set: TestSet
  source: str
  chunks: Chunks
  golden: Golden | None

  @property
  def status(self) -> str:
    """A message: whether the tokens are the known ones of this set."""
    if self.golden is None:
      return "not verified here"
    here = (self.chunks.sha256, len(self.chunks.rows.tokens))
    return (
      "verified"
      if here == (self.golden.sha256, self.golden.rows)
      else "TOKENS DIFFER FROM THE GOLDEN ONES"
    )


def read_tasks(
  protocol: Protocol,
  names: Sequence[str],
  sources: Mapping[str, str],
  tokenizer: Tokenizer,
  length: int,
  scores_first: bool = True,
) -> list[Task]:
  """Reads sets, all of them before anything is computed.

  Args:
    protocol: its sets and rules.
    names: of the sets that are wanted.
    sources: of those that are not in their usual place.
    tokenizer: the model's.
    length: tokens in a chunk.
    scores_first: whether the model has a law of a chunk's first token.

  Raises:
    ValueError: there is no such set, or a set cannot be read or is too short: the message has a
      line for each, and says what would help.
  """
  tasks, faults = [], []
  print_of = fingerprint(tokenizer)
  for test_set in [protocol.set_of(name) for name in names]:
    source = sources.get(test_set.name, test_set.source)
    try:
      chunks = make_chunks(documents(test_set, source), tokenizer, protocol.chunking, length)
    except (ValueError, OSError, ImportError) as error:
      faults.append(f"{test_set.name} ({test_set.split} split, from {source}): {error}")
      continue
    if not scores_first:
      chunks = without_first(chunks, tokenizer)
    golden = golden_of(protocol.name, test_set.name, print_of, length)
    tasks.append(Task(test_set=test_set, source=source, chunks=chunks, golden=golden))
  if faults:
    listed = "\n".join(f"  {fault}" for fault in faults)
    raise ValueError(
      f"{len(faults)} of {len(names)} sets of protocol {protocol.name} cannot be evaluated:\n"
      f"{listed}\nName where a text is with --data=SET=SOURCE (files, tfds:NAME@SPLIT or "
      "hf:NAME@SPLIT), or the sets to evaluate with --sets=SET,SET"
    )
  return tasks


def estimate_rows(
  scorer: Scorer,
  task: Task,
  *,
  seed: int,
  passes: int,
  folder: Path | None = None,
  on_progress: OnProgress = lambda name, done, rows: None,
) -> Estimates:
  """The estimates of all rows of a set; rows that the file holds are not estimated again.

  Args:
    scorer: the model.
    task: the set.
    seed: of all that is drawn.
    passes: independent passes over each row.
    folder: holds a file for the set, `NAME.jsonl`, written after every batch; none if None.
    on_progress: told now and then.

  Raises:
    ValueError: the file there is of other tokens or damaged.
    FloatingPointError: an estimate is not a number.
  """
  rows, name = task.chunks.rows, task.test_set.name
  count, length = rows.tokens.shape
  header = {"set": name, "rows": count, "length": length, "sha256": task.chunks.sha256}
  with contextlib.ExitStack() as stack:
    parts: list[Estimates] = []
    file = None
    if folder is not None:
      file = stack.enter_context(RowFile(folder / f"{name}.jsonl", header))
      if len(file.there) > count or (file.whole and len(file.there) < count):
        raise ValueError(
          f"{folder / name}.jsonl is damaged: it has {len(file.there)} rows, and the set has "
          f"{count}"
        )
      if len(file.there):
        parts.append(file.there)
    done = sum(map(len, parts))
    while done < count:
      began = time.monotonic()
      numbers = range(done, min(done + scorer.estimator.batch_size, count))
      terms = scorer.estimator.terms(
        scorer.params,
        rows.map(lambda x, numbers=numbers: x[numbers]),
        seed=seed,
        passes=passes,
        numbers=numbers,
      )
      terms = jax.tree.map(functools.partial(np.asarray, dtype=np.float64), terms)
      if not_numbers := np.flatnonzero(np.isnan(terms.strict).any(axis=0)).tolist():
        raise FloatingPointError(f"{name}: the estimate of row {done + not_numbers[0]} is NaN")
      part = Estimates(terms=terms, seconds=time.monotonic() - began)
      if file is not None:
        file.append(part)
      parts.append(part)
      done += len(numbers)
      on_progress(name, done, count)
    if file is not None and not file.whole:
      file.finish()
  joined = jax.tree.map(lambda *xs: np.concatenate(xs, axis=1), *[part.terms for part in parts])
  return Estimates(terms=joined, seconds=sum(part.seconds for part in parts))


def summary(scorer: Scorer, protocol: Protocol, task: Task, found: Estimates) -> dict[str, Any]:
  """The report of a set: the protocol's figure, and the values it is computed from.

  `perplexity` is exp of nats per scored token; `bits_per_char` counts the characters that the
  scored tokens decode to, end-of-text tokens left out. `..._stderr` is the Monte Carlo standard
  error, the text held fixed.
  """
  chunks = task.chunks
  figures = {
    "published": _figure(scorer.published(found.terms), chunks),
    "strict": _figure(found.terms.strict, chunks),
  }
  return {
    "set": task.test_set.name,
    "split": task.test_set.split,
    "source": task.source,
    "figure": protocol.figure,
    **figures[protocol.figure],
    "figures": figures,
    "documents": chunks.documents,
    "tokens_found": chunks.found,
    "tokens": chunks.scored,
    "characters": chunks.characters,
    "chunks": len(chunks.rows.tokens),
    "length": chunks.rows.tokens.shape[1],
    "sha256": chunks.sha256,
    "golden": None if task.golden is None else task.golden.sha256,
    "status": task.status,
    "seconds": found.seconds,
  }


def _figure(estimates_GN: Any, chunks: Chunks) -> dict[str, float]:
  estimates = np.asarray(estimates_GN, np.float64)
  nats = math.fsum(estimates.mean(axis=0)) / chunks.scored
  variance = math.fsum(estimates.var(axis=0, ddof=1) / len(estimates))
  stderr = math.sqrt(variance) / chunks.scored
  bits = chunks.scored / (math.log(2.0) * max(chunks.characters, 1))
  with np.errstate(over="ignore"):
    perplexity = float(np.exp(nats))
  return {
    "perplexity": perplexity,
    "perplexity_stderr": perplexity * stderr,
    "bits_per_char": nats * bits,
    "bits_per_char_stderr": stderr * bits,
    "nats_per_token": nats,
    "nats_per_token_stderr": stderr,
  }


def weights_hash(params: Params) -> str:
  """SHA-256 of all parameters, in their order in the tree."""
  digest = hashlib.sha256()
  for path, leaf in jax.tree.leaves_with_path(params):
    array = np.asarray(leaf)
    digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
  return digest.hexdigest()
