"""The server's addresses: the page at `/` and `POST /v1/infill`."""

import asyncio
import contextlib
import json
import threading
import traceback
from collections.abc import Awaitable, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from sedd_jax.demo.device import LAST_KINDS, Busy, Device
from sedd_jax.demo.hosts import Hosts
from sedd_jax.demo.infill import MOST_BYTES, MOST_STEPS, parse_infill
from sedd_jax.generation.model import LanguageModel

# A client gets so long to send a body, and to take what is sent to it.
SECONDS = 20.0
# Steps that may be drawn but not sent yet.
_MOST_UNSENT = 64

Event = tuple[str, Mapping[str, Any]]


def make_app(model: LanguageModel, device: Device, page: str, hosts: Hosts) -> ASGIApp:
  """The application.

  Args:
    model: checks requests.
    device: draws them.
    page: HTML of the page.
    hosts: the names that it answers to.
  """

  async def home(request: Request) -> Response:
    return HTMLResponse(page, headers={"Cache-Control": "no-store", "X-Frame-Options": "DENY"})

  app = Starlette(
    routes=[
      Route("/", home, methods=["GET"]),
      Route("/v1/infill", InfillEndpoint(model, device), methods=["POST"]),
    ],
    exception_handlers={HTTPException: _refused, Exception: _failed},
  )
  return OwnHosts(app, hosts)


class OwnHosts:
  """An application that answers only requests to the server's own names."""

  def __init__(self, app: ASGIApp, hosts: Hosts):
    self._app, self._hosts = app, hosts

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
      return
    fault = self._hosts.fault(Headers(scope=scope))
    app = self._app if fault is None else error(403, fault)
    await app(scope, receive, send)


class InfillEndpoint:
  """`POST /v1/infill`: JSON for JSON, or server-sent events."""

  def __init__(self, model: LanguageModel, device: Device):
    self._model, self._device = model, device

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    try:
      wanted = parse_infill(await _body(Request(scope, receive)), self._model)
    except ClientDisconnect:
      return
    except ValueError as fault:
      await error(400, str(fault))(scope, receive, send)
      return
    outbox = Outbox(asyncio.get_running_loop())
    try:
      drawing = self._device.submit(wanted, outbox.emit)
    except Busy as busy:
      response = error(503, str(busy), {"Retry-After": str(busy.seconds)})
      await response(scope, receive, send)
      return
    if wanted.stream:
      answer = _stream(outbox, send)
    else:
      answer = _result(outbox, scope, receive, send)
    try:
      await _while_there(answer, receive)
    finally:
      self._device.withdraw(drawing)
      outbox.close()


class Outbox:
  """Events on their way from the device's thread to a client.

  The device waits for a client that is slower, so that what is unsent takes little memory. One that
  takes nothing for `SECONDS` is dropped by `_stream`.

  Args:
    loop: the loop that sends.
  """

  def __init__(self, loop: asyncio.AbstractEventLoop):
    self._loop = loop
    self._events: asyncio.Queue[Event] = asyncio.Queue()
    self._room = threading.Semaphore(_MOST_UNSENT)

  def emit(self, kind: str, data: Mapping[str, Any]) -> None:
    """Adds an event, from any thread."""
    if kind == "step":
      self._room.acquire(timeout=SECONDS)
    with contextlib.suppress(RuntimeError):  # The server has ended, and its loop is closed.
      self._loop.call_soon_threadsafe(self._events.put_nowait, (kind, data))

  async def next(self) -> Event:
    """The next event."""
    kind, data = await self._events.get()
    if kind == "step":
      self._room.release()
    return kind, data

  def close(self) -> None:
    """Lets the device go on: nobody takes events any more."""
    self._room.release(MOST_STEPS + 2)


def error(status: int, reason: str, headers: Mapping[str, str] | None = None) -> Response:
  """A response that says why there is no other."""
  return JSONResponse({"error": reason}, status, headers)


async def _body(request: Request) -> bytes:
  """The body of a request.

  Raises:
    HTTPException: it is too large, comes too slowly, or ends too early.
  """
  too_large = HTTPException(413, f"the body must have at most {MOST_BYTES:,} bytes")
  length = request.headers.get("content-length", "")
  if length.isdecimal() and int(length[:20]) > MOST_BYTES:
    raise too_large
  body = bytearray()
  try:
    async with asyncio.timeout(SECONDS):
      async for part in request.stream():
        body += part
        if len(body) > MOST_BYTES:
          raise too_large
  except TimeoutError:
    raise HTTPException(408, f"the body did not come within {SECONDS:g} seconds") from None
  return bytes(body)


async def _while_there(answer: Awaitable[None], receive: Receive) -> None:
  """Gives the answer, or ends it where the client goes away first."""
  tasks = [asyncio.ensure_future(answer), asyncio.ensure_future(_gone(receive))]
  try:
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
  finally:
    for task in tasks:
      task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
  for result in results:
    if isinstance(result, Exception):
      raise result


async def _gone(receive: Receive) -> None:
  """Returns when the client has gone away."""
  while (await receive())["type"] != "http.disconnect":
    pass


async def _result(outbox: Outbox, scope: Scope, receive: Receive, send: Send) -> None:
  """Sends the last event as the response."""
  while True:
    kind, data = await outbox.next()
    if kind in LAST_KINDS:
      break
  status = {"done": 200, "refused": 400, "failed": 503}[kind]
  await JSONResponse(data, status)(scope, receive, send)


async def _stream(outbox: Outbox, send: Send) -> None:
  """Sends all events as they come."""
  headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
  await send({"type": "http.response.start", "status": 200, "headers": headers})
  going = True
  while going:
    kind, data = await outbox.next()
    going = kind not in LAST_KINDS
    name = kind if kind not in LAST_KINDS or kind == "done" else "error"
    part = f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()
    try:
      async with asyncio.timeout(SECONDS):
        await send({"type": "http.response.body", "body": part, "more_body": going})
    except TimeoutError:  # The client is there but reads nothing.
      return


def _refused(request: Request, exception: Exception) -> Response:
  assert isinstance(exception, HTTPException)
  return error(exception.status_code, exception.detail, exception.headers)


def _failed(request: Request, exception: Exception) -> Response:
  traceback.print_exception(exception)
  return error(500, f"{type(exception).__name__}: a bug of sedd_jax; the server's log has more")
