"""What a compiled program costs, against numbers known exactly; no libtpu is needed here.

Whole plans run on slices of fake CPU devices; `test_plan_budgets.py` has those of libtpu.
"""

import dataclasses
import json
import math
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.experiments import TINY

from sedd_jax.data import DataConfig
from sedd_jax.diffusion import Absorbing
from sedd_jax.diffusion.tiles import tile_shape
from sedd_jax.models import Network, ScoreTransformerConfig
from sedd_jax.parallel import MeshConfig, make_mesh
from sedd_jax.parallel.chips import TPUS, device_flops
from sedd_jax.planning import Plan, Slice, find_slice, plan_sampling, plan_training
from sedd_jax.planning import plan as planning
from sedd_jax.planning.costs import costs
from sedd_jax.planning.fit import fit, meshes
from sedd_jax.training.experiment import DiffusionConfig, TrainConfig
from sedd_jax.training.flops import forward_flops, needed_share
from sedd_jax.training.program import Program

AXES = {"a": 2, "b": 2}
DOT = 2 * 64 * 128 * 128  # Of [64, 128] by [128, 128].
X, W = np.ones((64, 128), np.float32), np.ones((128, 128), np.float32)


def compiled(function, *arguments):
  return jax.jit(function).lower(*arguments).compile()


def text_of(function, *arguments, counts=True):
  """A program's text; with counts=False without XLA's own notes on loops, as libtpu leaves it."""
  text = compiled(function, *arguments).as_text()
  return text if counts else re.sub(r"known_\w+", "unknown", text)


def flops_of(text):
  return costs(text, {"a": 1}).flops


def module(*lines, head=""):
  """The text of a program whose entry holds these instructions."""
  body = "\n".join(f"  {line}" for line in lines)
  return f"HloModule m\n\n{head}\nENTRY %main (p: f32[8]) -> f32[8] {{\n{body}\n}}\n"


# --- Operations


def test_products_and_traffic_without_loops_are_those_of_xla():
  def function(x, w):
    return jnp.einsum("bik,bkj->bij", x, w)

  program = compiled(function, np.ones((4, 64, 128)), np.ones((4, 128, 32)))
  found = costs(program.as_text(), {"a": 1})
  assert found.flops == 2 * 4 * 64 * 128 * 32 == program.cost_analysis()["flops"]
  assert found.hbm_bytes == program.cost_analysis()["bytes accessed"]


def test_traffic_of_an_mlp_is_near_that_of_xla():
  def function(x, w, u):
    return jax.nn.gelu(x @ w) @ u

  program = compiled(function, X, W, W)
  ours = costs(program.as_text(), {"a": 1}).hbm_bytes
  # XLA counts every use of an operand inside a fusion, this counts the operand.
  assert 0.5 < ours / program.cost_analysis()["bytes accessed"] <= 1.0


@pytest.mark.parametrize("counts", [True, False])
def test_a_loop_counts_as_often_as_it_runs(counts):
  def scanned(x, ws):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0]

  def nested(x, ws):
    return jax.lax.scan(lambda x, _: (scanned(x, ws), None), x, None, length=5)[0]

  ws = np.stack([W] * 3)
  assert flops_of(text_of(scanned, X, ws, counts=counts)) == 3 * DOT
  assert flops_of(text_of(nested, X, ws, counts=counts)) == 5 * 3 * DOT


def test_without_its_loop_the_flops_are_those_of_xla():
  def scanned(x, ws):
    return jax.lax.scan(lambda x, w: (x @ w, None), x, ws)[0]

  program = compiled(scanned, X, np.stack([W] * 3))
  once = re.sub(r'"n":"3"', '"n":"1"', program.as_text())
  # XLA counts the loop's counter too.
  assert flops_of(once) == DOT
  assert program.cost_analysis()["flops"] == pytest.approx(DOT, rel=1e-4)


def test_rematerialisation_counts():
  def layer(x, w):
    return jnp.tanh(jnp.tanh(x @ w) @ w), None

  def gradient(body):
    return jax.grad(lambda x, ws: jax.lax.scan(body, x, ws)[0].sum(), argnums=(0, 1))

  ws = np.stack([W] * 3)
  # Forward 2 products a layer, backward 4; with remat 2 more.
  assert flops_of(text_of(gradient(layer), X, ws)) == 3 * 6 * DOT
  assert flops_of(text_of(gradient(jax.checkpoint(layer)), X, ws)) == 3 * 8 * DOT


@pytest.mark.parametrize(
  ("lower", "upper", "step", "trips"), [(0, 10, 1, 10), (4, 10, 1, 6), (3, 11, 2, 4), (3, 10, 2, 4)]
)
def test_a_loop_may_start_late_and_step_wide(lower, upper, step, trips):
  def function(x, w):
    def body(state):
      i, x = state
      return i + step, x @ w

    return jax.lax.while_loop(lambda state: state[0] < upper, body, (lower, x))[1]

  assert flops_of(text_of(function, X, W, counts=False)) == trips * DOT


LOOP = """
%fused_test (i.1: s32[], n.1: s32[]) -> pred[] {{
  %i.1 = s32[]{{:T(128)}} parameter(0)
  %n.1 = s32[]{{:T(128)}} parameter(1)
  ROOT %less = pred[]{{:T(512)}} compare(%i.1, %n.1), direction={direction}
}}

%fused_step (i.2: s32[]) -> s32[] {{
  %i.2 = s32[]{{:T(128)}} parameter(0)
  %step = s32[]{{:T(128)}} constant({step})
  ROOT %sum = s32[]{{:T(128)}} add(%step, %i.2)
}}

%condition (s.1: (s32[], f32[4,4])) -> pred[] {{
  %s.1 = (s32[]{{:T(128)}}, f32[4,4]{{1,0:T(8,128)}}) parameter(0)
  %n = s32[]{{:T(128)}} constant({end})
  %i = s32[]{{:T(128)}} get-tuple-element(%s.1), index=0
  ROOT %test = pred[]{{:T(512)}} fusion(%i, %n), kind=kLoop, calls=%fused_test
}}

%body (s.2: (s32[], f32[4,4])) -> (s32[], f32[4,4]) {{
  %s.2 = (s32[]{{:T(128)}}, f32[4,4]{{1,0:T(8,128)}}) parameter(0)
  %j = s32[]{{:T(128)}} get-tuple-element(%s.2), index=0
  %x = f32[4,4]{{1,0:T(8,128)}} get-tuple-element(%s.2), index=1
  %next = s32[]{{:T(128)}} fusion(%j), kind=kLoop, calls=%fused_step
  %dot = f32[4,4]{{1,0:T(8,128)}} dot(%x, %x), lhs_contracting_dims={{1}}
  ROOT %state = (s32[]{{:T(128)}}, f32[4,4]{{1,0:T(8,128)}}) tuple(%next, %dot)
}}
"""


