"""The report of a plan: figures, the best mesh, and advice if none fits."""

import dataclasses
import json

import pytest

from dss_jax.plan.report import advice, to_json, to_text


def test_json_has_the_figures(make_plan):
  report = json.loads(json.dumps(to_json(make_plan())))
  assert report["fits"] is True
  assert (report["peak_gib_per_core"], report["limit_gib_per_core"]) == (2.5, 15.48)
  assert report["memory_gib_per_core"] == {
    "arguments": 0.5, "outputs": 0.25, "temporaries": 3.0, "aliased": 0.125
  }  # fmt: skip
  assert report["collectives"] == {"all-gather": {"count": 1027, "result_gib": 1, "sent_gib": 0.5}}
  assert (report["flops_per_step"], report["executed_flops_per_step"]) == (3e13, 4e13)
  assert report["floor_seconds"] == {
    "compute": 0.5, "memory": 0.1, "interconnect": 0.25, "step": 0.5
  }  # fmt: skip
  # 300 steps of half a second on 32 chips.
  assert report["chip_hours"]["floor"] == pytest.approx(300 * 0.5 * 32 / 3600)
  assert report["chip_hours"]["expected"] == pytest.approx(300 * 0.5 * 32 / 3600 / 0.4)
  assert (report["rows"], report["input_tokens"], report["target_tokens"]) == (24, 1024, 256)
  assert report["mesh"] == report["best_mesh"] == {"data": 8, "model": 8}
  assert report["slice"]["chips"] == 32
  assert (report["candidates"], report["advice"]) == ([], [])


def test_text_has_the_figures(make_plan):
  text = to_text(make_plan())
  for part in (
    "base (247,577,856 weights) on v3-64: 64 devices on 32 chips, data 8 x model 8",
    "batch 24: 24 rows of 1,024 input and 256 target tokens",
    "fits: 2.50 of 15.48 GiB per device",
    "arguments 0.50, outputs 0.25, temporaries 3.00, aliased 0.12",
    "FLOPs per step: 3e+13, and 1e+13 recomputed",
    "all-gather           1,027  results 1.000 GiB, sent 0.500 GiB",
    "floor of the step time: 500 ms, the largest of compute 500 ms, memory 100 ms, interconnect",
    "300 steps: 1.33 chip-hours at the floor",
    "best mesh: data 8 x model 8 (the only one compiled); --candidates",
  ):
    assert part in text, part


def test_the_best_mesh_is_the_fastest_of_those_that_fit(make_plan, planned):
  plan = make_plan(
    planned(step=0.5), [planned(4, 16, step=0.2), planned(2, 32, step=0.3), planned(1, 64, None)]
  )
  report = to_json(plan)
  assert report["best_mesh"] == {"data": 4, "model": 16}
  assert [mesh["fits"] for mesh in report["candidates"]] == [True, True, False]
  text = to_text(plan)
  assert "best mesh: data 4 x model 16 (of 4 compiled)" in text
  assert "data 1 x model 64: does not fit: it needs more than 15.48 GiB" in text


def test_a_plan_that_does_not_fit_has_advice(make_plan, planned, v3_64):
  model = dataclasses.replace(v3_64.model, remat="none", dtype="float32")
  plan = make_plan(
    planned(step=None, needed_gib=17.5), config=dataclasses.replace(v3_64, model=model)
  )
  report = to_json(plan)
  assert (report["fits"], report["peak_gib_per_core"]) == (False, 17.5)
  assert (report["floor_seconds"], report["chip_hours"], report["best_mesh"]) == (None, None, None)
  assert report["collectives"] == {}
  text = to_text(plan)
  assert "does not fit: it needs 17.50 of 15.48 GiB per device" in text
  for part in (
    "T5Config.remat=\"'full'\"",
    "MeshConfig.weights_over_data=True",
    "RunConfig.accumulation_steps=3",
    "T5Config.dtype=\"'bfloat16'\"",
    "--candidates",
    "a larger slice",
  ):
    assert f"to change: {next(line for line in advice(plan) if part in line)}" in text


def test_advice_leaves_out_what_is_already_set(make_plan, planned):
  first = planned(step=None, weights_over_data=True)
  plan = make_plan(first, [planned(4, 16)])
  sentences = advice(plan)
  assert sentences[0] == (
    "data 4 x model 16 fits: --gin MeshConfig.data=4 --gin MeshConfig.model=16"
  )
  text = " ".join(sentences)
  assert not any(
    part in text for part in ("remat", "weights_over_data", "bfloat16", "--candidates")
  )
