"""Text of bytes that are cut into tokens."""

from collections.abc import Sequence


def pieces_of_bytes(tokens: Sequence[bytes]) -> list[str]:
  """Gives each character of the UTF-8 text, or U+FFFD for bytes that are none, to the token that
  holds its last byte."""
  text = b"".join(tokens)
  owner = [i for i, token in enumerate(tokens) for _ in token]
  pieces = [""] * len(tokens)
  start = 0
  while start < len(text):
    try:
      good, end, bad = text[start:].decode(), len(text), ""
    except UnicodeDecodeError as error:
      good, end, bad = text[start : start + error.start].decode(), start + error.end, "\ufffd"
    for character in good:
      start += len(character.encode())
      pieces[owner[start - 1]] += character
    pieces[owner[end - 1]] += bad
    start = end
  return pieces