@pytest.mark.parametrize(
  ("first", "end", "step", "direction", "trips"),
  [
    (0, 6, 1, "LT", 6),
    (1, 6, 2, "LT", 3),
    (1, 7, 2, "LE", 4),
    (6, 0, -1, "GT", 6),
    (6, 0, -2, "GE", 4),
    (0, 6, 3, "NE", 2),
    (6, 6, 1, "LT", 0),
  ],
)
def test_a_loop_whose_test_and_step_are_fused(first, end, step, direction, trips):
  text = loop(first, end, step, direction)
  assert flops_of(text) == trips * 2 * 4**3


def loop(first, end, step, direction):
  return module(
    "%x.0 = f32[4,4]{1,0:T(8,128)} parameter(0)",
    f"%first = s32[]{{:T(128)}} constant({first})",
    "%start = (s32[]{:T(128)}, f32[4,4]{1,0:T(8,128)}) tuple(%first, %x.0)",
    "ROOT %loop = (s32[]{:T(128)}, f32[4,4]{1,0:T(8,128)}) while(%start), condition=%condition, "
    "body=%body",
    head=LOOP.format(end=end, step=step, direction=direction),
  )


def test_elements_of_tuples_may_be_written_short():
  short = loop(1, 7, 2, "LT")
  for name, element in [("%i", "%s.1#0"), ("%j", "%s.2#0"), ("%x", "%s.2#1")]:
    short = re.sub(rf"  {name} = .*get-tuple-element.*\n", "", short)
    short = re.sub(rf"(?<=[(\s]){name}(?=[,)])", element, short)
  assert "get-tuple-element" not in short
  assert flops_of(short) == 3 * 2 * 4**3


def test_a_loop_that_cannot_be_read_is_refused():
  with pytest.raises(ValueError, match=r"loop loop: bounds 0, 6, step 0 cannot be read"):
    flops_of(loop(0, 6, 0, "LT"))

  def halving(x):
    return jax.lax.while_loop(lambda x: x > 1.0, lambda x: x / 2, x)

  with pytest.raises(ValueError, match="cannot be read"):
    flops_of(text_of(halving, 8.0))
  with pytest.raises(ValueError, match="not the text of a compiled program"):
    flops_of("nothing")


def test_a_loop_whose_end_the_data_decide_counts_as_often_as_is_said():
  def rows(x, w, end):
    return jax.lax.fori_loop(0, end, lambda _, x: jnp.tanh(x @ w), x)

  def nested(x, ws, end):
    return jax.lax.scan(lambda x, w: (rows(x, w, end), None), x, ws)[0]

  text = text_of(nested, X, np.stack([W] * 3), 4)
  with pytest.raises(ValueError, match="cannot be read"):
    flops_of(text)
  for trips in (0, 1, 7):
    assert costs(text, {"a": 1}, open_trips=trips).flops == 3 * trips * DOT
    # Bounds that can be read are believed.
    assert costs(loop(1, 7, 2, "LE"), {"a": 1}, open_trips=trips).flops == 4 * 2 * 4**3


def convolved(lhs, rhs, out, attributes):
  return module(
    f"%lhs = bf16[{lhs}] parameter(0)",
    f"%rhs = bf16[{rhs}] parameter(1)",
    f"ROOT %c = bf16[{out}] convolution(%lhs, %rhs), {attributes}",
  )


def test_products_that_a_tpu_writes_as_convolutions():
  # q k^T for 8 sequences and 12 heads: dimensions of the batch are windows that meet once.
  window = "window={size=8x12 stride=7x11 lhs_dilate=8x12}"
  text = convolved(
    "8,12,1024,64", "8,12,1024,64", "8,12,1024,1024", f"{window}, dim_labels=01bf_01oi->01bf"
  )
  assert flops_of(text) == 2 * 8 * 12 * 1024 * 1024 * 64
  # One place of three meets the input: the rest is padding.
  window = "window={size=3 pad=2_2 rhs_reversal=1}"
  text = convolved("8192,768,1", "768,3,768", "8192,3,768", f"{window}, dim_labels=bf0_i0o->b0f")
  assert flops_of(text) == 2 * 8192 * 768 * 3 * 768
  text = convolved(
    "16,5,1", "16,2,7", "5,2,7", "window={size=2 pad=1_1 rhs_reversal=1}, dim_labels=fb0_i0o->b0f"
  )
  assert flops_of(text) == 2 * 5 * 2 * 7 * 16
  assert flops_of(convolved("6,5", "5,7", "6,7", "dim_labels=bf_io->bf")) == 2 * 6 * 5 * 7


@pytest.mark.parametrize(
  "options",
  [
    {"window_strides": (2, 1), "padding": [(1, 2), (3, 1)], "rhs_dilation": (1, 2)},
    {"window_strides": (1, 1), "padding": [(0, 0), (1, 0)], "lhs_dilation": (3, 2)},
    {"window_strides": (1, 1), "padding": "SAME", "feature_group_count": 2},
    {"window_strides": (1, 1), "padding": "SAME", "batch_group_count": 2},
  ],
)
def test_convolutions_count_as_xla_counts_them(options):
  features = 4 // options.get("feature_group_count", 1)
  lhs, rhs = np.ones((6, 4, 9, 11), np.float32), np.ones((6, features, 3, 3), np.float32)
  program = compiled(lambda x, k: jax.lax.conv_general_dilated(x, k, **options), lhs, rhs)
  assert flops_of(program.as_text()) == program.cost_analysis()["flops"]


