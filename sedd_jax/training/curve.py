"""The loss curve of a run: training loss and held-out bound against steps."""

from pathlib import Path
from typing import Any

FILE = "loss.png"


def draw_curve(
  path: Path, metrics: list[dict[str, Any]], entropies: dict[str, float], title: str
) -> None:
  """Draws the loss curve into a PNG.

  Args:
    path: the file.
    metrics: lines of `read_metrics`.
    entropies: name to bits per character; each is drawn as a horizontal line.
    title: of the picture.
  """
  from matplotlib.figure import Figure  # Slow to import, and only needed here.

  figure = Figure(figsize=(8, 4.5), layout="constrained")
  axes = figure.subplots()
  loss = [(m["step"], m["train_bits_per_char"]) for m in metrics if "train_bits_per_char" in m]
  if loss:
    axes.plot(*zip(*loss, strict=True), color="0.6", linewidth=0.8, label="training loss")
  bound = [m for m in metrics if "heldout_bits_per_char_strict" in m]
  if bound:
    axes.errorbar(
      [m["step"] for m in bound],
      [m["heldout_bits_per_char_strict"] for m in bound],
      yerr=[2 * m.get("heldout_bits_per_char_strict_stderr", 0.0) for m in bound],
      fmt="o-",
      markersize=4,
      color="C0",
      label="held-out bound (strict, ± 2 s.e.)",
    )
  for i, (name, bits) in enumerate(entropies.items()):
    axes.axhline(bits, color=f"C{i + 1}", linestyle="--", linewidth=1, label=f"{name} ({bits:.2f})")
  if bound:
    # The losses of the first steps are much higher than the rest.
    top = max(*entropies.values(), bound[0]["heldout_bits_per_char_strict"])
    low = min(*entropies.values(), *(m["heldout_bits_per_char_strict"] for m in bound))
    axes.set_ylim(max(0.0, low - 0.8), top + 0.5)
  axes.set(xlabel="step", ylabel="bits per character", title=title)
  axes.grid(alpha=0.3)
  axes.legend(frameon=False)
  figure.savefig(path, dpi=120)
