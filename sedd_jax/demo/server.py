"""The server: a socket, a device and an application, until a signal ends them."""

import asyncio
import contextlib
import errno
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import uvicorn

from sedd_jax.demo.device import LAST_KINDS, Device
from sedd_jax.demo.endpoints import make_app
from sedd_jax.demo.hosts import Hosts
from sedd_jax.demo.infill import Infill
from sedd_jax.demo.page import demo_page, takes
from sedd_jax.generation.model import LanguageModel
from sedd_jax.generation.settings import SamplerSettings
from sedd_jax.generation.templates import blank

# Open connections, where the system allows as many files.
_MOST_FILES = 16_384
# Connections that wait to be accepted.
_BACKLOG = 2_048


def bind(host: str, port: int) -> socket.socket:
  """A socket bound to an address, not listening yet; port 0 takes a free one.

  Raises:
    OSError: the address cannot be used; the message says why.
  """
  try:
    family, kind, _, _, address = socket.getaddrinfo(
      host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    found = socket.socket(family, kind)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.bind(address)
  except OSError as error:
    raise OSError(
      f"--host={host} --port={port}: {error.strerror or error}; --port=0 takes a free port"
    ) from error
  return found


def url(bound: socket.socket, host: str) -> str:
  """The address of the page."""
  name = host if host not in ("", "0.0.0.0", "::") else "127.0.0.1"
  return f"http://{f'[{name}]' if ':' in name else name}:{bound.getsockname()[1]}"


def serve(
  model: LanguageModel, bound: socket.socket, *, host: str, note: Callable[[str], None]
) -> None:
  """Serves a model until SIGTERM ends the process, or Ctrl-C as KeyboardInterrupt.

  Args:
    model: the model; it needs a tokenizer.
    bound: the socket.
    host: what the user calls the host.
    note: is told what takes time.

  Raises:
    ValueError: the model has no tokenizer.
  """
  model.encode("")
  _allow_files()
  device = Device(model)
  with _ending(device):
    _warm_up(model, device, note)
    server = make_server(model, device, host)
    server.address = url(bound, host)
    server.run(sockets=[bound])


def make_server(model: LanguageModel, device: Device, host: str) -> "Server":
  """A server of a model that answers to a host's names."""
  app = make_app(model, device, demo_page(model), Hosts(host))
  config = uvicorn.Config(
    app,
    loop="asyncio",
    http="h11",
    ws="none",
    lifespan="off",
    backlog=_BACKLOG,
    log_level="critical",
    access_log=False,
    proxy_headers=False,
    server_header=False,
    timeout_graceful_shutdown=1,
  )
  return Server(config, device)


class Server(uvicorn.Server):
  """A server that stops without waiting for its device.

  Attributes:
    address: printed when it answers.
  """

  def __init__(self, config: uvicorn.Config, device: Device):
    super().__init__(config)
    self._device, self.address = device, ""

  async def startup(self, sockets: list[socket.socket] | None = None) -> None:
    asyncio.get_running_loop().set_exception_handler(_quietly)
    await super().startup(sockets)
    print(f"{self.address}  (Ctrl-C ends it)", flush=True)

  async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
    self._device.close()  # All that wait get their answer, so that none is waited for.
    await super().shutdown(sockets)


def _quietly(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
  """Says nothing of connections beyond the system's limit of open files: they wait."""
  if getattr(context.get("exception"), "errno", None) not in (errno.EMFILE, errno.ENFILE):
    loop.default_exception_handler(context)


@contextlib.contextmanager
def _ending(device: Device) -> Iterator[None]:
  """Ends the process at once, also while the device is busy."""
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
  try:
    yield
  except KeyboardInterrupt:
    print("error: interrupted", file=sys.stderr)
    _leave(device, 130)
  except SystemExit:
    _leave(device, 0)


def _leave(device: Device, code: int) -> NoReturn:
  """Ends the process without Python's own end, which the compiler's threads can abort."""
  device.close()
  device.ended(1.0)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def _warm_up(model: LanguageModel, device: Device, note: Callable[[str], None]) -> None:
  """Compiles what a request with default settings needs."""
  one_step = SamplerSettings(steps=1)
  settings = one_step if takes(model, one_step) else SamplerSettings()
  done, started = threading.Event(), time.monotonic()
  note(f"compiling for {model.length} tokens")

  def emit(kind, data):
    if kind in LAST_KINDS:
      done.set()
    if kind in ("refused", "failed") and not device.closed:
      note(f"compiling failed: {data['error']}")

  device.submit(Infill(template=blank(model.length), settings=settings, seed=0), emit)
  done.wait()
  note(f"compiled in {time.monotonic() - started:.1f} s")


def _allow_files() -> None:
  """Raises the limit of open files, each connection being one."""
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(_MOST_FILES, hard)
  if soft != resource.RLIM_INFINITY and soft < wanted:
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
