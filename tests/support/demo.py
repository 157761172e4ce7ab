"""A demo in this process: a tiny random model, its server in a thread, and clients."""

import contextlib
import dataclasses
import functools
import http.client
import json
import socket
import threading
import time

import jax

from sedd_jax.data.tokenizers import Chars
from sedd_jax.demo import server as demo
from sedd_jax.demo.device import Device
from sedd_jax.diffusion import Absorbing, LogLinear, Uniform
from sedd_jax.generation.causal import CausalModel
from sedd_jax.generation.model import Model
from sedd_jax.models import CausalNetwork, Network, ScoreTransformerConfig
from sedd_jax.models.visibility import CAUSAL

LENGTH = 24
CHARACTERS = "abcdefgh é\n"


@functools.cache
def tiny_model(process=Absorbing(len(CHARACTERS))):
  """A random network that depends on all it is given."""
  shape = ScoreTransformerConfig(
    num_states=process.num_states, width=16, blocks=1, heads=2, cond_dim=8, dropout=0.0
  )
  kind = "score" if process.mask_id is None else "conditional"
  network = Network(config=shape, process=process, parameterization=kind)
  params = jax.tree.map(
    lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape),
    network.init(jax.random.key(0)),
  )
  return Model(
    network=network,
    params=params,
    noise=LogLinear(),
    length=LENGTH,
    tokenizer=Chars(CHARACTERS),
    info={"source": "runs/</script>{{data}}", "step": 3},
  )


@functools.cache
def tiny_causal_model():
  """A random autoregressive network."""
  shape = ScoreTransformerConfig(
    num_states=len(CHARACTERS) + 1, width=16, blocks=1, heads=2, cond_dim=8, dropout=0.0,
    visibility=CAUSAL, time_input=False,
  )  # fmt: skip
  network = CausalNetwork(config=shape)
  return CausalModel(
    network=network,
    params=network.init(jax.random.key(0)),
    length=LENGTH,
    tokenizer=Chars(CHARACTERS),
    info={"source": "runs/ar", "step": 3},
  )


UNIFORM = Uniform(len(CHARACTERS))


class Gated(Model):
  """A model that takes a step only when it may; tests let it go on."""

  def generate(self, *args, on_snapshot, **kwargs):
    def wait(snapshot):
      self.info["begun"].append(kwargs["seed"])
      assert self.info["gate"].acquire(timeout=30)
      on_snapshot(snapshot)

    return super().generate(*args, on_snapshot=wait, **kwargs)

  @classmethod
  def like(cls, model):
    """With the compiled functions of the model."""
    fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model)}
    gated = cls(**{**fields, "info": {"gate": threading.Semaphore(0), "begun": []}})
    gated.__dict__["_generator"] = model._generator
    return gated

  def let_go(self, steps=10_000):
    self.info["gate"].release(steps)


@dataclasses.dataclass
class Demo:
  """A server that runs."""

  device: Device
  port: int

  @property
  def url(self):
    return f"http://127.0.0.1:{self.port}/"

  def connect(self, timeout=60):
    return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

  def open(self, fields, **options):
    """A connection on which fields were sent."""
    connection = self.connect()
    body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    connection.request("POST", "/v1/infill", body, **options)
    return connection

  def post(self, fields, **options):
    """Status and JSON of a request."""
    with contextlib.closing(self.open(fields, **options)) as connection:
      response = connection.getresponse()
      return response.status, json.loads(response.read())

  def raw(self, data):
    """A socket on which some bytes were sent."""
    found = socket.create_connection(("127.0.0.1", self.port), timeout=30)
    found.sendall(data)
    return found


def events(response):
  """(kind, data) of each server-sent event of a response."""
  kind = None
  for line in response:
    name, _, value = line.decode().rstrip("\n").partition(": ")
    if name == "event":
      kind = value
    elif name == "data":
      yield kind, json.loads(value)


@contextlib.contextmanager
def running(model, **options):
  """A `Demo` of a model."""
  device = Device(model, **options)
  bound = demo.bind("127.0.0.1", 0)
  server = demo.make_server(model, device, "127.0.0.1")
  thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
  thread.start()
  until(lambda: server.started)
  try:
    yield Demo(device, bound.getsockname()[1])
  finally:
    server.should_exit = True
    if isinstance(model, Gated):
      model.let_go()
    thread.join(30)
    assert not thread.is_alive()
    assert device.ended(30)


def until(condition, seconds=30):
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline, "it did not come to be"
    time.sleep(0.005)
