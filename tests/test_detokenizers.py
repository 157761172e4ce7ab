"""Benchmark text back to plain text."""

import pytest

from sedd_jax.data.compression import open_any
from sedd_jax.data.detokenizers import DETOKENIZERS, PUBLISHED


@pytest.mark.parametrize(
  ("name", "text", "plain"),
  [
    ("wikitext", " = Robert Boulter = \n", "= Robert Boulter =\n"),
    ("wikitext", "He was 21 @-@ year , 1 @,@ 000 @.@ 5 km .", "He was 21-year, 1,000.5 km ."),
    ("wikitext", "the ( old ) [ new ] \" play \" ; it 's", 'the (old) [new] "play"; it\'s'),
    ("wikitext", " = = Career = = \n \n In 2000 : yes", "== Career ==\n\nIn 2000: yes"),
    ("wikitext", "the boys ' own", "the boys' own"),
    ("ptb", "it does n't cost $ N million , he 's said", "it doesn't cost $1 million , he's said"),
    ("ptb", "<unk> \\/ the traders ' desk", "? / the traders' desk"),
    ("lm1b", "He said : \" I 'm here , \" and left .", "He said: \"I'm here,\" and left."),
    ("lm1b", "see http : / / a.b / c ( now ) for $ 5 ?", "see http://a.b/c (now) for $5?"),
    ("lambada", "“ It \u2019s late , ” he said ", '\n" It \'s late , " he said'),
    ("none", " as it = is ", " as it = is "),
  ],
)  # fmt: skip
def test_rules(name, text, plain):
  assert DETOKENIZERS[name](text) == plain


def test_lines_are_independent():
  detokenize = DETOKENIZERS["wikitext"]
  one, two = 'a " quote , \n', 'that ends " here .'
  assert detokenize(one + two) == detokenize(one) + detokenize(two)


def test_different_lines_of_wikitext_stay_different(shared_path):
  """What "invertible" means in practice: no two lines of the test text become one."""
  with open_any(shared_path("data/wikitext-2/wiki.test.raw.xz"), text=True) as file:
    lines = {line.strip() for line in file}
  assert len(lines) > 2000
  assert len({DETOKENIZERS["wikitext"](line) for line in lines}) == len(lines)


@pytest.mark.parametrize(
  ("name", "text", "plain"),
  [
    # What was published keeps a space before the first word, and of two marks in a row one of its.
    ("wikitext", " = Robert Boulter = \n", " = Robert Boulter =\n"),
    ("wikitext", "one . , two , . three", "one., two ,. three"),
    ("wikitext", "( the\nold ) 1 @,@ 000 boys ' ° \" own \"", '(the\nold) 1,000 boys\'°"own"'),
    ("wikitext", "5 ° C \n and N of it 's", "5°C\nand 1 of it's"),
    ("ptb", "it does n't cost $ N N N \n <unk> \\/ s ' x", "it doesn't cost $1 1 N\n? / s' x"),
    ("ptb", "N cars for N", "N cars for N"),
    ("lm1b", "see http : / / a.b / c ( now ) for $ 5 ?", "see http://a.b/c (now) for $5?"),
    ("lm1b", "He said : \" I 'm here , \" and left .", "He said: \"I'm here,\" and left."),
    ("lm1b", "what ? ! ; no , : yes !", "what?!; no,: yes!"),
    ("lambada", "“ It \u2019s late , ” he said ", '\n" It \u2019s late , " he said'),
    ("scientific_papers", "a @-@ b = = c : https : / / d .", "a-b == c: https:// d."),
    ("none", " as it = is ", " as it = is "),
  ],
)  # fmt: skip
def test_published_rules(name, text, plain):
  assert PUBLISHED[name](text) == plain
