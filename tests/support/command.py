"""The command `sedd` in this process: one of its own would spend its time on importing jax."""

import contextlib
import dataclasses
import io
import sys
from unittest import mock

from absl import flags

from sedd_jax.cli import main as cli


@dataclasses.dataclass
class Done:
  """As subprocess.run gives it."""

  returncode: int
  stdout: str
  stderr: str


def sedd(*arguments):
  """Runs `sedd ARGUMENTS`. Not for verbs that change jax's settings."""
  out, err, code = io.StringIO(), io.StringIO(), 0
  _forget()
  with (
    mock.patch.object(sys, "argv", ["sedd", *map(str, arguments)]),
    contextlib.redirect_stdout(out),
    contextlib.redirect_stderr(err),
  ):
    try:
      cli.main()
    except SystemExit as left:
      code = left.code or 0
    finally:
      _forget()
  return Done(code, out.getvalue(), err.getvalue())


def _forget():
  """Verbs define flags of the same name, and a flag keeps its value: all is as before an import."""
  verbs = {f"sedd_jax.cli.{verb}" for verb in cli.VERBS}
  for module, defined in flags.FLAGS.flags_by_module_dict().items():
    for flag in list(defined):
      if module in verbs or flag.name.split(".")[0] == "config":
        with contextlib.suppress(AttributeError):
          delattr(flags.FLAGS, flag.name)
      else:
        flag.unparse()
  flags.FLAGS.unparse_flags()
  for verb in verbs:
    sys.modules.pop(verb, None)
