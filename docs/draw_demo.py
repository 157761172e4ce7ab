"""Draws docs/demo.gif: the page of `sedd demo` while it fills in a template, in headless Chromium.

python docs/draw_demo.py [--checkpoint=RUN] [--template=TEXT] [--seed=N]
"""

import argparse
import io
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "tests"))

from support.browser import Page, find_chromium  # noqa: E402 - Found through the line above.

_WIDTH, _HEIGHT = 880, 800
_FRAMES = 48
_MILLISECONDS, _AT_THE_END = 120, 4000


def main() -> None:
  """Writes the picture."""
  flags = argparse.ArgumentParser(prog="python docs/draw_demo.py", description=__doc__)
  flags.add_argument("--checkpoint", help="as in sedd demo")
  flags.add_argument("--template", default="Once upon a time, there was a[[8]] who[[*]]")
  flags.add_argument("--steps", type=int, default=96)
  flags.add_argument("--seed", type=int, default=0)
  flags.add_argument("--out", type=Path, default=REPOSITORY / "docs" / "demo.gif")
  options = flags.parse_args()
  command = [sys.executable, "-m", "sedd_jax.cli.demo", "--port=0"]
  if options.checkpoint is not None:
    command.append(f"--checkpoint={options.checkpoint}")
  program = find_chromium()
  if program is None:
    sys.exit("no Chromium is installed")
  server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
  assert server.stdout is not None
  address = server.stdout.readline().split()
  if not address:
    sys.exit(server.wait())
  try:
    with tempfile.TemporaryDirectory() as profile:
      page = Page(program, Path(profile))
      frames = pictures(page, address[0], options.template, options.steps, options.seed)
      page.close()
  finally:
    server.send_signal(signal.SIGTERM)
    server.wait()
  durations = [_MILLISECONDS] * (len(frames) - 1) + [_AT_THE_END]
  frames[0].save(
    options.out, save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=True
  )
  print(f"{options.out}: {len(frames)} frames, {options.out.stat().st_size:,} bytes")


def pictures(page: Page, url: str, template: str, steps: int, seed: int) -> list[Image.Image]:
  """Frames of a drawing, evenly chosen among its steps, in one palette."""
  page.visit(url, width=_WIDTH, height=_HEIGHT, calm=True)
  page.run(f"$('template').value = {template!r}; $('steps').value = {steps}")
  page.run(f"$('seed').value = {seed}; $('draw').click()")
  page.wait("!drawing && result !== null", 120)
  page.run("scrollTo(0, 0)")
  last = page.run("last")
  found = []
  for frame in sorted({round(i * last / (_FRAMES - 1)) for i in range(_FRAMES)}):
    # All that is new since the frame before is marked.
    page.run(f"show({frame}, at)")
    found.append(picture(page))
  page.run("fresh.clear(); spans.forEach((_, i) => draw(i))")
  found.append(picture(page))
  palette = found[len(found) // 2].quantize(64, dither=Image.Dither.NONE)
  return [one.quantize(palette=palette, dither=Image.Dither.NONE) for one in found]


def picture(page: Page) -> Image.Image:
  """What the page shows."""
  with tempfile.NamedTemporaryFile(suffix=".png") as file:
    page.screenshot(Path(file.name))
    return Image.open(io.BytesIO(Path(file.name).read_bytes())).convert("RGB")


if __name__ == "__main__":
  main()
