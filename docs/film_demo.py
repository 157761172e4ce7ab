"""docs/demo.gif: the page of `sedd demo`, filmed in a headless Chromium while it fills in a text.

PYTHONPATH=tests python docs/film_demo.py
"""

import io
import tempfile
from pathlib import Path

from PIL import Image
from support.browser import Page, find_chromium
from support.demo import running

import sedd_jax

TEMPLATE = "Once upon a time, there was a[[*]] They were happy."
FILE = Path(__file__).with_name("demo.gif")
SIZE = {"width": 760, "height": 560}
COLOURS, LAST = 24, 2500


def main() -> None:
  """Writes the file."""
  program = find_chromium()
  if program is None:
    raise SystemExit("no Chromium is installed")
  frames = []
  with tempfile.TemporaryDirectory() as folder, running(sedd_jax.load()) as demo:
    page, shot = Page(program, Path(folder)), Path(folder) / "shot.png"

    def take() -> None:
      page.screenshot(shot)
      frames.append(Image.open(io.BytesIO(shot.read_bytes())).convert("RGB"))

    page.visit(demo.url, **SIZE)
    for name, value in {"template": TEMPLATE, "steps": "32", "seed": "5"}.items():
      page.run(f"$('{name}').value = {value!r}; $('{name}').dispatchEvent(new Event('change'))")
    take()
    page.run("$('draw').click()")
    page.wait("!drawing && result !== null", 120)
    # The steps that were drawn, one by one, as a reader goes back through them.
    page.run("document.activeElement.blur()")
    page.press("Home")
    take()
    while frames[-1] != frames[-2]:
      page.press("ArrowRight")
      take()
    page.close()
  frames.pop()
  palette = frames[-1].quantize(COLOURS, dither=Image.Dither.NONE)
  still = [one.quantize(palette=palette, dither=Image.Dither.NONE) for one in frames]
  durations = [800, *[140] * (len(still) - 2), LAST]
  still[0].save(
    FILE, save_all=True, append_images=still[1:], duration=durations, loop=0, optimize=True
  )
  print(f"{FILE}: {len(still)} frames, {FILE.stat().st_size:,} bytes")


if __name__ == "__main__":
  main()
