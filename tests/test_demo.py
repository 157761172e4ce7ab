"""`sedd demo`: requests and what they get, the line before the device, clients of all manners."""

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from support.command import sedd
from support.demo import (
  LENGTH,
  UNIFORM,
  Gated,
  events,
  running,
  tiny_causal_model,
  tiny_model,
  until,
)

import sedd_jax
from sedd_jax.demo import device as devices
from sedd_jax.demo import endpoints
from sedd_jax.demo.device import MOST_WAITING, Busy, Device
from sedd_jax.demo.hosts import Hosts
from sedd_jax.demo.infill import MOST_BYTES, MOST_CHARACTERS, parse_infill
from sedd_jax.demo.page import demo_page
from sedd_jax.generation.generator import Generation
from sedd_jax.generation.templates import parse_template

TEMPLATE = "ab[[4]]c[[*]]"


pytestmark = pytest.mark.usefixtures("quick_module")


@pytest.fixture(scope="module")
def demo():
  with running(tiny_model()) as found:
    found.post({"template": TEMPLATE, "steps": 1})
    yield found


@pytest.fixture
def gated():
  """A demo whose model takes a step when the test lets it."""
  model = Gated.like(tiny_model())
  with running(model, most_waiting=3) as found:
    found.model = model
    yield found


# ---- What a request gets -----------------------------------------------------------------------


@pytest.mark.parametrize(
  "settings",
  [
    {},
    {"steps": 5, "seed": 3},
    {"steps": 7, "seed": 3, "temperature": 0.7, "length": LENGTH - 1},
    {"sampler": "first_hitting", "seed": 2**32 - 1},
    {"sampler": "remdm:cap=0.1", "steps": 4, "seed": 2},
  ],
  ids=str,
)
def test_the_text_is_that_of_infill_in_python(demo, settings):
  status, answer = demo.post({"template": TEMPLATE, **settings})
  assert status == 200
  assert list(answer) == ["text", "tokens", "calls", "seed"]
  assert answer["seed"] == settings.get("seed", answer["seed"])
  model, how = tiny_model(), {k: v for k, v in settings.items() if k not in ("length", "seed")}
  template = parse_template(
    TEMPLATE, model.encode, length=settings.get("length"), longest=model.length
  )
  want = model.infill(template.tokens[None], template.given[None], seed=answer["seed"], **how)
  assert answer["tokens"] == want[0].tolist()
  assert answer["text"] == model.text(want[0])
  assert answer["text"].startswith("ab")
  assert answer["calls"] >= 1


def test_without_a_seed_each_request_has_its_own(demo):
  seeds = {demo.post({"template": TEMPLATE, "steps": 1})[1]["seed"] for _ in range(3)}
  assert len(seeds) == 3


@pytest.mark.parametrize("process", [None, UNIFORM], ids=["absorbing", "uniform"])
def test_events_are_the_steps_and_the_result(demo, process):
  asked = {"template": TEMPLATE, "steps": 6, "seed": 4}
  model = tiny_model() if process is None else tiny_model(process)
  with contextlib.ExitStack() as stack:
    if process is not None:
      demo = stack.enter_context(running(model))
    response = demo.open({**asked, "stream": True}).getresponse()
    assert response.headers["Content-Type"] == "text/event-stream"
    found = list(events(response))
    _, answer = demo.post(asked)
  kinds = [kind for kind, _ in found if kind not in ("waiting", "compiling")]
  assert kinds == ["start", *["step"] * 8, "done"]
  assert found[-1][1] == answer
  (start,) = [data for kind, data in found if kind == "start"]
  assert start == {"length": LENGTH, "given": [0, 1, 6], "seed": 4}
  steps = [data for kind, data in found if kind == "step"]
  assert [step["step"] for step in steps] == list(range(8))
  assert [step["calls"] for step in steps][-1] == answer["calls"]
  shown = {}
  for step in steps:
    assert all(shown.get(i) != (token, text) for i, token, text in step["changes"])
    shown |= {i: (token, text) for i, token, text in step["changes"]}
    masks = sum(token is None for token, _ in shown.values())
    if step["step"] == 0:
      assert masks == (LENGTH - 3 if process is None else 0)
  assert masks == 0
  assert [shown[i] for i in range(LENGTH)] == [
    (token, model.decode([[token]])[0]) for token in answer["tokens"]
  ]


