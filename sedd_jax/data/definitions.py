"""Definitions of the `tokenizers` library, such as a tokenizer.json holds: what is read, what is
switched off and what is refused.

The library reads a definition first, since it knows what is wrong with one. What is looked at
afterwards is how the library writes it, so that all parts are well-formed.
"""

import contextlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from sedd_jax.data.library_call import library_call
from sedd_jax.data.scope import steps_of, types_of

MODELS = ("BPE", "Unigram", "WordPiece", "WordLevel")
# Decoders whose text of a token does not depend on the tokens after it.
_DECODERS = (
  "BPEDecoder", "ByteFallback", "ByteLevel", "Fuse", "Metaspace", "Replace", "Strip", "WordPiece",
)  # fmt: skip
# Post-processors that add no tokens.
_HARMLESS = ("ByteLevel",)
# What a definition may lack beside the model, and how it is written then.
_PARTS = {"normalizer": None, "pre_tokenizer": None, "decoder": None, "added_tokens": []}
# Ids are int32. The library makes arrays as long as the largest id, and a model an embedding.
_LARGEST = 2**31 - 1
_SPARE = 1000


def read_definition(definition: str, source: str) -> tuple[Any, dict[str, Any], list[str]]:
  """The tokenizer as an object of the library, its definition as the library writes it, and a
  phrase for each thing that the definition asks for and that is not done.

  Args:
    definition: the library's JSON.
    source: where it is from, for messages.

  Raises:
    ValueError: it is none, or of a kind that cannot be used; the message names its source.
  """
  from tokenizers import decoders

  written = _parsed(definition, source)
  ids, vocabulary = dict(_written_ids(written)), written["model"].get("vocab")
  check_ids(ids, source, len(vocabulary) if isinstance(vocabulary, list) else 0)
  plain, switched_off = _plain(written, source)
  library = _library(plain, source)
  with library_call(f"{source} is no tokenizer that the library writes"):
    read = json.loads(library.to_str())
    if read["decoder"] is None and "ByteLevel" in types_of(read["pre_tokenizer"]):
      library.decoder = decoders.ByteLevel()
      read = json.loads(library.to_str())
  if fault := _decoder_fault(read["decoder"]) or _added_fault(read, library, source):
    raise ValueError(f"{source}: {fault}; such a tokenizer is not read")
  moved = [x for x in read["added_tokens"] if ids.get(x["content"], x["id"]) != x["id"]]
  said = [f"{what}: switched off" for what in switched_off]
  if moved:
    name, now = moved[0]["content"], moved[0]["id"]
    said.append(f"the library gives the added token {name!r} the id {now}, not {ids[name]}")
  return library, read, said


def check_ids(ids: Mapping[str, Any], source: str, tokens: int = 0) -> None:
  """Checks the ids of a vocabulary before the library sees them.

  Args:
    ids: of each token's name, as they are written.
    source: where they are from, for messages.
    tokens: how many there are, where more than these.

  Raises:
    ValueError: one is no integer in [0, 2**31), or the largest is out of proportion to the number
      of tokens.
  """
  for name, i in ids.items():
    if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i <= _LARGEST:
      raise ValueError(
        f"{source}: the id of token {name!r} must be an integer in [0, 2**31), not {i!r:.40}"
      )
  count = max(tokens, len(ids))
  most = 2 * count + _SPARE
  if (largest := max(ids.values(), default=0)) > most:
    name = next(name for name, i in ids.items() if i == largest)
    raise ValueError(
      f"{source}: token {name!r} has the id {largest}, and there are {count} tokens: a model has "
      f"an embedding for each id up to the largest, which may be {most} at most"
    )


def without_unused(part: Any) -> Any:
  """The same without settings of offsets, which change no id and no text."""
  if isinstance(part, dict):
    return {k: without_unused(v) for k, v in part.items() if k != "trim_offsets"}
  return [without_unused(one) for one in part] if isinstance(part, list) else part


def _library(plain: Mapping[str, Any], source: str) -> Any:
  """The tokenizer of a definition, as an object of the library."""
  try:
    return _built(plain, f"{source} is no tokenizer that the library reads")
  except ValueError as error:
    raise ValueError(f"{error}{_part_at_fault(plain)}") from error


def _built(plain: Mapping[str, Any], message: str) -> Any:
  from tokenizers import Tokenizer as Library

  with library_call(message):
    return Library.from_str(json.dumps(plain))


