"""A lower bound on the time of a step on a TPU slice."""

from typing import NamedTuple

from dss_jax.config.schema import T5Config
from dss_jax.model.flops import StepFlops
from dss_jax.plan.compiled import GIB, Compiled
from dss_jax.plan.hardware import Hardware


class Roofline(NamedTuple):
  """The seconds that each part of a device needs for a step at its peak rate.

  Attributes:
    compute: for the executed FLOPs.
    memory: for reading and writing the state once, and reading the weights in each pass.
    interconnect: for the bytes that a device sends in collectives, over all its links; without
      latency.
  """

  compute: float
  memory: float
  interconnect: float

  @property
  def step(self) -> float:
    """The largest of the three, as if they overlapped perfectly."""
    return max(self)


def step_roofline(
  compiled: Compiled,
  flops: StepFlops,
  config: T5Config,
  weights: int,
  hardware: Hardware,
  teacher_weights: int = 0,
) -> Roofline:
  """Computes the floor of a compiled step.

  Args:
    weights: number of weights of the student; a pass reads 1/model of them on each device.
    teacher_weights: those of a teacher, which one pass reads.
  """
  passes = 4 if config.remat == "full" else 3
  weight_bytes = 2 if config.dtype == "bfloat16" else 4
  read_bytes = weight_bytes * (passes * weights + teacher_weights) / compiled.model
  state_bytes = (compiled.memory["arguments"] + compiled.memory["outputs"]) * GIB
  sent_bytes = sum(total.sent_bytes for total in compiled.collectives.values())
  return Roofline(
    compute=flops.executed / (compiled.data * compiled.model) / hardware.flops,
    memory=(state_bytes + read_bytes) / hardware.memory_bandwidth,
    interconnect=sent_bytes / hardware.link_bandwidth,
  )