def test_an_autoregressive_model_continues_a_prefix():
  model = tiny_causal_model()
  with running(model) as demo:
    asked = {"template": "ab[[*]]", "seed": 3, "temperature": 0.5}
    found = list(events(demo.open({**asked, "stream": True}).getresponse()))
    status, answer = demo.post({"template": "[[2]]ab"})
    assert status == 400
    assert "cannot fill in" in answer["error"]
    status, answer = demo.post({**asked, "steps": 4})
    assert status == 400
    assert "token by token" in answer["error"]
  template = parse_template("ab[[*]]", model.encode, length=None, longest=LENGTH)
  want = model.infill(template.tokens[None], template.given[None], seed=3, temperature=0.5)
  assert found[-1][1]["tokens"] == want[0].tolist()
  steps = [data["changes"] for kind, data in found if kind == "step"]
  assert [len(changes) for changes in steps[3:]] == [1] * (LENGTH - 2)
  data = demo_page(model).split('id="data">', 1)[1].split("</script>", 1)[0]
  assert json.loads(data)["samplers"] == [
    {"name": "tweedie", "label": "autoregressive", "steps": False}
  ]


# ---- What is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("body", "reason"),
  [
    (b"", "no JSON"),
    (b"\xff\xfe{", "no JSON"),
    (b"{", "no JSON"),
    (b"nonsense", 'for example {"template"'),
    (b"[]", "must be a JSON object"),
    (b"[" * 50_000, "nested too deeply"),
    (b'{"template": "[[2]]", "temperature": NaN}', "NaN is no number of JSON"),
    (b'{"template": "[[2]]", "temperature": 1e999}', "temperature=inf must lie in [0,"),
    (b'{"template": "[[2]]", "seed": ' + b"1" * 5000 + b"}", "no JSON"),
    (b'{"template": "[[2]]", "template": "[[3]]"}', 'key "template" occurs twice'),
    (b'{"template": "\\ud800[[2]]"}', "template: character 0 is half of a surrogate pair"),
    ({}, "template is missing"),
    ({"template": None}, "template is missing"),
    ({"template": 5}, "template=5 must be text"),
    ({"template": "ab"}, "leaves nothing to fill in: add a blank"),
    ({"template": "[[0]]"}, "takes at least one token"),
    ({"template": "[[*]][[*]]"}, "at most one is possible"),
    ({"template": "[[25]]"}, "25 tokens exceed the 24"),
    ({"template": "xyz[[2]]"}, "template: "),
    ({"template": "a" * (MOST_CHARACTERS + 1)}, "must have at most 16,384"),
    ({"template": "[[2]]", "temprature": 1}, "'temperature'"),
    ({"template": "[[2]]", "n": 1}, "the keys are template, length, steps"),
    ({"template": "[[2]]", "length": 0}, "length=0 must be at least 1"),
    ({"template": "[[2]]", "length": 25}, "length=25 must be at most 24"),
    ({"template": "[[2]]", "length": 2.0}, "length=2.0 must be an integer"),
    ({"template": "[[2]]", "length": True}, "length=true must be an integer"),
    ({"template": "[[2]]", "steps": 0}, "steps=0 must be at least 1"),
    ({"template": "[[2]]", "steps": 4097}, "steps=4097 must be at most 4,096"),
    ({"template": "[[2]]", "steps": "8"}, 'steps="8" must be an integer'),
    ({"template": "[[2]]", "steps": 4, "sampler": "first_hitting"}, "leave steps out"),
    ({"template": "[[2]]", "sampler": "tweedy"}, "did you mean 'tweedie'"),
    ({"template": "[[2]]", "sampler": "remdm:cap=2"}, "remdm: cap=2.0 must lie in [0, 1]"),
    ({"template": "[[2]]", "temperature": 0}, "temperature=0"),
    ({"template": "[[2]]", "temperature": -1}, "temperature=-1 must lie in [0,"),
    ({"template": "[[2]]", "temperature": 10**400}, "must lie in [0,"),
    ({"template": "[[2]]", "temperature": "hot"}, 'temperature="hot" must be a number'),
    ({"template": "[[2]]", "seed": -1}, "seed=-1 must lie in [0, 2^32)"),
    ({"template": "[[2]]", "seed": 2**32}, "must lie in [0, 2^32)"),
    ({"template": "[[2]]", "stream": 1}, "stream=1 must be true or false"),
    ({"steps": "8", "x": 1}, 'x" is unknown'),
  ],
  ids=lambda value: str(value)[:40],
)
def test_bad_requests_are_refused_with_the_reason(demo, body, reason):
  status, answer = demo.post(body)
  assert status == 400
  assert list(answer) == ["error"]
  assert reason in answer["error"]
  assert len(answer["error"]) < 700