def test_splash_kernels_are_counted_by_name():
  def kernel(name, queries="8,12,1024,64", gradients=1):
    scratch = ["f32[8,512,64]"] * 2
    made = ", ".join(scratch + [f"bf16[{queries}]"] * gradients)
    return flops_of(
      module(
        "%mask = s8[1,2,2] parameter(0)",
        f"%q = bf16[{queries}] parameter(1)",
        f'ROOT %{name}.1 = ({made}) custom-call(%mask, %q), custom_call_target="x"',
      )
    )

  product = 2 * 8 * 12 * 1024**2 * 64
  assert kernel("splash_mha_fwd_residuals") == 2 * product
  assert kernel("splash_mha_dq_no_residuals") == 3 * product
  assert kernel("splash_mha_dkv_no_residuals", gradients=2) == 4 * product
  assert kernel("splash_mha_dkv_no_residuals", gradients=3) == 5 * product
  assert kernel("splash_mha_fwd_residuals", "12,1024,64") == 2 * product / 8
  assert kernel("another") == 0


@pytest.mark.parametrize("blocks", [1, 3])
def test_forward_flops_are_those_of_the_compiled_network(blocks):
  config = ScoreTransformerConfig(
    num_states=128, width=64, blocks=blocks, heads=2, cond_dim=32, attention="xla"
  )
  network = Network(config=config, process=Absorbing(127))
  batch, length = 4, 64
  params = jax.eval_shape(network.init, jax.random.key(0))
  tokens = jax.ShapeDtypeStruct((batch, length), jnp.int32)
  text = text_of(network.raw, params, tokens, jax.ShapeDtypeStruct((batch,), jnp.float32))
  # Left out of the yardstick: the two small layers that read the noise level.
  noise = 2 * batch * 32 * (256 + 32)
  assert flops_of(text) == forward_flops(network, batch, length) + noise


# --- Traffic


def traffic(*lines, head=""):
  return costs(module(*lines, head=head), {"a": 1}).hbm_bytes


def test_only_what_lies_in_hbm_is_traffic():
  assert traffic("%p = f32[256] parameter(0)", "ROOT %n = f32[256] negate(%p)") == 2 * 1024
  fast = "f32[256]{0:T(256)S(1)}"
  assert traffic("%p = f32[256] parameter(0)", f"ROOT %n = {fast} negate(%p)") == 1024
  copied = f"({fast}, f32[256]{{0:T(256)}}, u32[]{{:S(2)}})"
  start = f"%c = {copied} copy-start(%p)"
  assert traffic("%p = f32[256] parameter(0)", start, f"ROOT %d = {fast} copy-done(%c)") == 1024
  sliced = "((f32[256]{0}), f32[64]{0:T(128)S(1)}, s32[]{:S(2)})"
  assert (
    traffic(
      "%p = f32[256] parameter(0)",
      f"%c = {sliced} slice-start(%p), slice={{[0:64]}}",
      "ROOT %d = f32[64]{0:T(128)S(1)} slice-done(%c)",
    )
    == 256
  )
  buffer = 'ROOT %b = f32[256] custom-call(), custom_call_target="AllocateBuffer"'
  assert traffic(buffer) == 0
  assert traffic("%p = f32[256] parameter(0)", "ROOT %b = f32[256] bitcast(%p)") == 0


FUSED = """
%inner (q: f32[16,256], i: s32[]) -> f32[1,256] {
  %q = f32[16,256] parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %row = f32[1,256] dynamic-slice(%q, %i, %zero), dynamic_slice_sizes={1,256}
}

%slice (q: f32[16,256], i: s32[]) -> f32[1,256] {
  %q.1 = f32[16,256] parameter(0)
  %i.1 = s32[] parameter(1)
  %row.1 = f32[1,256] fusion(%q.1, %i.1), kind=kLoop, calls=%inner
  ROOT %minus = f32[1,256] negate(%row.1)
}

%update (q: f32[16,256], u: f32[1,256], i: s32[]) -> f32[16,256] {
  %q.2 = f32[16,256] parameter(0)
  %u.2 = f32[1,256] parameter(1)
  %i.2 = s32[] parameter(2)
  %zero.2 = s32[] constant(0)
  ROOT %put = f32[16,256] dynamic-update-slice(%q.2, %u.2, %i.2, %zero.2)
}
"""
ROW, SCALAR = 256 * 4, 4


def test_of_slices_and_updates_only_the_part_counts():
  given = ("%p = f32[16,256] parameter(0)", "%i.0 = s32[] parameter(1)")
  call = "ROOT %f = f32[1,256] fusion(%p, %i.0), kind=kLoop, calls=%slice"
  assert traffic(*given, call, head=FUSED) == 2 * ROW + SCALAR
  row = "%r = f32[1,256] parameter(2)"
  call = "ROOT %f = f32[16,256] fusion(%p, %r, %i.0), kind=kLoop, calls=%update"
  # The row is read and written; the place that it takes counts as read too.
  assert traffic(*given, row, call, head=FUSED) == 3 * ROW + SCALAR
  # A parameter sliced more often than it is long is read once.
  many = "\n".join(
    f"  %s{i} = f32[200] slice(%q), slice={{[{i}:{i + 200}]}}" for i in range(9)
  ) + "".join(f"\n  %a{i} = f32[200] add(%s{i}, %s{i})" for i in range(8))
  head = (
    f"%many (q: f32[256]) -> f32[200] {{\n  %q = f32[256] parameter(0)\n{many}\n"
    "  ROOT %out = f32[200] add(%a0, %s8)\n}\n"
  )
  call = "ROOT %f = f32[200] fusion(%p), kind=kLoop, calls=%many"
  assert traffic("%p = f32[256] parameter(0)", call, head=head) == 1024 + 800


