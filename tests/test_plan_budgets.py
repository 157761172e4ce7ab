"""What the paper's models may need on TPU slices, compiled by libtpu; nothing is run.

The budgets only tighten: one may be lowered, never raised. A change that breaks one is to be
repaired, not the table.
"""

import dataclasses
import itertools
import json
import math
import subprocess
import sys
from importlib.util import find_spec

import jax
import pytest
from support.paths import REPOSITORY

from sedd_jax.diffusion import Absorbing
from sedd_jax.models import Network, ScoreTransformerConfig

pytestmark = [
  pytest.mark.tpu_plugin,
  pytest.mark.skipif(find_spec("libtpu") is None, reason="needs libtpu: pip install libtpu"),
]
SHAPES = {"small": (768, 12, 12), "medium": (1024, 24, 16), "xl": (2048, 24, 16)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
  """The most that a plan may need.

  Attributes:
    model: argument of configs/openwebtext.py.
    topology: where.
    flags: more of `sedd plan`.
    temporaries: GiB per chip.
    sent: GiB that a chip sends in a step.
    work: compiled operations over the model's own.
    slow: not in the default run.
  """

  model: str
  topology: str
  flags: tuple[str, ...]
  temporaries: float
  sent: float
  work: float
  slow: bool = True


# Measured with jax 0.10.2 and libtpu 0.0.52, and a little more. Lower them, never raise them.
BUDGETS = {
  "small": Budget(
    model="small,absorb", topology="v5e:4x4", flags=("--batch=128",),
    temporaries=2.3, sent=1.13, work=1.09, slow=False,
  ),
  "small 512": Budget(
    model="small,absorb", topology="v5e:2x4", flags=("--config.model.remat=narrow",),
    temporaries=12.7, sent=1.01, work=1.17, slow=False,
  ),
  "small uniform": Budget(
    model="small,uniform", topology="v5e:4x4", flags=("--batch=128",),
    temporaries=2.3, sent=1.13, work=1.12,
  ),
  "small xla attention": Budget(
    model="small,absorb", topology="v5e:4x4",
    flags=("--batch=128", "--config.model.attention=xla"),
    temporaries=2.8, sent=1.13, work=1.09,
  ),
  "small tensor": Budget(
    model="small,absorb", topology="v5e:4x4", flags=("--batch=128", "--compare=fsdp=4,tensor=4"),
    temporaries=4.8, sent=3.9, work=1.09,
  ),
  "small two slices": Budget(
    model="small,absorb", topology="2xv5e:4x4", flags=("--batch=256", "--config.mesh.replica=2"),
    temporaries=2.4, sent=1.3, work=1.09,
  ),
  "small sampling": Budget(
    model="small,absorb", topology="v5e:4x4", flags=("--batch=128", "--sample"),
    # Calls can be skipped, so each gathers the embedding by itself: 0.13 GiB more than when the two
    # calls of this plan shared it, which those of a loop never did.
    temporaries=0.45, sent=0.66, work=1.01,
  ),
  "small v6e": Budget(
    model="small,absorb", topology="v6e:4x4", flags=("--batch=128",),
    temporaries=2.3, sent=1.13, work=1.09,
  ),
  "medium": Budget(
    model="medium,absorb", topology="v5e:16x16", flags=(),
    temporaries=1.8, sent=4.5, work=1.05,
  ),
  "medium 512": Budget(
    model="medium,absorb", topology="v5e:4x4", flags=("--config.model.remat=narrow",),
    temporaries=14.6, sent=2.65, work=1.14, slow=False,
  ),
  "xl": Budget(
    model="xl,absorb", topology="v5p:4x4x4", flags=(),
    temporaries=11.2, sent=16.0, work=1.03,
  ),
}  # fmt: skip


@pytest.fixture(scope="module")
def planned():
  """Plans by name; each is compiled once."""
  found = {}

  def plan(name):
    if name not in found:
      found[name] = _plan(BUDGETS[name])
    return found[name]

  return plan


def _plan(budget):
  done = subprocess.run(
    [
      *(sys.executable, "-m", "sedd_jax.cli.plan", "--json"),
      f"--config={REPOSITORY}/configs/openwebtext.py:{budget.model}",
      f"--topology={budget.topology}",
      *budget.flags,
    ],
    capture_output=True,
    text=True,
    timeout=1200,
  )
  assert done.returncode in (0, 1), done.stderr
  plan = json.loads(done.stdout)  # Whatever libtpu says, it says it on stderr.
  return plan[0] if isinstance(plan, list) else plan


def names(*among):
  return [
    pytest.param(name, marks=pytest.mark.slow if BUDGETS[name].slow else ())
    for name in (among or BUDGETS)
  ]


@pytest.mark.parametrize("name", names())
def test_it_fits_within_its_budget(planned, name):
  plan, budget = planned(name), BUDGETS[name]
  if "512" in name:
    assert (plan["batch"], plan["accumulation"]) == (512, 1)
  assert plan["fits"], plan["why_not"]
  assert plan["temp_bytes_per_chip"] <= budget.temporaries * 2**30
  sent = sum(sum(row.values()) for row in plan["collective_bytes"].values())
  assert sent <= budget.sent * 2**30
  assert 1.0 <= plan["hlo_flops_per_step"] / plan["model_flops_per_step"] <= budget.work
  assert plan["attention"] == ("xla" if "xla" in name else "splash")


@pytest.mark.parametrize("name", names())
def test_nothing_goes_from_all_to_all(planned, name):
  assert not {"all-to-all", "ragged-all-to-all"} & set(planned(name)["collective_bytes"])


@pytest.mark.parametrize("name", names())
def test_no_gather_is_larger_than_the_largest_parameter(planned, name):
  largest = max(4 * math.prod(shape) for shape in parameters(BUDGETS[name].model))
  assert 0 <= planned(name)["largest_gather_bytes"] <= largest


@pytest.mark.parametrize("name", names())
def test_only_parameters_go_over_fsdp(planned, name):
  """What a chip gathers or sums over fsdp has the shape of a parameter, or is small.

  Shapes are compared without order and sizes of 1, each size whole or divided by mesh axes. libtpu
  gathers some weights as sums, so sums are looked at too. At 8 sequences a chip, xl's activations
  have the shape of its MLP: there this says less.
  """
  plan = planned(name)
  known = {part for shape in parameters(BUDGETS[name].model) for part in parts(shape, plan["mesh"])}
  for one in plan["collectives"]:
    if "fsdp" in one["axes"].split("+") and not one["between_slices"]:
      for shape in one["shapes"]:
        assert math.prod(shape) < 2**18 or views(shape) & known, one


@pytest.mark.parametrize("name", names("small tensor"))
def test_scores_are_not_gathered_over_tensor(planned, name):
  tokens = 32 * 1024  # Of a chip: 128 sequences over fsdp=4.
  for one in planned(name)["collectives"]:
    if "tensor" in one["axes"].split("+"):
      # Over tensor go hidden states, [B, L, D], and sums of scores, [B, L].
      assert all(math.prod(shape) <= tokens * 768 for shape in one["shapes"]), one


@pytest.mark.parametrize("name", names("small two slices"))
def test_slices_exchange_gradients_alone(planned, name):
  plan = planned(name)
  between = [one for one in plan["collectives"] if one["between_slices"]]
  assert {one["kind"] for one in between} == {"all-reduce"}
  assert all("replica" not in one["axes"] or one["between_slices"] for one in plan["collectives"])
  # Each chip sends its part of the gradient, at most in float32, and the padding of tiles.
  size = 4 * sum(math.prod(shape) * 12**stacked for shape, stacked in stacks("small,absorb"))
  sent = sum(one["bytes"] * one["runs"] for one in between)
  assert size / 2 / 16 < sent < 1.2 * size / 16
  assert plan["dcn_seconds"] == pytest.approx(sent / (25e9 / 8))


@pytest.mark.slow
def test_too_large_a_batch_does_not_fit():
  plan = _plan(dataclasses.replace(BUDGETS["small"], flags=("--batch=1024",)))
  assert not plan["fits"]
  assert plan["bytes_per_chip"] > plan["hbm_bytes"]
  assert "exceeds available HBM" in plan["why_not"]
  assert plan["tokens_per_second_bound"] is None


def parameters(model):
  """Shapes of the parameters, of one layer where they are stacked."""
  return [shape for shape, _ in stacks(model)]


def stacks(model):
  """Shapes of the parameters, padded, and whether there is one for each layer."""
  width, blocks, heads = SHAPES[model.split(",")[0]]
  config = ScoreTransformerConfig(num_states=50_258, width=width, blocks=blocks, heads=heads)
  network = Network(config=config, process=Absorbing(50_257))
  tree = jax.eval_shape(network.init, jax.random.key(0))
  ends = [(x.shape, False) for x in jax.tree.leaves(tree["ends"])]
  return ends + [(x.shape[1:], True) for x in jax.tree.leaves(tree["blocks"])]


def parts(shape, mesh):
  divisors = {1, mesh["fsdp"], mesh["tensor"], mesh["fsdp"] * mesh["tensor"]}
  sizes = [[size // n for n in divisors if size % n == 0] for size in shape]
  return {normal(choice) for choice in itertools.product(*sizes)}


def views(shape):
  """The shape, and what it is with two neighbours merged: the parts of a gather may stand apart."""
  merged = {
    normal((*shape[:i], shape[i] * shape[i + 1], *shape[i + 2 :])) for i in range(len(shape) - 1)
  }
  return {normal(shape)} | merged


def normal(shape):
  return tuple(sorted(size for size in shape if size > 1))
