"""`dss plan`: the real training step of a run, compiled for a TPU slice that is not here.

The batch is planned as rows of so many input and target tokens, one for each example: a row has
room for the example's two sequences together, its label's and its rationale's.
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

# The pieces of the published vocabularies, which need not be fetched to plan.
_PUBLISHED_SIZES = {
  None: 32_000 + SENTENCEPIECE_EXTRA_IDS,
  T5_VOCABULARY: 32_000 + SENTENCEPIECE_EXTRA_IDS,
  MT5_VOCABULARY: 250_100,
}


class Planned(NamedTuple):
  """A mesh that was compiled for, and the least time that a step on it can take, if it fits."""

  compiled: Compiled
  floor: Roofline | None


class Plan(NamedTuple):
  """What there is to say of a run on a slice.

  Attributes:
    planned: the mesh that the run asks for.
    others: the further meshes of the slice's devices that were compiled for.
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
    """Of the meshes that fit, the one with the least floor; None where none fits."""
    fitting = [one for one in (self.planned, *self.others) if one.floor is not None]
    return min(fitting, key=lambda one: (one.floor or Roofline(0, 0, 0)).step, default=None)


def plan(
  config: RunConfig, tpu_slice: Slice, *, input_tokens: int, target_tokens: int, candidates: bool
) -> Plan:
  """Compiles the run's step for the slice; with `candidates` for its other meshes, too.

  Raises UserError where libtpu is missing, and where the mesh is none for slice and batch.
  """
  devices = topology_devices(tpu_slice)
  config = dataclasses.replace(
    config, model=dataclasses.replace(config.model, vocab_size=vocabulary_rows(config))
  )
  weights = parameter_count(config.model)
  meshes = [config.mesh]
  if candidates:
    meshes += [mesh for mesh in candidate_meshes(config, tpu_slice.devices) if mesh != config.mesh]
  done = []
  for number, mesh in enumerate(meshes, start=1):
    of_many = f" ({number} of {len(meshes)})" if len(meshes) > 1 else ""
    say(
      f"compiling {config.student} for {tpu_slice.name}, data {mesh.data} x model {mesh.model}"
      f"{of_many}; this takes a minute or more"
    )
    run = dataclasses.replace(config, mesh=mesh)
    compiled = compile_step(run, devices, packed_shape(run, input_tokens, target_tokens))
    flops = _flops(run, input_tokens, target_tokens)
    hardware = HARDWARE[tpu_slice.generation]
    floor = (
      step_roofline(compiled, flops, config.model, weights, hardware) if compiled.fits else None
    )
    done.append(Planned(compiled, floor))
  return Plan(
    config=config,
    slice=tpu_slice,
    shape=packed_shape(config, input_tokens, target_tokens),
    weights=weights,
    flops=_flops(config, input_tokens, target_tokens),
    planned=done[0],
    others=done[1:],
  )


def candidate_meshes(config: RunConfig, devices: int) -> list[MeshConfig]:
  """The meshes of all devices whose data axis divides the batch and whose model axis the width."""
  return [
    dataclasses.replace(config.mesh, data=data, model=devices // data)
    for data in range(devices, 0, -1)
    if devices % data == 0
    and config.batch_size % data == 0
    and config.model.mlp_dim % (devices // data) == 0
  ]


def packed_shape(config: RunConfig, input_tokens: int, target_tokens: int) -> RowShape:
  """A row for each example, and as many more as the data axis and the microbatches ask for."""
  multiple = (config.mesh.data or 1) * config.accumulation_steps
  rows = math.ceil(config.batch_size / multiple) * multiple
  return RowShape(rows, input_tokens, target_tokens)


def vocabulary_rows(config: RunConfig) -> int:
  """Rows of the embedding table, as a run would settle them (a multiple of 128)."""
  if config.model.vocab_size is not None:
    return config.model.vocab_size
  name = config.data.vocabulary
  size = _PUBLISHED_SIZES[name] if name in _PUBLISHED_SIZES else load_vocabulary(str(name)).size
  return math.ceil(size / 128) * 128


def _flops(config: RunConfig, input_tokens: int, target_tokens: int) -> StepFlops:
  return step_flops(config.model, *packed_shape(config, input_tokens, target_tokens))