def test_a_fused_operand_that_is_passed_on_whole_is_read_whole():
  head = """
%passed (q: f32[256]) -> f32[2,128] {
  %q = f32[256] parameter(0)
  ROOT %b = f32[2,128] bitcast(%q)
}

%outer (q: f32[256]) -> f32[2,128] {
  %q.1 = f32[256] parameter(0)
  %b.1 = f32[2,128] fusion(%q.1), kind=kLoop, calls=%passed
  ROOT %n = f32[2,128] negate(%b.1)
}
"""
  call = "ROOT %f = f32[2,128] fusion(%p), kind=kLoop, calls=%outer"
  assert traffic("%p = f32[256] parameter(0)", call, head=head) == 2 * 1024


# --- Exchanges


def exchange(line, *before, axes=AXES, head="", slices=1):
  given = ("%p = f32[8,16] parameter(0)", "%q = f32[16,16] parameter(1)", *before)
  text = module(*given, f"ROOT {line}", head=head)
  (found,) = costs(text, axes, slices).collectives
  return found


WHOLE = 8 * 16 * 4


@pytest.mark.parametrize(
  ("groups", "axes"),
  [
    ("{{0,1},{2,3}}", "b"),
    ("{{0,2},{1,3}}", "a"),
    ("{{0,1,2,3}}", "a+b"),
    ("[2,2]<=[4]", "b"),
    ("[2,2]<=[2,2]T(1,0)", "a"),
    ("[1,4]<=[4]", "a+b"),
    ("mesh['a'=2,'b'=2] {'a'}", "a"),
    ("mesh['a'=2,'b'=2] {'b'}", "b"),
    ("mesh['x'=4] {'x'}", "a+b"),
    ("{}", "a+b"),
  ],
)
def test_groups_name_the_axes_of_the_mesh(groups, axes):
  found = exchange(f"%r = f32[8,16] all-reduce(%p), replica_groups={groups}, to_apply=%add")
  assert found.axes == axes
  n = 4 if axes == "a+b" else 2
  assert found.bytes == 2 * WHOLE * (n - 1) / n
  assert found.shapes == ((8, 16),)
  assert found.largest == WHOLE


def test_axes_of_a_mesh_of_three():
  axes = {"replica": 2, "fsdp": 4, "tensor": 2}
  line = "%r = f32[8,16] all-reduce(%p), replica_groups={}, to_apply=%add"
  for groups, name in [
    ("[8,2]<=[16]", "tensor"),
    ("[4,4]<=[2,4,2]T(0,2,1)", "fsdp"),
    ("[8,2]<=[2,8]T(1,0)", "replica"),
    ("[2,8]<=[16]", "fsdp+tensor"),
    ("[2,8]<=[8,2]T(1,0)", "replica+fsdp"),
  ]:
    assert exchange(line.format(groups), axes=axes).axes == name


@pytest.mark.parametrize(
  ("line", "kind", "sent", "largest"),
  [
    ("f32[16,16] all-gather(%p), dimensions={0}", "all-gather", WHOLE, 2 * WHOLE),
    ("f32[8,16] reduce-scatter(%q), dimensions={0}", "reduce-scatter", WHOLE, WHOLE),
    ("f32[8,16] all-reduce(%p)", "all-reduce", WHOLE, WHOLE),
    ("f32[8,16] all-to-all(%p), dimensions={0}", "all-to-all", WHOLE / 2, WHOLE),
    ("(f32[8,16], f32[16,16]) all-reduce(%p, %q)", "all-reduce", 3 * WHOLE, 2 * WHOLE),
    ("(f32[8,16], f32[16,16]) all-gather-start(%p)", "all-gather", WHOLE, 2 * WHOLE),
    (
      "((f32[8,16], f32[8,16]), (f32[16,16], f32[16,16])) all-gather-start(%p, %p)",
      "all-gather",
      2 * WHOLE,
      2 * WHOLE,
    ),
    ("f32[8,16] all-reduce-start(%p)", "all-reduce", WHOLE, WHOLE),
    ("(f32[8,16], f32[16,16]) all-reduce-start(%p, %q)", "all-reduce", 3 * WHOLE, 2 * WHOLE),
    ("((f32[16,16]), f32[8,16], u32[]) reduce-scatter-start(%q)", "reduce-scatter", WHOLE, WHOLE),
  ],
)
def test_bytes_of_each_kind(line, kind, sent, largest):
  found = exchange(f"%r = {line}, channel_id=1, replica_groups={{{{0,1}},{{2,3}}}}")
  assert (found.kind, found.axes, found.bytes, found.largest) == (kind, "b", sent, largest)


def test_permutes():
  pairs = "channel_id=1, source_target_pairs={{0,1},{1,0},{2,3},{3,2}}"
  found = exchange(f"%r = f32[8,16] collective-permute(%p), {pairs}")
  assert (found.kind, found.axes, found.bytes) == ("collective-permute", "b", WHOLE)
  typed = "(f32[8,16], f32[8,16], u32[]{:S(2)}, u32[]{:S(2)})"
  found = exchange(f"%r = {typed} collective-permute-start(%p), {pairs.replace('1', '2', 3)}")
  assert (found.kind, found.bytes, found.shapes) == ("collective-permute", WHOLE, ((8, 16),))


def test_a_gather_that_is_spread_over_fusions_counts_once():
  def part(i):
    return (
      f"%f{i} (g: f32[8,16]) -> f32[16,16] {{\n  %g{i} = f32[8,16] parameter(0)\n"
      f"  ROOT %all{i} = f32[16,16] all-gather(%g{i}), channel_id=7, replica_groups=[2,2]<=[4], "
      'dimensions={0}, frontend_attributes={chain_id="3"}\n}\n'
    )

  calls = [f"%c{i} = f32[16,16] fusion(%p), kind=kCustom, calls=%f{i}" for i in range(3)]
  found = exchange("%t = f32[8,16] negate(%p)", *calls, head="\n".join(map(part, range(3))))
  assert (found.bytes, found.runs) == (WHOLE, 1)


