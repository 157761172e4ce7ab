"""The documentation's site has every public name. `.ci/run` builds it and checks its links."""

import importlib
import inspect
import re
from dataclasses import is_dataclass

import pytest
from support.paths import REPOSITORY

from sedd_jax.training.experiment import Experiment

PAGES = REPOSITORY / "docs" / "api"
SHOWN = [
  name
  for page in sorted(PAGES.glob("*.md"))
  for name in re.findall(r"^::: ([\w.]+)$", page.read_text(), re.MULTILINE)
]


@pytest.mark.parametrize("package", ["sedd_jax", "sedd_jax.diffusion"])
def test_every_class_and_function_of_a_package_is_on_a_page(package):
  module = importlib.import_module(package)
  public = {name: getattr(module, name) for name in module.__all__}
  homes = {
    f"{thing.__module__}.{name}"
    for name, thing in public.items()
    if inspect.isclass(thing) or inspect.isfunction(thing)
  }
  assert homes - set(SHOWN) == set()


def test_every_section_of_a_config_is_on_a_page():
  sections = [type(value) for value in vars(Experiment()).values()]
  homes = {f"{kind.__module__}.{kind.__name__}" for kind in sections if is_dataclass(kind)}
  assert homes
  assert homes - set(SHOWN) == set()