def _part_at_fault(plain: Mapping[str, Any]) -> str:
  """Which part the library cannot read. It names a line and column, and not those of the file."""
  for name, nothing in _PARTS.items():
    if plain.get(name):
      with contextlib.suppress(ValueError):
        _built({**plain, name: nothing}, "")
        return f" (its field {name!r} holds {plain[name]!r:.60})"
  return ""


def _parsed(definition: str, source: str) -> dict[str, Any]:
  """The JSON, in which nothing but the type of the model has been looked at."""
  try:
    parsed = json.loads(definition)
  except (ValueError, TypeError, RecursionError) as error:
    raise ValueError(f"{source} is no tokenizer.json: {error}") from error
  if not isinstance(parsed, dict) or not isinstance(model := parsed.get("model"), dict):
    raise ValueError(f"{source} is no tokenizer.json: it has no field 'model' that is an object")
  if (kind := model.get("type") or _guessed(model)) not in MODELS:
    raise ValueError(f"{source}: a model of type {kind!r} is not read, only {', '.join(MODELS)}")
  return parsed


def _guessed(model: Mapping[str, Any]) -> str | None:
  """The type of a model that older files leave out."""
  if "merges" in model:
    return "BPE"
  return "Unigram" if isinstance(model.get("vocab"), list) else None


def _written_ids(written: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
  """(name, id) as they are written. The library says what is wrong with other entries."""
  if isinstance(vocabulary := written["model"].get("vocab"), dict):
    yield from vocabulary.items()
  if isinstance(added := written.get("added_tokens"), list):
    for token in added:
      if isinstance(token, dict) and isinstance(token.get("content"), str) and "id" in token:
        yield token["content"], token["id"]


def _plain(written: dict[str, Any], source: str) -> tuple[dict[str, Any], list[str]]:
  """The definition without what is switched off, and a phrase for each such thing."""
  off = dict.fromkeys(("truncation", "padding", "post_processor"))
  parts = {name: written.get(name) for name in off}
  for name, part in parts.items():
    if not isinstance(part, dict | None):
      raise ValueError(f"{source}: {name} must be an object or null, not {part!r:.40}")
  found = []
  if truncation := parts["truncation"]:
    found.append(f"truncation to {truncation.get('max_length')} tokens")
  if parts["padding"]:
    found.append("padding")
  model = dict(written["model"])
  if model.get("dropout"):
    found.append(f"dropout of {model['dropout']}")
    model["dropout"] = None
  if parts["post_processor"] and not _adds_nothing(parts["post_processor"]):
    found.append("tokens added around each text")
  return {**written, **off, "model": model}, found


def _adds_nothing(post_processor: Any) -> bool:
  if not isinstance(post_processor, dict):
    return False
  if post_processor.get("type") != "Sequence":
    return post_processor.get("type") in _HARMLESS
  steps = post_processor.get("processors")
  return isinstance(steps, list) and all(map(_adds_nothing, steps))


def _decoder_fault(decoder: Mapping[str, Any] | None) -> str | None:
  """What in a decoder gives a token a text that depends on other tokens than the one before."""
  steps = steps_of(decoder)
  names = [step["type"] for step in steps]
  if other := [name for name in names if name not in _DECODERS]:
    return _depends(f"a decoder of type {other[0]}")
  apart = [name for name in names if name != "Fuse"]
  for alone in ("ByteLevel", "BPEDecoder"):
    if alone in apart and len(apart) > 1:
      apart.remove(alone)
      return _depends(f"decoders of types {alone} and {apart[0]} together")
  # From here on the library has one text, and no tokens.
  for step in steps[names.index("Fuse") :] if "Fuse" in names else ():
    is_start = step["type"] == "Strip" and step["start"] <= 1 and not step["stop"]
    if step["type"] != "Fuse" and not is_start:
      return _depends(f"a decoder of type {step['type']} behind one of type Fuse")
  return None


def _depends(decoder: str) -> str:
  return f"with {decoder} the text of a token depends on those after it"


def _added_fault(definition: Mapping[str, Any], library: Any, source: str) -> str | None:
  """What makes an added token one that the library finds by chance, or everywhere."""
  if library.normalizer is None:
    return None
  found: dict[str, list[str]] = defaultdict(list)
  with library_call(f"{source}: the library cannot normalize its added tokens"):
    for token in definition["added_tokens"]:
      if token["normalized"]:
        name = token["content"]
        found[library.normalizer.normalize_str(name)].append(name)
  for text, names in found.items():
    if not text:
      return f"its normalizer leaves nothing of the added token {names[0]!r}"
    if len(names) > 1:
      return (
        f"its normalizer makes {text!r} of the added tokens {names[0]!r} and {names[1]!r}, and the "
        "library takes one by chance"
      )
  return None
