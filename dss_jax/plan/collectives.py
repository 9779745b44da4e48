"""Counts the collectives of a compiled program from its HLO text.

The text is XLA's (`compiled.as_text()`). An operation in a loop body counts once per iteration, if
the text gives the trip count: as known_trip_count, or as the constant that the loop's condition
compares its counter with. Otherwise the loop counts as one iteration.
"""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

KINDS = (
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
  "ragged-all-to-all",
  "collective-broadcast",
)

_BITS = {"pred": 8, "bf16": 16, "token": 0}
_SHAPE = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_CALLED = re.compile(
  r"(?:calls|to_apply|body|condition|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)
_TRIPS = re.compile(r'known_trip_count"?\s*[:=]\s*\{\s*"?n"?\s*[:=]\s*"?(\d+)')
_CONSTANT = re.compile(r"constant\((\d+)\)")


class Collective(NamedTuple):
  """One collective operation.

  Attributes:
    runs: executions per run of the program.
    result_bytes: size of its result on one device, per execution.
    devices: number of devices in a replica group.
  """

  kind: str
  runs: int
  result_bytes: int
  devices: int

  @property
  def sent_bytes(self) -> float:
    """Bytes that a device sends in all executions, by a ring algorithm (Chan et al. 2007)."""
    others = self.devices - 1
    per_result = {
      "all-reduce": 2 * others / self.devices,
      "all-gather": others / self.devices,
      "reduce-scatter": others,
      "all-to-all": others / self.devices,
      "ragged-all-to-all": others / self.devices,
    }
    return self.runs * self.result_bytes * per_result.get(self.kind, 1.0)


class Total(NamedTuple):
  """All collectives of a kind: executions per step, and bytes per device received and sent."""

  runs: int
  result_bytes: int
  sent_bytes: float


def totals(text: str) -> dict[str, Total]:
  """Sums the collectives of a program by kind; kinds that do not occur are left out."""
  found = collectives(text)
  return {
    kind: Total(
      sum(one.runs for one in found if one.kind == kind),
      sum(one.runs * one.result_bytes for one in found if one.kind == kind),
      sum(one.sent_bytes for one in found if one.kind == kind),
    )
    for kind in KINDS
    if any(one.kind == kind for one in found)
  }


def collectives(text: str) -> list[Collective]:
  """Returns the collectives that the entry computation of a program executes.

  Of an asynchronous pair (all-gather-start, all-gather-done) the start counts. The TPU compiler
  writes a reduce-scatter as a fusion named all-reduce-scatter, of an all-reduce and a slice, and
  repeats a collective that overlaps with computation under one channel: each counts once. Groups
  of one device communicate nothing and are left out.
  """
  computations, entry = _computations(text)
  devices = _device_count(text)
  found: dict[object, Collective] = {}
  for name, times in _runs(computations, entry).items():
    for instruction in computations[name]:
      kind = instruction.operation.removesuffix("-start")
      if kind not in KINDS:
        continue
      group = _group_size(instruction.rest, devices) if kind != "collective-permute" else 2
      result_bytes = _result_bytes(instruction)
      if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
        kind, result_bytes = "reduce-scatter", result_bytes // group
      if group > 1 and times:
        channel = re.search(r"channel_id=(\d+)", instruction.rest)
        key = (kind, channel.group(1)) if channel else len(found)
        collective = Collective(kind, times, result_bytes, group)
        found[key] = max(collective, found.get(key, collective))
  return list(found.values())


class _Instruction(NamedTuple):
  shape: str
  operation: str
  rest: str


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
  """Returns the instructions of each computation, and the name of the entry computation."""
  computations: dict[str, list[_Instruction]] = {}
  entry = name = ""
  for line in text.splitlines():
    if head := _COMPUTATION.match(line):
      name = head.group(2)
      computations[name] = []
      entry = name if head.group(1) else entry
    elif name and (found := _INSTRUCTION.match(line)):
      computations[name].append(_Instruction(*found.groups()[1:]))
  return computations, entry


def _runs(computations: Mapping[str, list[_Instruction]], entry: str) -> dict[str, int]:
  """Returns how often each computation runs per run of the entry computation."""
  runs = dict.fromkeys(computations, 0)

  def visit(name: str, times: int) -> None:
    runs[name] += times
    for instruction in computations[name]:
      if instruction.operation in ("async-update", "async-done"):
        continue  # counted at async-start
      trips = _trip_count(instruction, computations) if instruction.operation == "while" else 1
      for called in _CALLED.findall(instruction.rest):
        for callee in re.findall(r"[\w.\-]+", called):
          if callee in computations:
            visit(callee, times * trips)

  if entry:
    visit(entry, 1)
  return runs


def _trip_count(loop: _Instruction, computations: Mapping[str, list[_Instruction]]) -> int:
  """Returns the trip count of a loop; 1 if the text does not give it."""
  if known := _TRIPS.search(loop.rest):
    return int(known.group(1))
  condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)
  if condition is None:
    return 1
  constants = [
    int(found.group(1))
    for instruction in computations.get(condition.group(1), ())
    if instruction.operation == "constant"
    and instruction.shape.startswith("s32[]")
    and (found := _CONSTANT.search(f"constant({instruction.rest}"))
  ]
  return constants[0] if len(constants) == 1 else 1


def _result_bytes(instruction: _Instruction) -> int:
  """Returns the size of the result; a start's also contains its operands and some counters."""
  sizes = [
    math.prod(map(int, filter(None, dimensions.split(",")))) * _bits(dtype) // 8
    for dtype, dimensions in _SHAPE.findall(instruction.shape)
  ]
  if instruction.operation.endswith("-start") and instruction.operation != "all-reduce-start":
    return max(sizes, default=0)
  return sum(sizes)


def _bits(dtype: str) -> int:
  if dtype in _BITS:
    return _BITS[dtype]
  size = re.match(r"[a-z]+(\d+)", dtype)
  return int(size.group(1)) if size else 0


def _group_size(rest: str, devices: int) -> int:
  """Returns the devices per replica group, in any of three notations; all if none is given."""
  if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", rest):
    axes = dict(re.findall(r"'([^']+)'=(\d+)", mesh.group(1)))
    return math.prod(int(axes[name]) for name in re.findall(r"'([^']+)'", mesh.group(2)))
  if grid := re.search(r"replica_groups=\[\d+,(\d+)\]<=", rest):
    return int(grid.group(1))
  if listed := re.search(r"replica_groups=\{\{([^}]*)\}", rest):
    return len(listed.group(1).split(","))
  return devices


def _device_count(text: str) -> int:
  counts = re.search(r"num_partitions=(\d+)", text.partition("\n")[0])
  return int(counts.group(1)) if counts else 1