def test_all_errors_of_keys_are_reported_together(demo):
  _, answer = demo.post({"steps": "8", "x": 1})
  assert answer["error"].count("; ") >= 2


@pytest.mark.parametrize(
  ("method", "path", "status"),
  [("GET", "/v1/infill", 405), ("POST", "/", 405), ("GET", "/x", 404), ("PUT", "/v1/infill", 405)],
)
def test_other_addresses_are_refused_in_json_too(demo, method, path, status):
  with contextlib.closing(demo.connect()) as connection:
    connection.request(method, path)
    response = connection.getresponse()
    assert response.status == status
    assert list(json.loads(response.read())) == ["error"]


@pytest.mark.parametrize(
  ("bound", "host", "origin", "fits"),
  [
    ("127.0.0.1", "127.0.0.1:8000", None, True),
    ("127.0.0.1", "127.0.0.1", None, True),
    ("127.0.0.1", "localhost:8000", "http://localhost:8000", True),
    ("127.0.0.1", "LOCALHOST:8000", "http://localhost:8000", True),
    ("127.0.0.1", "[::1]:8000", None, True),
    ("127.0.0.1", "localhost:9999", None, True),  # Of an SSH tunnel.
    ("127.0.0.1", "evil.example", None, False),
    ("127.0.0.1", "evil.example:8000", None, False),
    ("127.0.0.1", "127.0.0.1.evil.example", None, False),
    ("127.0.0.1", "localhost.", None, False),
    ("127.0.0.1", "evil.example@localhost", None, False),
    ("127.0.0.1", "localhost:8000/x", None, False),
    ("127.0.0.1", "192.168.1.5:8000", None, False),
    ("127.0.0.1", "", None, False),
    ("127.0.0.1", "127.0.0.1:8000", "http://evil.example", False),
    ("127.0.0.1", "127.0.0.1:8000", "http://127.0.0.1:9000", False),
    ("127.0.0.1", "127.0.0.1:8000", "null", False),
    ("box.lan", "box.lan:8000", None, True),
    ("box.lan", "other.lan:8000", None, False),
    ("0.0.0.0", "192.168.1.5:8000", None, True),
    ("0.0.0.0", f"{socket.gethostname()}:8000", None, True),
    ("0.0.0.0", "evil.example", None, False),
    ("::", "[fe80::1]:8000", None, True),
    ("::", "evil.example", None, False),
  ],
)
def test_only_own_names_are_answered(bound, host, origin, fits):
  headers = {"host": host} | ({"origin": origin} if origin is not None else {})
  assert (Hosts(bound).fault(headers) is None) == fits


def test_a_request_under_another_name_is_refused(demo):
  for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
    status, answer = demo.post({"template": "[[2]]"}, headers=headers)
    assert status == 403
    assert "evil.example" in answer["error"]
  with contextlib.closing(demo.raw(b"GET / HTTP/1.0\r\n\r\n")) as client:
    assert client.recv(99).startswith(b"HTTP/1.1 403 ")


# ---- Bodies ------------------------------------------------------------------------------------


