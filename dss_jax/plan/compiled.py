"""Compiles a training step for a topology, and reads its memory and collectives."""

import dataclasses
import re
import time
from collections.abc import Sequence
from typing import Any

import jax

from dss_jax.config.schema import RunConfig, T5Config
from dss_jax.data.packing import RowShape
from dss_jax.parallel.mesh import make_mesh
from dss_jax.plan.collectives import Total, totals
from dss_jax.train.optimizer import make_optimizer
from dss_jax.train.step import Trainer
from dss_jax.train.teacher_network import TeacherNetwork

GIB = 2**30


@dataclasses.dataclass
class Compiled:
  """The compiler's figures for a step on one device.

  Attributes:
    data, model: devices along the axes of the mesh.
    weights_over_data: whether weights are sharded over both axes.
    memory: GiB by kind: arguments, outputs, temporaries, aliased (outputs that reuse the memory
      of arguments) and peak, the most in use at once; empty if the step does not fit.
    needed_gib: how much a step that does not fit would need, if the compiler says.
    collectives: by kind; empty if the step does not fit.
  """

  data: int
  model: int
  weights_over_data: bool
  memory: dict[str, float] = dataclasses.field(default_factory=dict)
  needed_gib: float | None = None
  collectives: dict[str, Total] = dataclasses.field(default_factory=dict)
  seconds: float = 0.0

  @property
  def fits(self) -> bool:
    return bool(self.memory)


def compile_step(
  config: RunConfig,
  devices: Sequence[Any],
  shape: RowShape,
  teacher: T5Config | None = None,
) -> Compiled:
  """Compiles the training step of a run for batches of the shape.

  Args:
    teacher: the network whose outputs the run trains on.

  Raises UserError if the mesh does not fit the devices or the batch size.
  """
  mesh = make_mesh(config.mesh, config.batch_size, devices)
  network = None
  if teacher is not None:
    network = TeacherNetwork(teacher, mesh, config.signals.weights)
  trainer = Trainer(config, make_optimizer(config.optimizer, config.train_steps), mesh, network)
  over_data = any(
    "data" in jax.tree.leaves(tuple(sharding.spec))
    for sharding in jax.tree.leaves(trainer.state_shardings.params)
  )
  lowered = trainer.lower(shape)
  start = time.monotonic()
  compiled = Compiled(
    data=mesh.shape["data"], model=mesh.shape["model"], weights_over_data=over_data
  )
  try:
    program = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if not is_out_of_memory(str(error)):
      raise
    compiled.needed_gib = needed_gib(str(error))
  else:
    compiled.memory = memory_by_kind(program)
    compiled.collectives = totals(program.as_text() or "")
  compiled.seconds = time.monotonic() - start
  return compiled


def memory_by_kind(program: jax.stages.Compiled) -> dict[str, float]:
  """Returns the GiB that a compiled program needs on a device, by kind."""
  analysis: Any = program.memory_analysis()
  sizes = {
    "arguments": analysis.argument_size_in_bytes,
    "outputs": analysis.output_size_in_bytes,
    "temporaries": analysis.temp_size_in_bytes,
    "aliased": analysis.alias_size_in_bytes,
    "peak": analysis.peak_memory_in_bytes,
  }
  return {kind: size / GIB for kind, size in sizes.items()}


def is_out_of_memory(message: str) -> bool:
  """Returns whether the compiler rejected a program for lack of device memory."""
  return "RESOURCE_EXHAUSTED" in message or "Ran out of memory" in message


def needed_gib(message: str) -> float | None:
  """Returns the GiB that a rejected program would need, from `Used 17.5G of 15.48G hbm`."""
  found = re.search(r"[Uu]sed (\d+(?:\.\d+)?)([MGT]) of \d+(?:\.\d+)?[MGT] hbm", message)
  if found is None:
    return None
  return float(found.group(1)) * {"M": 2**-10, "G": 1.0, "T": 2**10}[found.group(2)]
