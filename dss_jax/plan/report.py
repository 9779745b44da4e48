"""A plan as JSON and as text."""

from typing import Any

from dss_jax.plan.command import Plan, Planned
from dss_jax.plan.hardware import HARDWARE, USUAL_FRACTION
from dss_jax.plan.roofline import Roofline


def to_json(plan: Plan) -> dict[str, Any]:
  """Returns the plan as JSON types; memory and collectives are per device, as in Hardware."""
  config, model = plan.config, plan.config.model
  best = plan.best
  return {
    "student": config.student,
    "weights": plan.weights,
    "teacher_weights": plan.teacher_weights,
    "slice": plan.slice._asdict(),
    "batch_size": config.batch_size,
    **plan.shape._asdict(),
    "dtype": model.dtype,
    "scan_layers": model.scan_layers,
    "remat": model.remat,
    "train_steps": config.train_steps,
    "limit_gib_per_core": _limit(plan),
    "flops_per_step": plan.flops.model,
    "executed_flops_per_step": plan.flops.executed,
    **_mesh_json(plan, plan.planned),
    "candidates": [_mesh_json(plan, other) for other in plan.others],
    "best_mesh": None if best is None else _axes(best),
    "advice": advice(plan),
  }


def _mesh_json(plan: Plan, planned: Planned) -> dict[str, Any]:
  compiled, floor = planned.compiled, planned.floor
  peak = compiled.memory.get("peak", compiled.needed_gib)
  return {
    "mesh": _axes(planned),
    "fits": compiled.fits,
    "peak_gib_per_core": peak,
    "memory_gib_per_core": {k: v for k, v in compiled.memory.items() if k != "peak"},
    "weights_over_data": compiled.weights_over_data,
    "collectives": {
      kind: {
        "count": total.runs,
        "result_gib": total.result_bytes / 2**30,
        "sent_gib": total.sent_bytes / 2**30,
      }
      for kind, total in compiled.collectives.items()
    },
    "floor_seconds": None if floor is None else {**floor._asdict(), "step": floor.step},
    "chip_hours": None if floor is None else _chip_hours(plan, floor),
    "compile_seconds": compiled.seconds,
  }


def to_text(plan: Plan) -> str:
  """Returns the plan for a terminal."""
  config, model, compiled = plan.config, plan.config.model, plan.planned.compiled
  axes = "over both axes" if compiled.weights_over_data else "over model"
  lines = [
    f"{config.student} ({plan.weights:,} weights) on {plan.slice.name}: {plan.slice.devices} "
    f"devices on {plan.slice.chips} chips, {_mesh_name(plan.planned)}, weights sharded {axes}",
    *(
      [
        f"trained on the outputs of a teacher of {plan.teacher_weights:,} weights, "
        f"{config.signals.weights}"
      ]
      if plan.teacher_weights
      else []
    ),
    f"batch {config.batch_size}: {plan.shape.rows} rows of {plan.shape.input_tokens:,} input and "
    f"{plan.shape.target_tokens:,} target tokens, one row per example",
    f"{model.dtype}, remat {model.remat}, layers {'scanned' if model.scan_layers else 'unrolled'}; "
    f"compiled in {compiled.seconds:.0f} s",
    "",
    _fit(plan, plan.planned),
  ]
  floor = plan.planned.floor
  if floor is not None:
    kinds = ", ".join(f"{k} {v:.2f}" for k, v in compiled.memory.items() if k != "peak")
    lines.append(f"  GiB per device by kind: {kinds}")
    lines += ["", *_work(plan, floor)]
  if plan.others:
    lines += ["", "meshes compiled:"]
    for mesh in (plan.planned, *plan.others):
      seconds = "" if mesh.floor is None else f", floor {_seconds(mesh.floor.step)}"
      lines.append(f"  {_mesh_name(mesh)}: {_fit(plan, mesh)}{seconds}")
  best = plan.best
  if best is not None:
    among = f"of {1 + len(plan.others)} compiled" if plan.others else "the only one compiled"
    hint = "" if plan.others else "; --candidates compiles the others, too"
    lines.append(f"best mesh: {_mesh_name(best)} ({among}){hint}")
  lines += [f"to change: {sentence}" for sentence in advice(plan)]
  return "\n".join(lines)


