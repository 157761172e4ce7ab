"""The share of words that another text has."""

import pytest

from sedd_jax.evaluation.words import known_share, words_of


def test_words_are_runs_of_letters_that_are_whole():
  assert words_of("the dog's 2 naïve_cats, 東京!") == ["dog", "s", "naïve", "cats", "東京"]
  assert words_of(" the dog ") == ["the", "dog"]
  assert words_of("dog") == words_of("12 34") == []


def test_the_share_counts_each_occurrence():
  known = frozenset({"the", "dog"})
  assert known_share([" the dog the cat ", " the "], known) == pytest.approx(4 / 5)
  assert known_share(["12", ""], known) is None