def test_huge_bodies_are_refused_before_they_are_read(demo):
  head = b"POST /v1/infill HTTP/1.1\r\nHost: localhost\r\n"
  with contextlib.closing(demo.raw(head + b"Content-Length: 9999999999999\r\n\r\n")) as client:
    assert client.recv(99).startswith(b"HTTP/1.1 413 ")
  chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
  chunked = head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * (MOST_BYTES // 0x10000 + 1)
  with contextlib.closing(demo.raw(chunked)) as client:
    assert client.recv(99).startswith(b"HTTP/1.1 413 ")
  status, answer = demo.post(b" " * (MOST_BYTES + 1))
  assert (status, list(answer)) == (413, ["error"])


def test_a_body_may_be_as_large_as_the_longest_template_needs(demo):
  template = "\U0001f642" * MOST_CHARACTERS  # Each is twelve bytes of JSON.
  status, answer = demo.post({"template": template})
  assert status == 400
  assert answer["error"].startswith("template: ")


def test_a_slow_body_is_refused(demo, monkeypatch):
  monkeypatch.setattr(endpoints, "SECONDS", 0.2)
  half = b'POST /v1/infill HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{"tem'
  with contextlib.closing(demo.raw(half)) as client:
    assert client.recv(99).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
  "data",
  [
    b"",
    b"\x16\x03\x01\x02\x00\x01\x00",  # TLS.
    b"nonsense\r\n\r\n",
    b"POST /v1/infill HTTP/1.1\r\n",
    b"POST /v1/infill HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{",
    b"POST /v1/infill HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
  ],
  ids=lambda data: repr(data)[:40],
)
def test_half_requests_and_nonsense_leave_nothing(demo, capfd, data):
  demo.raw(data).close()
  assert demo.post({"template": TEMPLATE, "steps": 1})[0] == 200
  assert demo.device.waiting == 0
  assert "Traceback" not in capfd.readouterr().err


# ---- The line ----------------------------------------------------------------------------------


def test_requests_are_drawn_in_order_and_told_their_place(gated):
  streams = []
  for seed in range(4):  # One on the device, three in the line.
    streams.append(gated.open({"template": TEMPLATE, "steps": 2, "seed": seed, "stream": True}))
    until(lambda seed=seed: gated.model.info["begun"] == [0] and gated.device.waiting == seed)
  gated.model.let_go()
  found = [list(events(stream.getresponse())) for stream in streams]
  assert gated.model.info["begun"][::4] == [0, 1, 2, 3]  # Four snapshots each.
  places = [[data["ahead"] for kind, data in one if kind == "waiting"] for one in found]
  assert places == [[], [1], [2, 1], [3, 2, 1]]
  assert [one[-1][1]["seed"] for one in found] == [0, 1, 2, 3]


def test_a_full_line_says_when_to_try_again(gated):
  asked = {"template": TEMPLATE, "steps": 2, "seed": 7}
  held = [gated.open(asked)]
  until(lambda: gated.model.info["begun"])
  held += [gated.open(asked) for _ in range(3)]
  until(lambda: gated.device.waiting == 3)
  with contextlib.closing(gated.open(asked)) as connection:
    response = connection.getresponse()
    assert response.status == 503
    assert int(response.headers["Retry-After"]) >= 1
    assert "3 requests wait already" in json.loads(response.read())["error"]
  gated.model.let_go()
  assert [one.getresponse().status for one in held] == [200] * 4


@pytest.mark.parametrize("stream", [False, True])
def test_who_goes_away_frees_place_and_device(gated, stream):
  asked = {"template": TEMPLATE, "steps": 100, "stream": stream}
  on_device = gated.open({**asked, "seed": 1})
  until(lambda: gated.model.info["begun"])
  waits = [gated.open({**asked, "seed": seed}) for seed in (2, 3)]
  until(lambda: gated.device.waiting == 2)
  waits[0].close()
  until(lambda: gated.device.waiting == 1)
  gated.model.let_go(3)
  until(lambda: len(gated.model.info["begun"]) == 4)
  on_device.close()
  # Between two steps, of which one is let go: the device is free for the one that stayed.
  until(lambda: withdrawn(gated))
  gated.model.let_go(1)
  until(lambda: gated.model.info["begun"][-1] == 3)
  assert gated.model.info["begun"] == [1] * 4 + [3]
  gated.model.let_go()
  assert waits[1].getresponse().status == 200


def withdrawn(demo):
  return demo.device._current.withdrawn.is_set()


def test_a_client_that_reads_nothing_is_dropped(monkeypatch):
  monkeypatch.setattr(endpoints, "SECONDS", 0.05)
  sent = []

  async def send(message):
    sent.append(message["type"])
    if len(sent) > 2:  # The buffers are full.
      await asyncio.sleep(60)

  async def stream():
    outbox = endpoints.Outbox(asyncio.get_running_loop())
    for step in range(9):
      outbox.emit("step", {"step": step})
    await endpoints._stream(outbox, send)

  asyncio.run(stream())
  assert sent == ["http.response.start"] + ["http.response.body"] * 2


