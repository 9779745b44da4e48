"""Plans built by hand, without compiling."""

import dataclasses

import pytest

from dss_jax.config.gin_loader import Binding, load_config
from dss_jax.config.mesh_presets import mesh_choice
from dss_jax.config.schema import RunConfig
from dss_jax.data.packing import RowShape
from dss_jax.model.flops import StepFlops
from dss_jax.plan.collectives import Total
from dss_jax.plan.command import Plan, Planned
from dss_jax.plan.compiled import Compiled
from dss_jax.plan.roofline import Roofline

MEMORY = {
  "arguments": 0.5, "outputs": 0.25, "temporaries": 3.0, "aliased": 0.125, "peak": 2.5
}  # fmt: skip


@pytest.fixture
def v3_64():
  """The configuration of a base student on v3-64."""
  files = ["runs/distill.gin", "models/base.gin", *mesh_choice("v3-64").files]
  return load_config(RunConfig, files, [Binding("MODEL_DIR", "x", "test")])


@pytest.fixture
def planned():
  """Returns a function that makes a mesh: one that fits with floor `step`, or None does not."""

  def planned(data=8, model=8, step=0.5, **changes):
    compiled = Compiled(data=data, model=model, weights_over_data=False, seconds=61.0)
    compiled = dataclasses.replace(compiled, **changes)
    if step is None:
      return Planned(compiled, None)
    collectives = {"all-gather": Total(1027, 2**30, 2**29)}
    compiled = dataclasses.replace(compiled, memory=MEMORY, collectives=collectives)
    return Planned(compiled, Roofline(compute=step, memory=0.1, interconnect=0.25))

  return planned


@pytest.fixture
def make_plan(v3_64, planned):
  def make_plan(first=None, others=(), config=v3_64):
    return Plan(
      config=config,
      slice=mesh_choice("v3-64").slice,
      shape=RowShape(24, 1024, 256),
      weights=247_577_856,
      teacher_weights=0,
      flops=StepFlops(3e13, 1e13),
      planned=first or planned(),
      others=list(others),
    )

  return make_plan
