"""docs/tutorial.ipynb runs in a fresh kernel, and its numbers, old and new, are what it claims."""

import json
import math
import os

import nbclient
import nbformat
import pytest
from support.paths import REPOSITORY

PATH = REPOSITORY / "docs" / "tutorial.ipynb"


@pytest.fixture(scope="module")
def stored():
  return nbformat.read(PATH, as_version=4)


@pytest.fixture(scope="module")
def executed():
  client = nbclient.NotebookClient(nbformat.read(PATH, as_version=4), timeout=300)
  # The reader's compiler, not that of the tests (conftest.py), which optimizes nothing.
  environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
  return client.execute(env=environment)


def printed(notebook):
  """The numbers that the last cell of code prints."""
  *_, last = (cell for cell in notebook.cells if cell.cell_type == "code")
  return json.loads("".join(output.text for output in last.outputs))


@pytest.mark.parametrize("which", ["stored", "executed"])
def test_its_claims_hold(which, request):
  found = printed(request.getfixturevalue(which))
  assert abs(found["loss_above_minimum"]) < 1e-5
  assert found["ratio_error"] < 1e-3

  # One step treats the letters as independent; 32 steps have 1/32 of the noise each.
  assert found["variation"]["Tweedie, 1 step"] > 0.2
  assert found["variation"]["Tweedie, 32 steps"] < 0.03
  assert found["first_hitting_off"] < 4.5  # The largest of nine, and the model is not exact.

  untrained, stderr = found["untrained"]
  assert stderr < 0.01
  assert abs(untrained - math.log(9)) < 4 * stderr
  bound, stderr = found["bound"]
  assert stderr < 0.01
  assert abs(bound - found["exact_bound"]) < 4 * stderr
  # The entropy is below the model's cross entropy, and that is below its bound.
  assert 0 <= found["divergence"] < 0.002
  assert found["entropy"] + found["divergence"] <= found["exact_bound"] < found["entropy"] + 0.004


def test_it_is_stored_as_it_reads_on_github(stored):
  assert PATH.stat().st_size < 400_000
  code = [cell for cell in stored.cells if cell.cell_type == "code"]
  assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
  pictures = [o for cell in code for o in cell.outputs if "image/png" in o.get("data", {})]
  assert len(pictures) == 4
  assert not [o for cell in code for o in cell.outputs if o.output_type == "error"]