@pytest.mark.slow
def test_the_device_waits_for_a_client_that_reads_slowly(gated):
  gated.model.let_go()
  # More than the buffers of the system hold.
  asked = {"template": "[[24]]", "steps": 4000, "sampler": "remdm:cap=1", "stream": True}
  response = gated.open(asked).getresponse()
  begun = gated.model.info["begun"]
  until(lambda: begun)
  counts = [0]
  until(lambda: counts.append(len(begun)) or time.sleep(0.3) or counts[-1] == counts[-2] > 0)
  assert len(begun) < 4002
  found = list(events(response))
  assert found[-1][0] == "done"
  assert [data["step"] for kind, data in found if kind == "step"] == list(range(4002))


def test_when_the_server_stops_all_get_an_answer(gated):
  asked = {"template": TEMPLATE, "steps": 2}
  held = [gated.open(asked)]
  until(lambda: gated.model.info["begun"])
  held += [gated.open({**asked, "stream": stream}) for stream in (False, True)]
  until(lambda: gated.device.waiting == 2)
  gated.device.close()
  first, second, third = [one.getresponse() for one in held]
  assert first.status == second.status == 503
  for response in (first, second):
    assert json.loads(response.read()) == {"error": "the server is stopping"}
  assert list(events(third))[-1] == ("error", {"error": "the server is stopping"})
  assert gated.post(asked)[0] == 503


def drawn_at_once(self, tokens, given, **kwargs):
  """What `generate` returns, without a network."""
  return Generation(
    tokens=tokens, given=given, steps=1, calls=1, seconds=0.0,
    frames=tokens[None, :0], times=np.zeros((0, 1)), calls_by_frame=np.zeros(0, int),
  )  # fmt: skip


def test_programs_are_dropped_before_there_are_too_many(monkeypatch):
  cleared = []
  monkeypatch.setattr(devices, "_MOST_PROGRAMS", 2)
  monkeypatch.setattr(devices.jax, "clear_caches", lambda: cleared.append(1))
  model = Gated.like(tiny_model())
  model.let_go()
  monkeypatch.setattr(Gated, "generate", drawn_at_once)
  with running(model) as demo:
    compiled = []
    for change in ({}, {"steps": 3}, {"temperature": 0.5}, {"temperature": 0.6}, {"length": 23}):
      asked = {"template": TEMPLATE, "steps": 2, **change, "stream": True}
      found = [kind for kind, _ in events(demo.open(asked).getresponse())]
      compiled.append("compiling" in found)
  assert compiled == [True, False, True, False, True]
  assert cleared == [1]


def test_an_error_of_the_device_is_told_and_the_next_request_is_drawn(capfd):
  model = Gated.like(tiny_model())
  del model.info["gate"]
  with running(model) as demo:
    model.info["gate"] = None
    status, answer = demo.post({"template": TEMPLATE})
    assert status == 503
    assert answer["error"].startswith("AttributeError: ")
    model.info["gate"] = threading.Semaphore(1000)
    assert demo.post({"template": TEMPLATE})[0] == 200
  assert "Traceback" in capfd.readouterr().err


def test_a_thousand_at_once_all_get_an_answer(demo):
  body = json.dumps({"template": TEMPLATE, "steps": 2}).encode()
  head = f"POST /v1/infill HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"

  async def one():
    reader, writer = await asyncio.open_connection("127.0.0.1", demo.port)
    writer.write(head.encode() + body)
    status = int((await reader.readline()).split()[1])
    headers = {}
    while (line := await reader.readline()) != b"\r\n":
      name, _, value = line.decode().partition(": ")
      headers[name] = value.strip()
    answer = json.loads(await reader.readexactly(int(headers["content-length"])))
    writer.close()
    return status, headers, answer

  async def at_once(count):
    return await asyncio.gather(*[one() for _ in range(count)])

  sizes = []
  for count in (300, 1000):
    answers = asyncio.run(at_once(count))
    sizes.append(resident())
    assert {status for status, _, _ in answers} <= {200, 503}
    drawn = [answer for status, _, answer in answers if status == 200]
    assert len(drawn) > MOST_WAITING
    assert all(len(answer["tokens"]) == LENGTH for answer in drawn)
    assert all("retry-after" in headers for status, headers, _ in answers if status == 503)
    until(lambda: demo.device.waiting == 0)
  assert sizes[1] - sizes[0] < 32 * 2**20


