"""`dss plan`: the real training step of a run, compiled for a TPU slice.

The batch is planned as one row per example, with the given numbers of input and target tokens: a
row has room for both sequences of the example, its label's and its rationale's.
"""

import dataclasses
import math
from typing import NamedTuple

from dss_jax.config.mesh_presets import Slice
from dss_jax.config.schema import MeshConfig, RunConfig
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
    planned: the step on the mesh that the run asks for.
    others: the step on other meshes of the slice's devices.
  """

  config: RunConfig
  slice: Slice
  shape: RowShape
  weights: int
  flops: StepFlops
  planned: Planned
  others: list[Planned]

  @property
  def best(self) -> Planned | None:
    """The mesh with the smallest floor of those that fit; None if none fits."""
    fitting = [mesh for mesh in (self.planned, *self.others) if mesh.floor is not None]
    return min(fitting, key=lambda mesh: (mesh.floor or Roofline(0, 0, 0)).step, default=None)


def plan(
  config: RunConfig, tpu_slice: Slice, *, input_tokens: int, target_tokens: int, candidates: bool
) -> Plan:
  """Compiles the run's step for the slice; with `candidates` for its other meshes, too.

  Raises UserError if libtpu is missing, or if the mesh does not fit the slice or the batch size.
  """
  devices = topology_devices(tpu_slice)
  config = dataclasses.replace(
    config, model=dataclasses.replace(config.model, vocab_size=vocabulary_rows(config))
  )
  weights = parameter_count(config.model)
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
    compiled = compile_step(run, devices, packed_shape(run, input_tokens, target_tokens))
    flops = _flops(run, input_tokens, target_tokens)
    hardware = HARDWARE[tpu_slice.generation]
    floor = (
      step_roofline(compiled, flops, config.model, weights, hardware) if compiled.fits else None
    )
    results.append(Planned(compiled, floor))
  return Plan(
    config=config,
    slice=tpu_slice,
    shape=packed_shape(config, input_tokens, target_tokens),
    weights=weights,
    flops=_flops(config, input_tokens, target_tokens),
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


def _flops(config: RunConfig, input_tokens: int, target_tokens: int) -> StepFlops:
  return step_flops(config.model, *packed_shape(config, input_tokens, target_tokens))