def test_a_fused_sum_of_which_a_part_is_kept_is_a_scatter():
  head = """
%all-reduce-scatter (g: f32[16,16]) -> f32[8,16] {
  %g = f32[16,16] parameter(0)
  %zero = s32[] constant(0)
  %sum = f32[16,16] all-reduce(%g), channel_id=7, replica_groups=[2,2]<=[4], to_apply=%add
  ROOT %part = f32[8,16] dynamic-slice(%sum, %zero, %zero), dynamic_slice_sizes={8,16}
}
"""
  found = exchange("%c = f32[8,16] fusion(%q), kind=kCustom, calls=%all-reduce-scatter", head=head)
  assert (found.kind, found.bytes) == ("reduce-scatter", WHOLE)


@pytest.mark.parametrize(
  ("kind", "factor"),
  [("ALL_REDUCE", 1.5), ("REDUCE_SCATTER", 0.75), ("ALL_GATHER", 3), ("ONE_TO_ONE", 1)],
)
def test_what_leaves_the_slice_goes_through_the_host(kind, factor):
  found = exchange(
    "%s = (f32[8,16], u32[], token[]) send(%p, %t), channel_id=2, is_host_transfer=true, "
    'frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",'
    f'_xla_megascale_transfer_type="{kind}"}}',
    "%t = token[] after-all()",
    axes={"replica": 4, "fsdp": 2},
    slices=4,
  )
  assert found.between_slices
  assert (found.axes, found.bytes) == ("replica", factor * WHOLE)


def test_exchanges_in_a_loop_count_as_often_as_it_runs():
  mesh = jax.make_mesh((4,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))

  def place(*spec):
    return jax.sharding.NamedSharding(mesh, jax.P(*spec))

  def function(x, ws):
    def body(x, w):
      return jnp.tanh(x @ jax.lax.with_sharding_constraint(w, place())), None

    return jax.lax.scan(body, x, ws)[0]

  x = jax.ShapeDtypeStruct((64, 128), jnp.float32, sharding=place("fsdp"))
  ws = jax.ShapeDtypeStruct((3, 128, 128), jnp.float32, sharding=place(None, "fsdp"))
  found = costs(text_of(function, x, ws), {"replica": 1, "fsdp": 4})
  assert found.flops == 3 * DOT / 4
  assert found.collective_bytes() == {"all-gather": {"fsdp": 3 * 128 * 128 * 4 * 3 / 4}}
  assert sum(one.runs for one in found.collectives) == 3


# --- Plans, on CPU devices that stand for chips

PROGRAM = module(
  "%p = f32[8,16] parameter(0)",
  "%w = f32[16,16] parameter(1)",
  "%d = f32[8,16] dot(%p, %w), lhs_contracting_dims={1}",
  "ROOT %g = f32[32,16] all-gather(%d), replica_groups=[1,4]<=[4], dimensions={0}",
)


def slice_of(chips, **fields):
  made = Slice(
    name="cpu:4",
    chip=dataclasses.replace(TPUS["v5e"], **fields),
    chips=chips,
    slices=1,
    devices=tuple(jax.devices()[:4]),
    compiler="a compiler",
  )
  return made


@pytest.fixture(scope="module")
def tiny():
  return plan_training(TINY, 65, slice_of(4))


@pytest.fixture
def once(monkeypatch):
  """Compiles no more: what the compiler said of one program stands for all."""
  memory = types.SimpleNamespace(
    argument_size_in_bytes=1000, output_size_in_bytes=900, alias_size_in_bytes=890,
    temp_size_in_bytes=100, generated_code_size_in_bytes=10,
  )  # fmt: skip
  monkeypatch.setattr(planning, "_compile", lambda _: (memory, PROGRAM))


def test_a_plan_adds_up(tiny):
  parts = (tiny.argument_bytes_per_chip, tiny.temp_bytes_per_chip, tiny.code_bytes_per_chip)
  assert tiny.bytes_per_chip == sum(parts) > 0
  assert tiny.fits
  assert (tiny.chips, tiny.batch, tiny.length, tiny.accumulation) == (4, 4, 32, 1)
  assert (tiny.attention, tiny.compiler) == ("xla", "a compiler")
  network = TINY.network(65)
  share = needed_share(network.process, TINY.diffusion.make_noise())
  assert tiny.model_flops_per_step == 3 * forward_flops(network, 4, 32, share)
  # The output table is padded from 66 to 128 columns, and a little is computed for the noise.
  assert 1.0 < tiny.hlo_flops_per_step / tiny.model_flops_per_step < 2.0
  roofs = (tiny.compute_seconds, tiny.hbm_seconds, tiny.ici_seconds, tiny.dcn_seconds)
  assert tiny.seconds_bound == max(roofs) > 0
  assert tiny.compute_seconds == tiny.hlo_flops_per_step / 4 / TPUS["v5e"].flops
  assert tiny.hbm_seconds == tiny.hbm_traffic_per_chip / TPUS["v5e"].hbm_bandwidth
  sent = sum(sum(row.values()) for row in tiny.collective_bytes.values())
  assert tiny.ici_seconds == pytest.approx(sent / TPUS["v5e"].ici_bandwidth)
  assert tiny.tokens_per_second_bound == 4 * 32 / tiny.seconds_bound
  assert tiny.days_bound == 8 * tiny.seconds_bound / 86400
  assert tiny.chip_hours_bound == pytest.approx(24 * 4 * tiny.days_bound)
  # Four replicas sum the gradient of every parameter.
  params = jax.eval_shape(network.init, jax.random.key(0))
  size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))
  assert tiny.collective_bytes["all-reduce"]["replica"] == pytest.approx(1.5 * size, rel=0.01)