def resident():
  """Bytes of memory that this process holds."""
  with open("/proc/self/statm") as file:
    return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# ---- Without a server --------------------------------------------------------------------------


def test_the_line_is_closed_once():
  device = Device(tiny_model())
  device.close()
  device.close()
  assert device.ended(10)
  with pytest.raises(Busy, match="stopping"):
    device.submit(parse_infill(b'{"template": "[[2]]"}', tiny_model()), lambda kind, data: None)


def test_the_page_knows_the_samplers_of_its_model():
  def samplers(model):
    data = demo_page(model).split('id="data">', 1)[1].split("</script>", 1)[0]
    return {one["name"]: one["steps"] for one in json.loads(data)["samplers"]}

  assert samplers(tiny_model())["remdm"] is True
  assert samplers(tiny_model())["first_hitting"] is False
  assert set(samplers(tiny_model(UNIFORM))) == {
    "euler", "tweedie", "predictor_corrector", "trapezoidal",
  }  # fmt: skip


def test_the_page_holds_nothing_of_others_and_no_text_breaks_out():
  page = demo_page(tiny_model())
  assert page.count("</script>") == 2
  assert "sedd demo: runs/&lt;/script&gt;{{data}}" in page
  assert "http:" not in page
  assert "https:" not in page


# ---- The command -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def export(tmp_path_factory):
  folder = tmp_path_factory.mktemp("demo") / "export"
  sedd_jax.export(tiny_model(), folder)
  return folder


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--checkpoint=x", "--port=65536"], "--port=65536 must be at most 65,535"),
    (["--checkpoint=x", "--port=-1"], "--port=-1 must be at least 0"),
    (["--checkpoint=x", "--host=no.such.host.invalid"], "--host=no.such.host.invalid"),
    (["--checkpoint=/no/such/run", "--port=0"], "/no/such/run does not exist"),
  ],
  ids=str,
)
def test_bad_flags_are_errors(arguments, message):
  done = sedd("demo", *arguments)
  assert done.returncode == 2
  assert message in done.stderr
  assert "Traceback" not in done.stderr


def test_a_port_in_use_is_an_error_before_the_model_is_read():
  with socket.create_server(("127.0.0.1", 0)) as taken:
    port = taken.getsockname()[1]
    done = sedd("demo", "--checkpoint=x", f"--port={port}")
  assert done.returncode == 2
  assert f"--port={port}: Address already in use; --port=0 takes a free port" in done.stderr


@contextlib.contextmanager
def started(export):
  command = [sys.executable, "-m", "sedd_jax.cli.demo", f"--checkpoint={export}", "--port=0"]
  process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  try:
    port = int(process.stdout.readline().split()[0].rsplit(":", 1)[1])
    yield process, port
  finally:
    process.kill()
    process.wait()


@pytest.mark.parametrize(
  ("number", "code"),
  [(signal.SIGINT, 130), (signal.SIGTERM, 0)],
)
@pytest.mark.slow
def test_a_signal_ends_the_command_in_the_middle_of_a_drawing(export, number, code):
  with started(export) as (process, port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = json.dumps({"template": TEMPLATE, "steps": 1000, "sampler": "trapezoidal"})
    connection.request("POST", "/v1/infill", json.dumps({"template": TEMPLATE, "steps": 3}))
    answer = json.loads(connection.getresponse().read())
    assert len(answer["tokens"]) == LENGTH
    connection.request("POST", "/v1/infill", body)
    time.sleep(0.2)  # It compiles or draws.
    sent = time.monotonic()
    process.send_signal(number)
    assert connection.getresponse().status == 503
    ended = process.wait(30)
    seconds, errors = time.monotonic() - sent, process.stderr.read()
    assert ended == code, errors
    assert seconds < 10
    assert "Traceback" not in errors
    assert ("error: interrupted" in errors) == (code == 130)
  model = tiny_model()
  template = parse_template(TEMPLATE, model.encode, length=None, longest=model.length)
  want = model.infill(template.tokens[None], template.given[None], seed=answer["seed"], steps=3)
  np.testing.assert_array_equal(answer["tokens"], want[0])
