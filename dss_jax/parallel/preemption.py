"""Signals that ask a run to stop: it saves at the next step instead of dying."""

import signal
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dss_jax.errors import Preempted

__all__ = ["Preempted", "StopSignal", "StopVote"]


class StopSignal:
  """While entered, SIGTERM and SIGINT are remembered instead of ending the program.

  A second SIGINT interrupts at once. Only the main thread can listen to signals; elsewhere
  this never asks to stop.
  """

  def __init__(self):
    self.number: int | None = None
    self._previous: dict[int, Any] = {}

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        self._previous[number] = signal.signal(number, self._remember)
    return self

  def __exit__(self, *exception):
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _remember(self, number, frame):
    if self.number == number == signal.SIGINT:
      raise KeyboardInterrupt
    self.number = number


class StopVote:
  """Whether a process was asked to stop, as all processes know it at the same step.

  Each step sends off the largest signal number of all devices after itself and reads that of
  the step before, which is there by then: nobody waits, and nobody stops alone.
  """

  def __init__(self, mesh: Mesh):
    self._is_alone = len({device.process_index for device in mesh.devices.flat}) == 1
    self._size = mesh.size
    self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    self._largest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
    self._ballots: dict[int, jax.Array] = {}
    self._sent: jax.Array | None = None

  def cast(self, number: int | None) -> int:
    """The signal to stop for after this step, 0 for none; called once a step.

    Args:
      number: the signal that this process was sent, if any.
    """
    if self._is_alone:
      return number or 0
    before = self._sent
    self._sent = self._largest(self._ballot(number or 0))
    return 0 if before is None else int(before)

  def _ballot(self, number: int) -> jax.Array:
    if number not in self._ballots:
      self._ballots[number] = jax.make_array_from_callback(
        (self._size,), self._sharding, lambda index: np.full(1, number, np.int32)
      )
    return self._ballots[number]