def test_two_devices_a_chip_count_twice(once):
  single, double = (plan_training(TINY, 65, slice_of(chips)) for chips in (4, 2))
  assert single.bytes_per_chip == 1000 + (900 - 890) + 100 + 10
  assert double.bytes_per_chip == 2 * single.bytes_per_chip
  assert double.temp_bytes_per_chip == 2 * 100
  assert double.hlo_flops_per_step == single.hlo_flops_per_step == 4 * 2 * 8 * 16 * 16
  assert double.compute_seconds == 2 * single.compute_seconds
  assert double.collective_bytes == {"all-gather": {"replica": 2 * 3 * 8 * 16 * 4}}
  assert double.ici_seconds == 2 * single.ici_seconds
  assert double.largest_gather_bytes == 4 * 8 * 16 * 4


def test_what_is_larger_than_the_chip_does_not_fit(once):
  assert plan_training(TINY, 65, slice_of(4, hbm_bytes=1120)).fits
  small = plan_training(TINY, 65, slice_of(4, hbm_bytes=1119))
  assert not small.fits
  assert small.why_not
  assert small.bytes_per_chip == 1120


def test_a_sampling_step_calls_the_network_twice():
  plan = plan_sampling(TINY, 65, slice_of(4))
  assert plan.what == "sample"
  assert plan.steps == 1
  share = needed_share(Absorbing(65), TINY.diffusion.make_noise())
  assert plan.model_flops_per_step == 2 * forward_flops(TINY.network(65), 4, 32, share)
  assert 1.0 < plan.hlo_flops_per_step / plan.model_flops_per_step < 2.0


def test_accumulation_does_the_same_work(tiny):
  train = dataclasses.replace(TINY.train, batch_size=8, accumulation=2)
  halves = plan_training(dataclasses.replace(TINY, train=train), 65, slice_of(4))
  assert halves.accumulation == 2
  assert halves.hlo_flops_per_step == pytest.approx(2 * tiny.hlo_flops_per_step, rel=0.02)


@pytest.mark.slow
def test_the_output_layer_counts_in_the_share_of_rows_that_need_it():
  """TINY has 32 rows on a device, in tiles of 8, and 128 columns: the last half are padding."""
  uniform = dataclasses.replace(TINY, diffusion=DiffusionConfig.paper("uniform"))
  absorbing = dataclasses.replace(uniform, diffusion=DiffusionConfig(process="absorbing"))
  plans = [plan_training(one, 65, slice_of(4)) for one in (uniform, absorbing)]
  # One product forward, and backward the outputs again and two gradients; 4 tiles for 2.
  tile = 4 * 2 * 8 * 16 * 128
  assert plans[0].hlo_flops_per_step - plans[1].hlo_flops_per_step == 4 * (4 - 2) * tile


@pytest.mark.parametrize(
  ("train", "mesh", "rows", "columns"),
  [
    (TrainConfig(batch_size=16), MeshConfig(fsdp=4), 4096, 50304),
    (TrainConfig(batch_size=16, accumulation=2), MeshConfig(fsdp=4), 2048, 50304),
    (TrainConfig(batch_size=16), MeshConfig(fsdp=2, tensor=2), 8192, 25152),
    (TrainConfig(batch_size=4), MeshConfig(replica=4, fsdp=1), 1024, 50304),
  ],
)
def test_tiles_of_rows_are_those_of_a_device(train, mesh, rows, columns):
  height, _ = tile_shape(rows, columns)
  for process in ("absorb", "uniform"):
    experiment = dataclasses.replace(
      TINY,
      data=DataConfig(length=1024),
      diffusion=DiffusionConfig.paper(process),
      train=train,
      mesh=mesh,
    )
    program = Program(experiment=experiment, mesh=make_mesh(mesh), vocab_size=50257)
    tiles = planning._row_tiles(program, "train")
    if process == "uniform":
      assert tiles == rows / height
    else:
      assert (
        tiles - 1
        < needed_share(Absorbing(50257), program.score_entropy.noise) * rows / height
        <= tiles
      )


def failing(message):
  def fail(_):
    raise jax.errors.JaxRuntimeError(message)

  return fail


OUT_OF_MEMORY = (
  "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
  "required for HLO temporaries (27.50G) exceeds available HBM (15.75G). HLO module: "
  "jit_train_step.\nSee https://openxla.org/xla/errors/error_1000 for more details."
)
OUT_OF_MEMORY_TOO = (
  "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
  "Used 27.50G of 15.75G hbm. Exceeded hbm capacity by 11.75G.\nTotal hbm usage: ..."
)


@pytest.mark.parametrize("message", [OUT_OF_MEMORY, OUT_OF_MEMORY_TOO])
def test_the_compiler_says_how_much_is_missing(monkeypatch, message):
  monkeypatch.setattr(planning, "_compile", failing(message))
  plan = plan_training(TINY, 65, slice_of(4))
  assert not plan.fits
  assert plan.bytes_per_chip == 27.5 * 2**30
  assert plan.bytes_per_chip == plan.argument_bytes_per_chip + plan.temp_bytes_per_chip
  assert plan.why_not == message.splitlines()[0]
  assert math.isnan(plan.seconds_bound)


@pytest.mark.parametrize(
  "message",
  [
    "INTERNAL: Async done requires its operand to be an asynchronous op\nmore",
    "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 17.0M of 16.0M vmem",
  ],
)
def test_a_compiler_that_fails_is_named(monkeypatch, message):
  monkeypatch.setattr(planning, "_compile", failing(message))
  with pytest.raises(ValueError, match="a compiler cannot compile this for cpu:4: ") as error:
    plan_training(TINY, 65, slice_of(4))
  assert message.splitlines()[0] in str(error.value)
  assert "--config.model.attention" in str(error.value)
  assert "\n" not in str(error.value)


def test_a_mesh_that_does_not_divide_is_refused():
  def planned(**mesh):
    return plan_training(dataclasses.replace(TINY, mesh=MeshConfig(**mesh)), 65, slice_of(4))

  with pytest.raises(ValueError, match=r"mesh.fsdp=3, .* make 3"):
    planned(replica=1, fsdp=3)
  with pytest.raises(ValueError, match=r"mesh.tensor=4 must divide model.heads=2"):
    planned(replica=1, tensor=4)


