"""A trace as one offline HTML page: all samples, to play and step through.

`player.css`, `player.html` and `player.js` show a trace on any page; `page.html` and `page.js` make
the page of a finished one.
"""

import base64
import hashlib
import html
import importlib.resources
import json
import re
from collections.abc import Mapping
from importlib.resources.abc import Traversable
from typing import Any

import numpy as np

from sedd_jax.generation.traces.cells import Cells
from sedd_jax.generation.traces.trace import Trace


def page_of(trace: Trace, cells: Cells) -> str:
  """The page: `page.html` with the data filled in."""
  checkpoint = trace.settings.get("checkpoint", "")
  return page_with_player(
    importlib.resources.files("sedd_jax.generation.traces"),
    title=f"Trace of {checkpoint}" if checkpoint else "Trace",
    data=page_data(trace, cells),
  )


def page_with_player(folder: Traversable, *, title: str, data: Mapping[str, Any]) -> str:
  """The page that a folder's `page.html` and `page.js`, and its `page.css` if it has one, make with
  the player.

  Args:
    folder: a package's files.
    title: text of the title.
    data: what the script finds as JSON in the element `data`.
  """
  player = importlib.resources.files("sedd_jax.generation.traces")
  style, script = _read(player, "player.css"), _read(player, "player.js") + _read(folder, "page.js")
  if folder.joinpath("page.css").is_file():
    style += _read(folder, "page.css")
  fill = {
    "title": html.escape(title),
    "data": _embedded(data),
    "player": _read(player, "player.html"),
    "style": style,
    "script": script,
    # The line breaks around them on the page belong to them.
    "style_hash": _hash(f"\n{style}"),
    "script_hash": _hash(f"\n{script}"),
  }
  # In one pass, so that nothing in the data is taken for a placeholder.
  return re.sub(r"\{\{(\w+)\}\}", lambda match: fill[match[1]], _read(folder, "page.html"))


def page_data(trace: Trace, cells: Cells) -> dict[str, Any]:
  """The page's data as JSON: the first frame of each sample and the changes of each step.

  A step is a flat list of (position, entry of `texts`) pairs; a position is relative to the one
  before it.
  """
  num_frames, num_samples, _ = trace.tokens.shape
  return {
    "masks": trace.has_masks,
    "ids": cells.ids,
    "texts": cells.texts,
    "calls": trace.calls.tolist(),
    "seconds": round(trace.seconds, 3),
    "settings": [[name, str(value)] for name, value in trace.settings.items()],
    "samples": [
      {
        "given": np.flatnonzero(trace.given[b]).tolist(),
        "times": trace.times[:, b].round(4).tolist(),
        "start": cells.index[0, b].tolist(),
        "steps": [_changes(*cells.index[k - 1 : k + 1, b]) for k in range(1, num_frames)],
      }
      for b in range(num_samples)
    ],
  }


def _changes(before: np.ndarray, after: np.ndarray) -> list[int]:
  where = np.flatnonzero(before != after)
  return np.stack([np.diff(where, prepend=0), after[where]], axis=-1).ravel().tolist()


def _embedded(data: Mapping[str, Any]) -> str:
  """JSON that cannot end the script element around it: no `<` at all, and ASCII only."""
  return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _hash(code: str) -> str:
  """The hash by which the page's content security policy allows exactly this code."""
  return "sha256-" + base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()


def _read(folder: Traversable, name: str) -> str:
  return folder.joinpath(name).read_text("utf-8")
