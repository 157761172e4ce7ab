"""The page of the demo: the player of traces under a form."""

import importlib.resources
from typing import Any

from sedd_jax.data import Tokenizer
from sedd_jax.demo.infill import MOST_CHARACTERS, MOST_STEPS
from sedd_jax.diffusion import SAMPLERS
from sedd_jax.generation.model import LanguageModel
from sedd_jax.generation.settings import SamplerSettings
from sedd_jax.generation.templates import parse_template
from sedd_jax.generation.traces.page import page_with_player
from sedd_jax.interop.load import STORIES_SOURCE

# What is in the text box at first: for the model that comes with the package, or the first of the
# others that the model can read.
_STORY = "Once upon a time, there was a[[8]] who[[*]]"
_TEMPLATES = ("The[[12]] is[[*]]", "the[[12]] of[[*]]", "[[*]]")


def demo_page(model: LanguageModel) -> str:
  """HTML of the page for a model."""
  source = str(model.info.get("source", "a model"))
  is_story = source == STORIES_SOURCE
  return page_with_player(
    importlib.resources.files("sedd_jax.demo"),
    title=f"sedd demo: {'stories' if is_story else source}",
    data={
      "length": model.length,
      "masks": model.mask_id is not None,
      "blank": _blank(model.tokenizer),
      "samplers": _samplers(model),
      "template": _STORY if is_story else next(t for t in _TEMPLATES if _readable(t, model)),
      "mostSteps": MOST_STEPS,
      "mostCharacters": MOST_CHARACTERS,
    },
  )


def takes(model: LanguageModel, settings: SamplerSettings) -> bool:
  """Whether the model can be sampled so."""
  try:
    model.check(settings)
  except ValueError:
    return False
  return True


def _samplers(model: LanguageModel) -> list[dict[str, Any]]:
  """The samplers that suit the model: each one's name, what it is called, and whether it takes a
  number of steps."""
  return [
    {
      "name": name,
      "label": model.relevant_settings(SamplerSettings(sampler=name))["sampler"],
      "steps": takes(model, SamplerSettings(sampler=name, steps=1)),
    }
    for name in SAMPLERS
    if takes(model, SamplerSettings(sampler=name))
  ]


def _readable(template: str, model: LanguageModel) -> bool:
  try:
    parsed = parse_template(
      template, model.encode, length=None, longest=model.length, behind=model.encode_behind
    )
    model.check_given(parsed.given[None])
  except ValueError:
    return template == _TEMPLATES[-1]
  return True


def _blank(tokenizer: Tokenizer | None) -> str:
  """What is as wide as most tokens."""
  if tokenizer is None:
    return "0000"
  lengths = sorted(map(len, tokenizer.pieces(range(tokenizer.vocab_size))))
  return "0" * min(max(lengths[len(lengths) // 2], 1), 4)
