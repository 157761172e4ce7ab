"""Detokenizers: benchmark text back to plain text, by the rules that GPT-2's evaluations use.

WikiText, PTB and the one-billion-word benchmark were published with spaces around punctuation.
GPT-2 and those who compare with it (SEDD: section 5.3; MDLM) undo that before their own tokenizer.
Each detokenizer is a list of replacements, made one after the other on every line of a text.

They are called invertible, since one rule says how the spaces were put in. It is not true to the
letter: `wikitext` also turns its numbers " N " into " 1 ", and text that had no spaces stays as it
is, so two texts may become one. Bits are counted per character of the detokenized text.

`DETOKENIZERS` are for text of any source: line by line, so that a text may come in pieces.
`PUBLISHED` are those of published zero-shot evaluations (`evaluation/suites.py`), which must give
the same tokens: a whole record at a time, with every rule in its place, and with what one would
mend otherwise (a space before the first word of a line of WikiText stays, and so do the curly
apostrophes of LAMBADA; of two marks in a row one may keep its space, and which depends on the
order of the rules). Their rules are those that the data code of SEDD, RADD and MDLM shares.
"""

import re
from collections.abc import Callable

Rules = tuple[tuple[str, str], ...]


# What the two sets share, in the order of the published code.
_SEPARATORS: Rules = ((r" @-@ ", "-"), (r" @,@ ", ","), (r" @\.@ ", "."))
# Brackets and quotes belong to what they hold.
_ENCLOSING: Rules = (
  (r"\(\s*([^)]*?)\s*\)", r"(\1)"),
  (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
  (r"\{\s*([^}]*?)\s*\}", r"{\1}"),
  (r'"\s*([^"]*?)\s*"', r'"\1"'),
  (r"'\s*([^']*?)\s*'", r"'\1'"),
)
_HEADINGS: Rules = ((r"= = = =", "===="), (r"= = =", "==="), (r"= =", "=="), (r" ° ", "°"))
_NUMBERS: Rules = ((r" N ", " 1 "), (r" 's", "'s"))
_ENDS_OF_LINES: Rules = ((r" $", ""), (r"^ ", ""))

_CONTRACTIONS: Rules = ((r" 's", "'s"), (r"s ' ", "s' "), (r" n't", "n't"))
_PTB_SIGNS: Rules = (
  (r"\\/", "/"), (r"(?<= )N(?= )", "1"), (r"\$ 1", "$1"), (r"# 1", "#1"), (r"<unk>", "?"),
)  # fmt: skip

_LM1B_WORDS: Rules = (
  (r"(https?) : / / ", r"\1://"),
  (r" '(\w+)", r"'\1"),
  (r" (\w+) \. ", r" \1. "),
  (r" (\w+) \.$", r" \1."),
)
_LM1B_SIGNS: Rules = (
  (r" / ", "/"),
  (r'" ([^"]+) "', r'"\1"'),
  (r"' ([^']+) '", r"'\1'"),
  (r"\( ([^()]+) \)", r"(\1)"),
  (r"\[ ([^\[\]]+) \]", r"[\1]"),
  (r"([$£]) ", r"\1"),
)

_WIKITEXT: Rules = (
  # The original's rule for "' 90s" has slashes in its pattern and never matches.
  (r"s '", "s'"),
  *_SEPARATORS,
  (r" ([:;.!?,]) ", r"\1 "),  # Punctuation belongs to the word before it.
  *_ENCLOSING,
  *_HEADINGS,
  *_ENDS_OF_LINES,
  *_NUMBERS,
)
_PTB: Rules = (*_CONTRACTIONS, *_ENDS_OF_LINES, *_PTB_SIGNS)
_LM1B: Rules = (
  *_LM1B_WORDS,
  (r" ([?!]) ", r"\1 "),
  (r" ([?!])$", r"\1"),
  (r" ([,:;]) ", r"\1 "),
  *_LM1B_SIGNS,
)

# Each punctuation mark has its own rule: of two in a row, the order of the rules decides.
_PUBLISHED_WIKITEXT: Rules = (
  (r"s '", "s'"),
  (r"/' [0-9]/", "/'[0-9]/"),
  *_SEPARATORS,
  *((f" {re.escape(mark)} ", f"{mark} ") for mark in ":;.!?,"),
  *_ENCLOSING,
  *_HEADINGS,
  (r" \n", "\n"),
  (r"\n ", "\n"),
  *_NUMBERS,
)
_PUBLISHED_PTB: Rules = (*_CONTRACTIONS, (r" \n ", "\n"), *_PTB_SIGNS)
_PUBLISHED_LM1B: Rules = (
  *_LM1B_WORDS,
  *((rf" {re.escape(mark)}{end}", mark + end.strip("$")) for mark in "?!" for end in " $"),
  *((f" {mark} ", f"{mark} ") for mark in ",:;"),
  *_LM1B_SIGNS,
)


def _whole(*lists: Rules) -> Callable[[str], str]:
  compiled = [
    (re.compile(pattern), replacement) for rules in lists for pattern, replacement in rules
  ]

  def detokenize(text: str) -> str:
    for pattern, replacement in compiled:
      text = pattern.sub(replacement, text)
    return text

  return detokenize


def _line_by_line(rules: Rules) -> Callable[[str], str]:
  compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]

  def detokenize(text: str) -> str:
    lines = text.split("\n")
    for pattern, replacement in compiled:
      lines = [pattern.sub(replacement, line) for line in lines]
    return "\n".join(lines)

  return detokenize


def _lambada(text: str) -> str:
  """OpenAI's: straight quotes, and a passage begins on a new line."""
  return "\n" + text.translate(_STRAIGHT).strip()


def _published_lambada(text: str) -> str:
  """Straight double quotes alone, and a passage begins on a new line."""
  return "\n" + text.replace("\u201c", '"').replace("\u201d", '"').strip()


_STRAIGHT = {0x201C: '"', 0x201D: '"', 0x2018: "'", 0x2019: "'"}

DETOKENIZERS: dict[str, Callable[[str], str]] = {
  "none": str,
  "wikitext": _line_by_line(_WIKITEXT),
  "ptb": _line_by_line(_PTB),
  "lm1b": _line_by_line(_LM1B),
  "lambada": _lambada,
}

PUBLISHED: dict[str, Callable[[str], str]] = {
  "none": str,
  "wikitext": _whole(_PUBLISHED_WIKITEXT),
  "ptb": _whole(_PUBLISHED_PTB),
  "lm1b": _whole(_PUBLISHED_LM1B),
  "lambada": _published_lambada,
  "scientific_papers": _whole(_PUBLISHED_WIKITEXT, _PUBLISHED_LM1B),
}
