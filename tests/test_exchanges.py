"""What the devices of a compiled program send each other, against numbers known exactly."""

import jax
import jax.numpy as jnp
import pytest
from support.programs import DOT, module, text_of

from sedd_jax.planning.costs import costs

AXES = {"a": 2, "b": 2}


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
