"""Products and traffic of a compiled program, against numbers known exactly."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.programs import DOT, W, X, compiled, module, text_of

from sedd_jax.diffusion import Absorbing
from sedd_jax.models import Network, ScoreTransformerConfig
from sedd_jax.planning.costs import costs
from sedd_jax.training.flops import forward_flops


def flops_of(text):
  return costs(text, {"a": 1}).flops


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
