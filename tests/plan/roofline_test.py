"""The floor of a step, computed by hand."""

import dataclasses

import pytest

from dss_jax.config.mesh_presets import LAYOUTS
from dss_jax.model.flops import StepFlops
from dss_jax.plan.collectives import Total
from dss_jax.plan.compiled import Compiled
from dss_jax.plan.hardware import HARDWARE, Hardware
from dss_jax.plan.roofline import Roofline, step_roofline

DEVICE = Hardware(flops=1e12, memory_bandwidth=1e9, link_bandwidth=1e8, limit_gib=16)
COMPILED = Compiled(
  data=2,
  model=4,
  weights_over_data=False,
  memory={"arguments": 1.0, "outputs": 0.5, "temporaries": 9.0, "aliased": 0.5, "peak": 10.0},
  collectives={"all-reduce": Total(3, 10, 2e8), "all-gather": Total(1, 10, 1e8)},
)


@pytest.mark.parametrize(
  ("remat", "dtype", "passes_times_bytes"),
  [("none", "bfloat16", 3 * 2), ("full", "bfloat16", 4 * 2), ("minimal", "float32", 3 * 4)],
)
def test_each_part_by_hand(v3_64, remat, dtype, passes_times_bytes):
  model = dataclasses.replace(v3_64.model, remat=remat, dtype=dtype)
  floor = step_roofline(COMPILED, StepFlops(6e12, 2e12), model, 1_000_000_000, DEVICE)
  assert floor.compute == pytest.approx(8e12 / 8 / 1e12)
  # The state read and written, and a quarter of the weights in each pass.
  assert floor.memory == pytest.approx(1.5 * 2**30 / 1e9 + passes_times_bytes * 0.25)
  assert floor.interconnect == pytest.approx(3.0)


def test_the_slowest_part_is_the_step_s_floor():
  assert Roofline(1.0, 3.0, 2.0).step == 3.0


def test_every_generation_has_figures():
  assert set(HARDWARE) == set(LAYOUTS)
  for generation, device in HARDWARE.items():
    assert 1e13 < device.flops < 1e15, generation
    assert 1e11 < device.memory_bandwidth < 1e13, generation
    assert 1e10 < device.link_bandwidth < 1e12, generation
    assert 7 < device.limit_gib < 96, generation
