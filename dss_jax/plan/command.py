"""`dss plan`: the real training step of a run, compiled for a TPU slice.

The batch is planned as one row per example, with the given numbers of input and target tokens: a
row has room for both sequences of the example, its label's and its rationale's.
"""

import dataclasses
import math
from typing import NamedTuple

from dss_jax.config.mesh_presets import Slice
from dss_jax.config.schema import MeshConfig, RunConfig, T5Config
from dss_jax.data.packing import RowShape
from dss_jax.data.vocabularies import (
  MT5_VOCABULARY,
  SENTENCEPIECE_EXTRA_IDS,
  T5_VOCABULARY,
  load_vocabulary,
)
from dss_jax.model.flops import StepFlops, step_flops
from dss_jax.plan.compiled import Compiled, compile_step
from dss_jax.plan.hardware import HARDWARE
from dss_jax.plan.roofline import Roofline, step_roofline
from dss_jax.plan.slices import topology_devices
from dss_jax.progress import say
from dss_jax.train.step import parameter_count

# Sizes of the published vocabularies, so that planning does not download them.
_PUBLISHED_SIZES = {
  None: 32_000 + SENTENCEPIECE_EXTRA_IDS,
  T5_VOCABULARY: 32_000 + SENTENCEPIECE_EXTRA_IDS,
  MT5_VOCABULARY: 250_100,
}


class Planned(NamedTuple):
  """The step compiled for one mesh, and a lower bound on its time, if it fits."""

  compiled: Compiled
  floor: Roofline | None


class Plan(NamedTuple):
  """A run on a TPU slice.

  Attributes:
    weights: the number of weights of the student.
    teacher_weights: of the teacher whose outputs the run trains on; 0 without one.
    planned: the step on the mesh that the run asks for.
    others: the step on other meshes of the slice's devices.
  """

  config: RunConfig
  slice: Slice
  shape: RowShape
  weights: int
  teacher_weights: int
  flops: StepFlops
  planned: Planned
  others: list[Planned]

  @property
  def best(self) -> Planned | None:
    """The mesh with the smallest floor of those that fit; None if none fits."""
    fitting = [mesh for mesh in (self.planned, *self.others) if mesh.floor is not None]
    return min(fitting, key=lambda mesh: (mesh.floor or Roofline(0, 0, 0)).step, default=None)


def plan(
  config: RunConfig,
  tpu_slice: Slice,
  *,
  input_tokens: int,
  target_tokens: int,
  candidates: bool,
  teacher: T5Config | None = None,
) -> Plan:
  """Compiles the run's step for the slice; with `candidates` for its other meshes, too.

  Args:
    teacher: the network whose outputs the run trains on.

  Raises UserError if libtpu is missing, or if the mesh does not fit the slice or the batch size.
  """
  devices = topology_devices(tpu_slice)
  config = dataclasses.replace(
    config, model=dataclasses.replace(config.model, vocab_size=vocabulary_rows(config))
  )
  if teacher is not None:
    teacher = dataclasses.replace(teacher, vocab_size=config.model.vocab_size)
  weights = parameter_count(config.model)
  teacher_weights = 0 if teacher is None else parameter_count(teacher)
  meshes = [config.mesh]
  if candidates:
    meshes += [mesh for mesh in candidate_meshes(config, tpu_slice.devices) if mesh != config.mesh]
  results = []
  for number, mesh in enumerate(meshes, start=1):
    progress = f" ({number} of {len(meshes)})" if len(meshes) > 1 else ""
    say(
      f"compiling {config.student} for {tpu_slice.name}, data {mesh.data} x model {mesh.model}"
      f"{progress}; this takes a minute or more"
    )
    run = dataclasses.replace(config, mesh=mesh)
    run_shape = packed_shape(run, input_tokens, target_tokens)
    compiled = compile_step(run, devices, run_shape, teacher)
    flops = step_flops(run.model, *run_shape, teacher=teacher)
    hardware = HARDWARE[tpu_slice.generation]
    floor = (
      step_roofline(compiled, flops, config.model, weights, hardware, teacher_weights)
      if compiled.fits
      else None
    )
    results.append(Planned(compiled, floor))
  shape = packed_shape(config, input_tokens, target_tokens)
  return Plan(
    config=config,
    slice=tpu_slice,
    shape=shape,
    weights=weights,
    teacher_weights=teacher_weights,
    flops=step_flops(config.model, *shape, teacher=teacher),
    planned=results[0],
    others=results[1:],
  )


def candidate_meshes(config: RunConfig, devices: int) -> list[MeshConfig]:
  """Returns the meshes whose data axis divides the batch size and whose model axis mlp_dim."""
  return [
    dataclasses.replace(config.mesh, data=data, model=devices // data)
    for data in range(devices, 0, -1)
    if devices % data == 0
    and config.batch_size % data == 0
    and config.model.mlp_dim % (devices // data) == 0
  ]


def packed_shape(config: RunConfig, input_tokens: int, target_tokens: int) -> RowShape:
  """Returns one row per example, rounded up to a multiple of data axis times microbatches."""
  multiple = (config.mesh.data or 1) * config.accumulation_steps
  rows = math.ceil(config.batch_size / multiple) * multiple
  return RowShape(rows, input_tokens, target_tokens)


def vocabulary_rows(config: RunConfig) -> int:
  """Returns the rows of the embedding table, rounded up to a multiple of 128 as a run does."""
  if config.model.vocab_size is not None:
    return config.model.vocab_size
  name = config.data.vocabulary
  size = _PUBLISHED_SIZES[name] if name in _PUBLISHED_SIZES else load_vocabulary(str(name)).size
  return math.ceil(size / 128) * 128
