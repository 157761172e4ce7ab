"""Texts of compiled programs."""

import re

import jax
import numpy as np

DOT = 2 * 64 * 128 * 128  # Of [64, 128] by [128, 128].
X, W = np.ones((64, 128), np.float32), np.ones((128, 128), np.float32)


def compiled(function, *arguments):
  return jax.jit(function).lower(*arguments).compile()


def text_of(function, *arguments, counts=True):
  """A program's text; with counts=False without XLA's own notes on loops, as libtpu leaves it."""
  text = compiled(function, *arguments).as_text()
  return text if counts else re.sub(r"known_\w+", "unknown", text)


def module(*lines, head=""):
  """The text of a program whose entry holds these instructions."""
  body = "\n".join(f"  {line}" for line in lines)
  return f"HloModule m\n\n{head}\nENTRY %main (p: f32[8]) -> f32[8] {{\n{body}\n}}\n"
