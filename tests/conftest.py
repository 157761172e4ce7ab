"""Shared settings: CPU with 4 fake devices, strict ranks; golden data and skips."""

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the time goes into compiling tiny programs: LLVM's optimizer would double it.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
# And what one test has compiled, the next need not, nor the processes that tests start.
# The workers of xdist share it. One that the environment names is used, and kept for the next run.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="sedd_jax_tests")
  atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

from pathlib import Path

import jax
import numpy as np
import pytest

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Their assertions are to say what failed, as those of test files do.
pytest.register_assert_rewrite("support")

from support.paths import SHARED  # noqa: E402 - Registered first.

# Faults that tests inject, and the table of docs/reliability.md.


def pytest_addoption(parser):
  parser.addoption(
    "--fault-table", type=Path, metavar="FILE", help="write the table of faults into this document"
  )


@pytest.fixture
def fault(request):
  """Notes that a test has injected a fault: fault("one flipped bit", injected=12, result="...")."""

  def note(name, *, injected, result):
    request.node.user_properties.append(("fault", [name, injected, result]))

  return note


def pytest_terminal_summary(terminalreporter, config):
  document = config.getoption("--fault-table")
  # Not in a worker of xdist, which has the option too: reports come together in the first process.
  if document is None or hasattr(config, "workerinput"):
    return
  passed = [report for report in terminalreporter.stats.get("passed", []) if report.when == "call"]
  rows = [
    f"| {name} | {injected} | {result} |"
    for report in sorted(passed, key=lambda report: report.location)
    for key, (name, injected, result) in report.user_properties
    if key == "fault"
  ]
  start, end = "<!-- faults -->\n", "<!-- end of faults -->"
  before, _, rest = document.read_text().partition(start)
  table = "\n".join(["| fault | times injected | result |", "|---|---|---|", *rows])
  document.write_text(f"{before}{start}{table}\n{end}{rest.partition(end)[2]}")
  terminalreporter.write_line(f"{len(rows)} faults written to {document}")


@pytest.fixture
def x64():
  """Runs the test in float64."""
  with jax.enable_x64(True):
    yield


@pytest.fixture
def quick_compilation():
  """Compiles without optimisation: where many small programs run once, that is where time goes."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def quick_module():
  """The same for all of a module, whose threads outlive a test."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
  """A headless browser, a `support.browser.Page`."""
  from support.browser import PROGRAMS, Page, find_chromium  # Below the line that rewrites asserts.

  program = find_chromium()
  if program is None:
    pytest.skip(f"no browser is installed: none of {', '.join(PROGRAMS)}")
  page = Page(program, tmp_path_factory.mktemp("profile"))
  yield page
  page.close()


@pytest.fixture
def strict_keys():
  """Fails the test where a PRNG key is used twice."""
  with jax.debug_key_reuse(True):
    yield


@pytest.fixture(scope="session")
def golden():
  """Loads golden arrays by file name: from tests/golden, else from ../shared/golden."""

  def load(name: str) -> dict[str, np.ndarray]:
    for folder in (Path(__file__).parent / "golden", SHARED / "golden"):
      if (folder / name).is_file():
        with np.load(folder / name) as arrays:
          return dict(arrays)
    pytest.skip(f"golden file {name} is not here: it lies in ../shared/golden, beside the checkout")

  return load


@pytest.fixture
def shared_path():
  """A path in ../shared, or a skip where the checkout stands alone."""

  def find(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
      pytest.skip(f"../shared/{name} is not here: it is not part of the package")
    return path

  return find
