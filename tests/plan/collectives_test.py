"""Collectives of a compiled program's text: kinds, loops, bytes and groups."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from dss_jax.config.schema import MeshConfig
from dss_jax.parallel.mesh import make_mesh
from dss_jax.plan.collectives import Collective, Total, collectives, totals

# libtpu's output, shortened: two notations of a trip count, three of replica groups, an
# asynchronous collective, one in a fusion, and one in groups of one device.
TEXT = """HloModule jit_step, is_scheduled=true, num_partitions=64

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%all-reduce-scatter.1 (p: bf16[8,64]) -> bf16[1,64] {
  %p = bf16[8,64]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.7 = bf16[8,64]{1,0:T(8,128)(2,1)} all-reduce(%p), replica_groups=[8,8]<=[64], to_apply=%add
  ROOT %slice = bf16[1,64]{1,0:T(8,128)(2,1)} dynamic-slice(%all-reduce.7, %zero), dynamic_slice_sizes={1,64}
}

%body.1 (t: (s32[], f32[16])) -> (s32[], f32[16]) {
  %t = (s32[]{:T(256)}, f32[16]{0:T(256)}) parameter(0)
  %x = f32[16]{0:T(256)} get-tuple-element(%t), index=1
  %all-reduce.1 = (f32[16]{0:T(256)}, bf16[4,8]{1,0:T(4,128)(2,1)}) all-reduce(%x, %y), channel_id=4, replica_groups=mesh['axis_0'=8,'axis_1'=1,'axis_2'=8] {'axis_2'}, to_apply=%add
  %fusion.1 = bf16[1,64]{1,0:T(8,128)(2,1)} fusion(%z), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %tuple.1 = (s32[]{:T(256)}, f32[16]{0:T(256)}) tuple(%i, %x)
}

%condition.1 (t: (s32[], f32[16])) -> pred[] {
  %limit = s32[]{:T(256)} constant(24)
  %t = (s32[]{:T(256)}, f32[16]{0:T(256)}) parameter(0)
  %i = s32[]{:T(256)} get-tuple-element(%t), index=0
  ROOT %less = pred[]{:T(1024)} compare(%i, %limit), direction=LT
}

%body.2 (t: (s32[], f32[16])) -> (s32[], f32[16]) {
  %t = (s32[], f32[16]) parameter(0)
  %all-gather-start.1 = (f32[2,4]{1,0}, f32[16,4]{1,0}, u32[]) all-gather-start(%x), replica_groups={{0,1,2,3,4,5,6,7},{8,9,10,11,12,13,14,15}}, dimensions={0}
  %all-gather-done.1 = f32[16,4]{1,0} all-gather-done(%all-gather-start.1)
  ROOT %tuple.2 = (s32[], f32[16]) tuple(%i, %x)
}

%condition.2 (t: (s32[], f32[16])) -> pred[] {
  %t = (s32[], f32[16]) parameter(0)
  ROOT %less = pred[] compare(%i, %j), direction=LT
}

%overlapped.1 (p: f32[1,8]) -> f32[8,8] {
  %all-gather.4 = f32[8,8]{1,0} all-gather(%p), channel_id=7, replica_groups=[8,8]<=[64], dimensions={0}
}

%overlapped.2 (p: f32[1,8]) -> f32[8,8] {
  %all-gather.5 = f32[8,8]{1,0} all-gather(%p), channel_id=7, replica_groups=[8,8]<=[64], dimensions={0}
}

ENTRY %main (p0: f32[16]) -> f32[16] {
  %p0 = f32[16]{0} parameter(0), sharding={devices=[64]<=[64]}
  %while.1 = (s32[]{:T(256)}, f32[16]{0:T(256)}) while(%tuple), condition=%condition.1, body=%body.1
  %while.2 = (s32[], f32[16]) while(%tuple), condition=%condition.2, body=%body.2, backend_config={"known_trip_count":{"n":"5"}}
  %fusion.start = f32[8,8] fusion(%p0), kind=kCustom, calls=%overlapped.1
  %fusion.done = f32[8,8] fusion(%fusion.start), kind=kCustom, calls=%overlapped.2
  %collective-permute.1 = s32[3,128,1]{1,0,2:T(4,128)} collective-permute(%q), channel_id=19, source_target_pairs={{0,0},{1,8}}
  %all-to-all.1 = bf16[3,32]{1,0} all-to-all(%q), replica_groups=[16,4]<=[64], dimensions={1}
  %all-reduce.9 = f32[1000]{0} all-reduce(%p0), replica_groups=[64,1]<=[64], to_apply=%add
  ROOT %all-reduce.10 = f32[]{:T(256)} all-reduce(%p0), replica_groups={}, to_apply=%add
}
"""  # noqa: E501


def test_kinds_loops_bytes_and_groups():
  assert sorted(collectives(TEXT)) == sorted(
    [
      Collective("all-reduce", 24, 16 * 4 + 4 * 8 * 2, 8),
      Collective("reduce-scatter", 24, 64 * 2, 8),
      Collective("all-gather", 5, 16 * 4 * 4, 8),
      Collective("all-gather", 1, 8 * 8 * 4, 8),
      Collective("collective-permute", 1, 3 * 128 * 4, 2),
      Collective("all-to-all", 1, 3 * 32 * 2, 4),
      Collective("all-reduce", 1, 4, 64),
    ]
  )


def test_totals_by_kind():
  found = totals(TEXT)
  assert set(found) == {
    "all-reduce", "reduce-scatter", "all-gather", "collective-permute", "all-to-all"
  }  # fmt: skip
  reduce = found["all-reduce"]
  assert reduce[:2] == (25, 24 * 128 + 4)
  assert reduce.sent_bytes == pytest.approx(2 * (24 * 128 * 7 / 8 + 4 * 63 / 64))
  assert found["reduce-scatter"] == Total(24, 24 * 128, 24 * 128 * 7)
  assert found["all-gather"].sent_bytes == pytest.approx((5 * 256 + 256) * 7 / 8)
  assert found["collective-permute"] == Total(1, 1536, 1536)


def test_a_program_without_collectives():
  assert totals("HloModule jit_f\n\nENTRY %main (p: f32[2]) -> f32[2] {\n}\n") == {}
  assert totals("") == {}


def test_a_compiled_program():
  """Three iterations of an all-reduce over 4 of 8 devices, then an all-gather."""
  mesh = make_mesh(MeshConfig(data=2, model=4), 2)

  @functools.partial(
    jax.shard_map, mesh=mesh, in_specs=P("data", "model"), out_specs=P("data"), check_vma=False
  )
  def step(x):
    def iteration(carry, _):
      return jax.lax.psum(jnp.tanh(carry), "model"), None

    x, _ = jax.lax.scan(iteration, x, None, length=3)
    return jax.lax.all_gather(x, "model", axis=1, tiled=True)

  text = jax.jit(step).lower(np.ones((4, 16), np.float32)).compile().as_text()
  assert sorted(collectives(text)) == [
    Collective("all-gather", 1, 2 * 16 * 4, 4),
    Collective("all-reduce", 3, 2 * 4 * 4, 4),
  ]
