"""MkDocs hook: warns of what a page would fetch from elsewhere; --strict makes that an error."""

import logging
import re
from pathlib import Path

_FETCHES = (
  re.compile(r'<(?:script|img|iframe|source|video|audio)\b[^>]*\ssrc="?((?:https?:)?//[^"\s>]+)'),
  re.compile(
    r'<link\b(?=[^>]*rel="?(?:stylesheet|icon|preload|preconnect|modulepreload))'
    r'[^>]*\shref="?((?:https?:)?//[^"\s>]+)'
  ),
  re.compile(r'(?:@import\s*["\']?|\burl\(\s*["\']?)((?:https?:)?//[^"\')\s]+)'),
)


def on_post_build(config):
  """Reports each address in the built site's pages and style sheets."""
  for path in sorted(Path(config.site_dir).rglob("*")):
    if path.suffix not in {".html", ".css"}:
      continue
    text = path.read_text(encoding="utf-8")
    for address in sorted({found for pattern in _FETCHES for found in pattern.findall(text)}):
      name = path.relative_to(config.site_dir)
      logging.getLogger("mkdocs.hooks.fetches").warning(f"{name} fetches {address}")
