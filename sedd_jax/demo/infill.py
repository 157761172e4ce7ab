"""The body of `POST /v1/infill`, checked against a model."""

import dataclasses
import difflib
import json
import secrets
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import numpy as np

from sedd_jax.generation.model import LanguageModel
from sedd_jax.generation.settings import SamplerSettings
from sedd_jax.generation.templates import Encode, Template, parse_template
from sedd_jax.ranges import SEEDS, check, check_seed

# Bounds of one request. Every character may take six bytes of JSON, or twelve as a surrogate pair.
MOST_CHARACTERS = 16_384
MOST_BYTES = 12 * MOST_CHARACTERS + 4_096
MOST_STEPS = 4_096
_HOTTEST = float(np.finfo(np.float32).max)
_EXAMPLE = '{"template": "The [[20]] is [[*]]."}'


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Infill:
  """A request to fill in a template.

  Attributes:
    template: the given tokens and the blanks.
    settings: how to sample.
    seed: seed of all randomness.
    stream: whether the tokens are wanted as they are drawn.
  """

  template: Template
  settings: SamplerSettings
  seed: int
  stream: bool = False


def parse_infill(body: bytes, model: LanguageModel) -> Infill:
  """The request in a body.

  Raises:
    ValueError: the body is no JSON object of known keys, or a value does not fit the model; the
      message names the keys.
  """
  fields = _fields(_json_object(body))
  steps, length = fields["steps"], fields["length"]
  template = fields["template"]
  _check_text(template)
  if length is not None:
    check("length", length, 1, model.length)
  if steps is not None:
    check("steps", steps, 1, MOST_STEPS)
  check("temperature", fields["temperature"], 0.0, _HOTTEST)
  settings = SamplerSettings(
    sampler=fields["sampler"], steps=steps, temperature=float(fields["temperature"])
  )
  model.check(settings)
  seed = secrets.randbelow(SEEDS) if fields["seed"] is None else check_seed(fields["seed"])
  encode, behind = _encoder(model.encode), _encoder(model.encode_behind)
  parsed = parse_template(template, encode, length=length, longest=model.length, behind=behind)
  model.check_given(parsed.given[None])
  return Infill(template=parsed, settings=settings, seed=seed, stream=fields["stream"])


def _encoder(encode: Encode) -> Encode:
  """The same, whose errors name the key."""

  def named(text: str) -> np.ndarray:
    try:
      return encode(text)
    except ValueError as error:
      raise ValueError(f"template: {error}") from error

  return named


def _is_integer(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
  return _is_integer(value) or isinstance(value, float)


# For each key what its value must be, a test of it, and the value where it is left out.
_KEYS: Mapping[str, tuple[str, Callable[[Any], bool], Any]] = {
  "template": ("text", lambda value: isinstance(value, str), None),
  "length": ("an integer", _is_integer, None),
  "steps": ("an integer", _is_integer, None),
  "sampler": ("text", lambda value: isinstance(value, str), SamplerSettings().sampler),
  "temperature": ("a number", _is_number, SamplerSettings().temperature),
  "seed": ("an integer", _is_integer, None),
  "stream": ("true or false", lambda value: isinstance(value, bool), False),
}


def _fields(given: Mapping[str, Any]) -> dict[str, Any]:
  """The value of every key, all errors of keys and types reported together."""
  faults = [_unknown(key) for key in given if key not in _KEYS]
  fields = {}
  for key, (kind, fits, default) in _KEYS.items():
    value = given.get(key)
    fields[key] = default if value is None else value
    if value is not None and not fits(value):
      faults.append(f"{key}={_shown(value)} must be {kind}")
  if given.get("template") is None:
    faults.append(f"template is missing; for example {_EXAMPLE}")
  if faults:
    raise ValueError("; ".join(faults))
  return fields


def _unknown(key: str) -> str:
  near = difflib.get_close_matches(key[:100], _KEYS, n=1)
  hint = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(_KEYS)}"
  return f"key {_shown(key)} is unknown: {hint}"


def _shown(value: Any) -> str:
  text = json.dumps(value)
  return text if len(text) <= 60 else f"{text[:60]}…"


def _json_object(body: bytes) -> dict[str, Any]:
  try:
    found = json.loads(body, parse_constant=_no_number, object_pairs_hook=_without_repeats)
  except RecursionError:
    raise ValueError("the body is JSON that is nested too deeply") from None
  except ValueError as error:  # Also of bytes that are no UTF-8, and of integers without end.
    raise ValueError(f"the body is no JSON ({error}); for example {_EXAMPLE}") from None
  if not isinstance(found, dict):
    raise ValueError(f"the body must be a JSON object; for example {_EXAMPLE}")
  return found


def _no_number(name: str) -> NoReturn:
  raise ValueError(f"{name} is no number of JSON")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    keys = [key for key, _ in pairs]
    repeated = next(key for key in found if keys.count(key) > 1)
    raise ValueError(f"key {_shown(repeated)} occurs twice")
  return found


def _check_text(template: str) -> None:
  if len(template) > MOST_CHARACTERS:
    raise ValueError(
      f"template has {len(template):,} characters and must have at most {MOST_CHARACTERS:,}"
    )
  try:
    template.encode()
  except UnicodeEncodeError as error:
    raise ValueError(
      f"template: character {error.start} is half of a surrogate pair and no Unicode"
    ) from None
