"""The model in the box: it loads without a path, is small, and reads text as its source does."""

import json

import numpy as np
import pytest
from stories import load_stories
from stories_box import definition, source_rows
from support.command import sedd

import sedd_jax
from sedd_jax.data.library_tokenizer import LibraryTokenizer
from sedd_jax.demo.page import demo_page
from sedd_jax.interop.load import STORIES


@pytest.fixture(scope="module")
def model():
  return sedd_jax.load()


def test_it_is_small_and_says_what_it_is():
  assert sum(file.stat().st_size for file in STORIES.iterdir()) <= 6_000_000
  card = (STORIES / "README.md").read_text()
  for said in ("stories260K", "sedd train --config=configs/stories.py", "nats a token", "float16"):
    assert said in card


def test_its_samples_are_stories(model):
  texts = [model.text(row) for row in model.sample(4, steps=32, seed=0)]
  words = {word.strip('.,!?"').lower() for text in texts for word in text.split()}
  assert len(words & {"a", "and", "she", "he", "the", "to", "was", "they", "her"}) >= 5, texts


def test_commands_take_it_by_default():
  done = sedd("sample", "--steps=4", "--json", "--template=Once upon a time[[6]] They were[[4]]")
  assert done.returncode == 0, done.stderr
  (record,) = map(json.loads, done.stdout.splitlines())
  assert record["text"].startswith("Once upon a time")
  assert " They were" in record["text"]
  assert "  They" not in record["text"]


def test_the_demo_begins_with_a_story(model):
  page = demo_page(model)
  assert "Once upon a time" in page
  assert "sedd demo: stories" in page


def test_its_tokenizer_is_that_of_its_text(model, shared_path):
  _, _, theirs = load_stories(shared_path("data/stories260K"))
  file = json.dumps(definition(theirs.pieces, theirs.scores))
  ours = LibraryTokenizer(file, eos="<s>")
  assert ours.to_json() == model.tokenizer.to_json()
  rows, _ = source_rows()
  for row in rows[:200]:
    if 1 not in row:  # A story ends inside.
      text = theirs.decode(row)
      np.testing.assert_array_equal(ours.encode(text), theirs.encode(text))
      assert ours.decode(row).removeprefix(" ") == text
