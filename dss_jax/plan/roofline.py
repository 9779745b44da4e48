"""The least time a step can take on a slice, and what a run of such steps costs."""

from typing import NamedTuple

from dss_jax.config.schema import T5Config
from dss_jax.model.flops import StepFlops
from dss_jax.plan.compiled import GIB, Compiled
from dss_jax.plan.hardware import Hardware

# What training reaches of its floor's speed: published figures for T5 and language models on
# TPUs lie between 0.3 and 0.65 of the matrix units' peak.
USUAL_SHARE = 0.4


class Roofline(NamedTuple):
  """Seconds below which a step cannot be, were each part of a device busy without a pause.

  Attributes:
    compute: executed FLOPs at the peak rate.
    memory: the state read and written once, and the weights read by each pass over the layers.
    interconnect: what a device sends in collectives, at the rate of all its links; their
      latency is not counted.
  """

  compute: float
  memory: float
  interconnect: float

  @property
  def step(self) -> float:
    """The largest of the three: at best they overlap."""
    return max(self)


def step_roofline(
  compiled: Compiled, flops: StepFlops, config: T5Config, weights: int, hardware: Hardware
) -> Roofline:
  """The floor of a compiled step.

  Args:
    weights: how many the student has. Those along the model axis share out what a pass reads.
  """
  passes = 4 if config.remat == "full" else 3
  weight_bytes = 2 if config.dtype == "bfloat16" else 4
  read_bytes = passes * weight_bytes * weights / compiled.model
  state_bytes = (compiled.memory["arguments"] + compiled.memory["outputs"]) * GIB
  sent_bytes = sum(total.sent_bytes for total in compiled.collectives.values())
  return Roofline(
    compute=flops.executed / (compiled.data * compiled.model) / hardware.flops,
    memory=(state_bytes + read_bytes) / hardware.memory_bandwidth,
    interconnect=sent_bytes / hardware.link_bandwidth,
  )
