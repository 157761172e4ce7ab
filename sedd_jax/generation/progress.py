"""Generation with a progress bar."""

import contextlib
import sys
from collections.abc import Callable, Iterator

from sedd_jax.generation.generator import OnProgress
from sedd_jax.generation.model import LanguageModel
from sedd_jax.generation.samples import Batches, SampleRequest, generate


def generate_with_bar(
  model: LanguageModel,
  request: SampleRequest,
  *,
  batch: int,
  skip: int = 0,
  record: bool = False,
) -> Batches:
  """As `generate`, with a bar on stderr if it is a terminal, and a note if it resumes."""
  if skip:
    print(f"resuming after {skip} existing samples", file=sys.stderr)
  with _bar(len(request.numbers), skip) as (on_progress, advance):
    batches = generate(
      model, request, batch=batch, skip=skip, record=record, on_progress=on_progress
    )
    for numbers, generation in batches:
      yield numbers, generation
      advance(len(numbers))


@contextlib.contextmanager
def _bar(samples: int, done: int) -> Iterator[tuple[OnProgress | None, Callable[[int], None]]]:
  if not sys.stderr.isatty():
    yield None, lambda count: None
    return
  from rich.console import Console
  from rich.progress import Progress

  with Progress(console=Console(stderr=True), transient=True) as progress:
    total = progress.add_task("samples", total=samples, completed=done)
    steps = progress.add_task("steps", total=1.0)
    yield (
      lambda step, share: progress.update(steps, completed=share),
      lambda count: progress.advance(total, count),
    )
