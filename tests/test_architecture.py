"""docs/architecture.md: its picture is that of the imports, and all that it names exists."""

import ast
import importlib.util
import re

import pytest
from support.paths import REPOSITORY

PAGE = REPOSITORY / "docs" / "architecture.md"
PACKAGE = REPOSITORY / "sedd_jax"
# `folder/module.py: name`, or the module alone.
NAMED = sorted(set(re.findall(r"`((?:\w+/)*\w+\.py)(?:: ([\w.]+))?`", PAGE.read_text())))


@pytest.fixture(scope="module")
def draw():
  spec = importlib.util.spec_from_file_location("draw", REPOSITORY / "docs" / "draw_packages.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def definitions(tree, prefix=""):
  """Names of classes and functions, those of classes included."""
  for node in tree.body:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
      yield prefix + node.name
    if isinstance(node, ast.ClassDef):
      yield from definitions(node, f"{node.name}.")


def test_the_picture_is_that_of_the_imports(draw):
  """After a change that is meant: python docs/draw_packages.py"""
  assert draw.with_picture(PAGE.read_text()) == PAGE.read_text()


def test_imports_that_others_imply_are_left_out(draw):
  graph = {"a": {"b", "c"}, "b": {"c"}, "c": set()}
  assert draw.reduced(graph) == {"a": {"b"}, "b": {"c"}, "c": set()}
  with pytest.raises(ValueError, match="cycle"):
    draw.reduced({"a": {"b"}, "b": {"a"}})


def test_every_package_is_described(draw):
  described = set(re.findall(r"^\| `(\w+)(?:/|\.py)` \|", PAGE.read_text(), re.MULTILINE))
  assert described == set(draw.imports())


@pytest.mark.parametrize(("module", "name"), NAMED)
def test_what_the_page_names_exists(module, name):
  folder = REPOSITORY if module.startswith(("tests/", "docs/")) else PACKAGE
  assert (folder / module).is_file()
  if name:
    assert name in set(definitions(ast.parse((folder / module).read_text())))
