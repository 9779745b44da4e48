"""Published peak rates and memory of TPUs by generation, with their sources."""

from typing import NamedTuple

# The fraction of the floor's speed that training reaches: published figures for T5 and language
# models on TPUs are 0.3 to 0.65 of the matrix units' peak.
USUAL_FRACTION = 0.4


class Hardware(NamedTuple):
  """A device as a program sees it: a core of v2 and v3, a chip of the others.

  Attributes:
    flops: bfloat16 operations per second.
    memory_bandwidth: bytes per second between the device and its memory.
    link_bandwidth: bytes per second sent over all links together.
    limit_gib: GiB of memory that the compiler allows a program.
  """

  flops: float
  memory_bandwidth: float
  link_bandwidth: float
  limit_gib: float


# v2 and v3: Jouppi et al. 2020, "A Domain-Specific Supercomputer for Training Deep Neural
# Networks" (CACM 63:7): of a chip with two cores 46 and 123 TFLOP/s, 700 and 900 GB/s, four
# links of 496 and 656 Gbit/s. v4: Jouppi et al. 2023, "TPU v4" (ISCA): 275 TFLOP/s, 1200 GB/s,
# six links of 50 GB/s. v5e, v5p, v6e: Cloud TPU's documentation (cloud.google.com/tpu/docs, the
# page of each): 197, 459 and 918 TFLOP/s; 819, 2765 and 1640 GB/s; 1600, 4800 and 3200 Gbit/s of
# interconnect a chip. The limits are those that libtpu 0.0.42 names when a program exceeds them.
HARDWARE = {
  "v2": Hardware(46e12 / 2, 700e9 / 2, 4 * 496e9 / 8 / 2, 7.48),
  "v3": Hardware(123e12 / 2, 900e9 / 2, 4 * 656e9 / 8 / 2, 15.48),
  "v4": Hardware(275e12, 1200e9, 6 * 50e9, 30.75),
  "v5e": Hardware(197e12, 819e9, 1600e9 / 8, 15.75),
  "v5p": Hardware(459e12, 2765e9, 4800e9 / 8, 95.73),
  "v6e": Hardware(918e12, 1640e9, 3200e9 / 8, 31.24),
}
