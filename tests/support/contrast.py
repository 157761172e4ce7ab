"""Contrast of colours on a page, by WCAG 2."""

import re

import numpy as np

# [what, ink, ground] of each element with text.
_TEXTS = (
  "[...document.querySelectorAll('body *')].filter((e) => e.innerText?.trim() && !e.disabled"
  " && !e.closest('.heard') && e.checkVisibility()).map((e) => { const s = getComputedStyle(e);"
  " let g = e; while (getComputedStyle(g).backgroundColor === 'rgba(0, 0, 0, 0)')"
  " g = g.parentElement;"
  " return [e.className || e.id || e.tagName, s.color, getComputedStyle(g).backgroundColor] })"
)


def contrast(one, other):
  """WCAG 2's contrast of two CSS colours."""

  def luminance(colour):
    share = np.array([float(n) for n in re.findall(r"[\d.]+", colour)[:3]]) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]

  low, high = sorted((luminance(one), luminance(other)))
  return (high + 0.05) / (low + 0.05)


def check_texts(page):
  """All texts of a page can be read on what is behind them."""
  seen = page.run(_TEXTS)
  assert len({tuple(one) for one in seen}) > 10
  for name, ink, ground in seen:
    assert contrast(ink, ground) >= 4.5, (name, ink, ground)
