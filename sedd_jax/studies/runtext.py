"""The text that a run was trained on, also where it lies in another place now."""

import dataclasses

from sedd_jax.data import Dataset, load_dataset
from sedd_jax.data.patterns import source_faults
from sedd_jax.generation.model import LanguageModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class MovedText:
  """Where the text of a run is now; fields that are empty are as the run's config says.

  Attributes:
    files: instead of its `data.files`.
    heldout_files: instead of its `data.heldout_files`.
  """

  files: str = ""
  heldout_files: str = ""

  def faults(self) -> list[str]:
    """A line for each name that can be no path."""
    return [
      fault
      for field in dataclasses.fields(self)
      for fault in source_faults(getattr(self, field.name), f"--{field.name}")
    ]

  @property
  def given(self) -> dict[str, str]:
    """The fields that are not empty."""
    return {name: value for name, value in dataclasses.asdict(self).items() if value}


def run_dataset(model: LanguageModel, name: str, moved: MovedText = MovedText()) -> Dataset:
  """The text of a run: the same, to its hash, that it was trained on.

  Args:
    model: the run, loaded.
    name: what the user called it.
    moved: where its text is now.

  Raises:
    ValueError: the model is no run of ours, or the text is another one.
    FileNotFoundError: the text is not there; the message names the flags.
  """
  if model.tokenizer is None or "experiment" not in model.info:
    raise ValueError(f"{name} is no run of ours: it names no held-out text")
  data = dataclasses.replace(model.info["experiment"].data, **moved.given)
  try:
    return load_dataset(data, expected=model.info["corpus"], tokenizer=model.tokenizer)
  except FileNotFoundError as error:
    fields = [name for name in ("files", "heldout_files") if getattr(data, name)]
    raise FileNotFoundError(
      f"{error}. The text of {name} may have moved: "
      f"{' '.join(f'--{field}=...' for field in fields)} names its new place"
    ) from error