def _work(plan: Plan, floor: Roofline) -> list[str]:
  """Returns the lines on the step's FLOPs, collectives and floor, and on the run's cost."""
  lines = [
    f"FLOPs per step: {plan.flops.model:.3g}, and {plan.flops.recomputed:.3g} recomputed",
    "collectives per step and device (those in a loop counted at every iteration):",
  ]
  for kind, total in plan.planned.compiled.collectives.items():
    lines.append(
      f"  {kind:<19} {total.runs:>6,}  results {total.result_bytes / 2**30:.3f} GiB, "
      f"sent {total.sent_bytes / 2**30:.3f} GiB"
    )
  hours = _chip_hours(plan, floor)
  lines += [
    f"floor of the step time: {_seconds(floor.step)}, the largest of compute "
    f"{_seconds(floor.compute)}, memory {_seconds(floor.memory)}, interconnect "
    f"{_seconds(floor.interconnect)}",
    f"{plan.config.train_steps:,} steps: {hours['floor']:.3g} chip-hours at the floor, about "
    f"{hours['expected']:.3g} at the usual {USUAL_FRACTION:.0%} of that speed",
  ]
  return lines


def advice(plan: Plan) -> list[str]:
  """Returns what to change if the step does not fit, the cheapest change first."""
  if plan.planned.compiled.fits:
    return []
  config = plan.config
  sentences = []
  best = plan.best
  if best is not None:
    sentences.append(f"{_mesh_name(best)} fits: --gin MeshConfig.data={best.compiled.data} "
                     f"--gin MeshConfig.model={best.compiled.model}")  # fmt: skip
  if config.model.remat != "full":
    sentences.append("recompute the layers in the backward pass: --gin T5Config.remat=\"'full'\"")
  if not plan.planned.compiled.weights_over_data:
    sentences.append("shard the weights over both axes: --gin MeshConfig.weights_over_data=True")
  rows_per_device = plan.shape.rows // plan.planned.compiled.data
  if rows_per_device > config.accumulation_steps:
    sentences.append(f"use microbatches: --gin RunConfig.accumulation_steps={rows_per_device}")
  if config.model.dtype != "bfloat16":
    sentences.append("compute in bfloat16: --gin T5Config.dtype=\"'bfloat16'\"")
  if not plan.others:
    sentences.append("try the other meshes of these devices: --candidates")
  sentences.append("fewer --input-tokens, a larger slice, or one of a generation with more memory")
  return sentences


def _fit(plan: Plan, planned: Planned) -> str:
  compiled, limit = planned.compiled, _limit(plan)
  if compiled.fits:
    return f"fits: {compiled.memory['peak']:.2f} of {limit:.2f} GiB per device"
  needed = "more than" if compiled.needed_gib is None else f"{compiled.needed_gib:.2f} of"
  return f"does not fit: it needs {needed} {limit:.2f} GiB per device"


def _chip_hours(plan: Plan, floor: Roofline) -> dict[str, float]:
  hours = floor.step * plan.config.train_steps * plan.slice.chips / 3600
  return {"floor": hours, "expected": hours / USUAL_FRACTION}


def _limit(plan: Plan) -> float:
  return HARDWARE[plan.slice.generation].limit_gib


def _axes(planned: Planned) -> dict[str, int]:
  return {"data": planned.compiled.data, "model": planned.compiled.model}


def _mesh_name(planned: Planned) -> str:
  return f"data {planned.compiled.data} x model {planned.compiled.model}"


def _seconds(seconds: float) -> str:
  return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