@pytest.mark.parametrize(
  "name", ["v5e", "v5e:", "v5e:4", "v7:4x4", "v5e:4x4x4x4", "0xv5e:4x4", "x v5e:4x4", "v5e:4x4 "]
)
def test_bad_topology_names(name):
  with pytest.raises(ValueError, match=r"must be a generation \(v4, v5e, v5p, v6e, tpu7x\)"):
    find_slice(name)


def test_without_libtpu_there_is_a_pip_line(monkeypatch):
  monkeypatch.setitem(sys.modules, "libtpu", None)
  with pytest.raises(ImportError, match="pip install libtpu"):
    find_slice("v5e:4x4")


def test_a_shape_that_libtpu_does_not_know_is_refused(monkeypatch):
  monkeypatch.setitem(sys.modules, "libtpu", types.ModuleType("libtpu"))
  monkeypatch.setattr(
    "sedd_jax.planning.slices.topologies.get_topology_desc",
    lambda **_: failing("INVALID_ARGUMENT: no such shape")(None),
  )
  with pytest.raises(ValueError, match=r"--topology=v5e:3x5: libtpu refuses it: INVALID_ARG"):
    find_slice("v5e:3x5")


def test_chips_are_known_to_training_too():
  for kind, name in [("TPU v5 lite", "v5e"), ("TPU v5", "v5p"), ("TPU v6 lite", "v6e")]:
    assert device_flops(kind) == TPUS[name].flops
  assert device_flops("TPU v4") == TPUS["v4"].flops
  assert device_flops("TPU7x") == TPUS["tpu7x"].flops / 2
  assert device_flops("cpu") is None


# --- Meshes and fits


def test_meshes_from_text():
  assert meshes("fsdp=16; fsdp=4,tensor=4 ;replica=-1,fsdp=2") == [
    MeshConfig(replica=1, fsdp=16, tensor=1),
    MeshConfig(replica=1, fsdp=4, tensor=4),
    MeshConfig(replica=-1, fsdp=2, tensor=1),
  ]


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("fsdp=4,fsdp=4", "'fsdp=4' must be one of"),
    ("data=4", "'data=4' must be one of"),
    ("fsdp=four", "'fsdp=four' must be one of"),
    ("fsdp=--3", "'fsdp=--3' must be one of"),
    ("fsdp=4,", "'' must be one of"),
    (" ; ", "no mesh in"),
  ],
)
def test_bad_meshes(text, message):
  with pytest.raises(ValueError, match=message):
    meshes(text)


def fake_plan(room, asked):
  """A chip with room for so many sequences; a policy takes its share of it."""
  share = {"none": 4, "dots": 2, "narrow": 1.5, "full": 1}

  def plan(experiment):
    each = experiment.train.batch_size / 4
    asked.append((each, experiment.model.remat))
    assert experiment.train.accumulation == 1
    return types.SimpleNamespace(
      batch=experiment.train.batch_size,
      remat=experiment.model.remat,
      fits=each * share[experiment.model.remat] <= room,
    )

  return plan


def fitted(room, start):
  asked = []
  train = dataclasses.replace(TINY.train, batch_size=4 * start, accumulation=2)
  found = fit(fake_plan(room, asked), dataclasses.replace(TINY, train=train), 4)
  assert len(asked) == len(set(asked))  # No program is compiled twice.
  return found.batch / 4, found.remat, found.fits, len(asked)


@pytest.mark.parametrize("start", [1, 3, 8, 64])
@pytest.mark.parametrize("room", [1, 2, 3, 5, 8, 13, 40])
def test_fit_finds_the_largest_batch(room, start):
  each, remat, fits, compilations = fitted(room, start)
  assert fits
  assert each <= room < each + max(1, each // 8) + 1
  assert remat == "full"
  assert compilations <= 14


@pytest.mark.parametrize(("dots", "policy"), [(8, "dots"), (7, "narrow")])
def test_fit_prefers_the_least_remat(dots, policy):
  class Roomy(types.SimpleNamespace):
    pass

  def plan(experiment):
    each = experiment.train.batch_size / 4
    limit = {"none": 4, "dots": dots, "narrow": 8, "full": 8}[experiment.model.remat]
    return Roomy(batch=each, remat=experiment.model.remat, fits=each <= limit)

  found = fit(plan, TINY, 4)
  assert (found.batch, found.remat) == (8, policy)


def test_fit_says_when_nothing_fits():
  assert fitted(0, 16)[:3] == (1, "full", False)


# --- The command


def sedd_plan(*arguments, prelude=""):
  script = f"import sedd_jax.cli.plan as cli\n{prelude}\ncli.run()"
  return subprocess.run(
    [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=300
  )


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
  path = tmp_path_factory.mktemp("configs") / "tiny.py"
  path.write_text(
    "import dataclasses\nfrom ml_collections import ConfigDict\n"
    "from sedd_jax.data import DataConfig\n"
    "from sedd_jax.training.experiment import Experiment, ModelConfig, TrainConfig\n"
    "def get_config():\n"
    "  made = Experiment(data=DataConfig(length=32),\n"
    "    model=ModelConfig(width=16, blocks=1, heads=2, cond_dim=8),\n"
    "    train=TrainConfig(steps=8, batch_size=4))\n"
    "  return ConfigDict(dataclasses.asdict(made))\n"
  )
  return f"--config={path}"


# Stands for libtpu: four CPU devices, and what its compiler says of too large a program.
ON_CPU = f"""
import dataclasses, jax, types
from sedd_jax.parallel.chips import TPUS
from sedd_jax.planning import Slice, plan
jax.config.update("jax_num_cpu_devices", 4)
def fake(topology):
  chip = dataclasses.replace(TPUS["v5e"], hbm_bytes=2**30)
  return Slice(name=topology, chip=chip, chips=4, slices=1, devices=tuple(jax.devices("cpu")),
    compiler="a compiler")
cli.find_slice = fake
def compile(lowered):
  if "tensor<4096x32xi32>" in lowered.as_text():
    raise jax.errors.JaxRuntimeError({OUT_OF_MEMORY!r})
  memory = types.SimpleNamespace(argument_size_in_bytes=1000, output_size_in_bytes=0,
    alias_size_in_bytes=0, temp_size_in_bytes=100, generated_code_size_in_bytes=10)
  return memory, {PROGRAM!r}
plan._compile = compile
"""

KEYS = (
  "chips", "hbm_bytes", "bytes_per_chip", "temp_bytes_per_chip", "fits", "hlo_flops_per_step",
  "model_flops_per_step", "collective_bytes", "tokens_per_second_bound",
)  # fmt: skip


def test_json_is_all_that_stdout_holds(config_file):
  arguments = (config_file, "--topology=v5e:2x2", "--vocab_size=65", "--json")
  done = sedd_plan(*arguments, prelude=ON_CPU)
  assert done.returncode == 0, done.stderr
  plan = json.loads(done.stdout)
  assert set(KEYS) < set(plan)
  assert set(plan) == {field.name for field in dataclasses.fields(Plan)}
  assert plan["mesh"] == {"replica": 1, "fsdp": 4, "tensor": 1}
  assert plan["collectives"][0]["axes"]
  assert "compiling for v5e:2x2 with fsdp=-1: batch 4, accumulation 1, remat none" in done.stderr


@pytest.mark.slow
def test_what_does_not_fit_exits_with_1_and_is_null(config_file):
  arguments = (config_file, "--topology=v5e:2x2", "--vocab_size=65", "--batch=4096")
  done = sedd_plan(*arguments, "--json", prelude=ON_CPU)
  assert done.returncode == 1, done.stderr
  plan = json.loads(done.stdout, parse_constant=pytest.fail)
  assert plan["fits"] is False
  assert plan["bytes_per_chip"] == 27.5 * 2**30
  assert plan["tokens_per_second_bound"] is None
  done = sedd_plan(*arguments, prelude=ON_CPU)
  assert done.returncode == 1
  assert "does not fit: RESOURCE_EXHAUSTED" in done.stdout
  assert "nan" not in done.stdout


@pytest.mark.slow
def test_meshes_stand_side_by_side(config_file):
  arguments = (config_file, "--topology=v5e:2x2", "--vocab_size=65")
  compare = "--compare=fsdp=4;fsdp=2,tensor=2"
  done = sedd_plan(*arguments, compare, prelude=ON_CPU)
  assert done.returncode == 0, done.stderr
  assert "planned, not run" in done.stdout
  lines = {line.split("  ")[0]: line.split() for line in done.stdout.splitlines()}
  assert lines["mesh"][1:] == ["fsdp=4", "fsdp=2,tensor=2"]
  assert lines["fits"][1:] == ["yes", "yes"]
  assert len({len(line) for line in done.stdout.splitlines()[1:15]}) == 1
  done = sedd_plan(*arguments, compare, "--json", prelude=ON_CPU)
  assert [plan["mesh"]["tensor"] for plan in json.loads(done.stdout)] == [1, 2]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--topology=v5e:4x4"], "--config is missing"),
    (["CONFIG"], "--topology is missing"),
    (["CONFIG", "--topology=v5e:4x4", "--fit", "--compare=fsdp=4"], "two questions"),
    (["CONFIG", "--topology=v5e:4x4", "--batch=0"], "--batch=0 must be at least 1"),
    (["CONFIG", "--topology=v5e:4x4", "--vocab_size=0"], "--vocab_size=0 must be at least 2"),
    (["CONFIG", "--topology=v5e:4x4", "--compare=;"], "no mesh in ';'"),
    (["CONFIG", "--topology=v9:4x4", "--vocab_size=65"], "must be a generation"),
  ],
)
def test_refusals(config_file, arguments, message):
  done = sedd_plan(*(config_file if one == "CONFIG" else one for one in arguments))
  assert done.returncode == 2
  assert done.stderr.startswith("error: ")
  assert message in done.stderr
  assert not done.stdout


def test_the_vocabulary_of_a_corpus_that_is_not_named(config_file):
  characters = (config_file, "--topology=v5e:2x2", "--config.data.tokenizer=chars")
  done = sedd_plan(*characters, "--config.data.files=", prelude=ON_CPU)
  assert done.returncode == 2
  assert "--vocab_size" in done.stderr


def test_a_compiler_that_fails_ends_with_2(config_file):
  fails = ON_CPU + (
    "def compile(lowered):\n"
    "  raise jax.errors.JaxRuntimeError('INTERNAL: Async done requires its operand')\n"
    "plan._compile = compile\n"
  )
  done = sedd_plan(config_file, "--topology=v6e:2x2", "--vocab_size=65", prelude=fails)
  assert done.returncode == 2
  assert "error: a compiler cannot compile this for v6e:2x2: INTERNAL: Async done" in done.stderr
  assert not done.stdout


@pytest.mark.parametrize(
  ("batch", "length", "mesh", "tiles"),
  [
    (64, 1024, MeshConfig(fsdp=1, tensor=4), 16),  # 16,384 rows, half of them, by 512.
    (8, 1022, MeshConfig(fsdp=1, tensor=4), 8),  # Tensor does not divide 1022: 8176 rows, by 511.
    (8, 64, MeshConfig(fsdp=4), 1),  # 128 rows in one tile.
  ],
)
def test_row_tiles_of_a_sampler_share_positions_over_tensor(batch, length, mesh, tiles):
  experiment = dataclasses.replace(
    TINY,
    data=dataclasses.replace(TINY.data, length=length),
    model=dataclasses.replace(TINY.model, heads=4),
    train=dataclasses.replace(TINY.train, batch_size=batch, accumulation=1),
  )
  program = Program(experiment=experiment, mesh=make_mesh(mesh), vocab_size=65)
  assert planning._row_tiles(program, "sample") == tiles
