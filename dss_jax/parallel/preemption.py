"""What asks a run to stop, a signal or an event: it saves after the current step and exits."""

import contextlib
import contextvars
import signal
import threading
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dss_jax.errors import Preempted

__all__ = ["Preempted", "StopSignal", "StopVote", "stopped_by"]

_event: contextvars.ContextVar[threading.Event | None] = contextvars.ContextVar(
  "stop_event", default=None
)


@contextlib.contextmanager
def stopped_by(event: threading.Event) -> Iterator[None]:
  """Lets another thread stop the runs of the body, by setting the event: it is as SIGTERM is."""
  token = _event.set(event)
  try:
    yield
  finally:
    _event.reset(token)


class StopSignal:
  """A context that records SIGTERM and SIGINT instead of ending the program.

  A second SIGINT raises KeyboardInterrupt. Only the main thread can handle signals; in another
  thread none is recorded, but for the event of `stopped_by`.
  """

  def __init__(self):
    self._number: int | None = None
    self._event = _event.get()
    self._previous: dict[int, Any] = {}

  @property
  def number(self) -> int | None:
    """The number of the signal; None if there was none."""
    if self._number is None and self._event is not None and self._event.is_set():
      return signal.SIGTERM
    return self._number

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        self._previous[number] = signal.signal(number, self._record)
    return self

  def __exit__(self, *exception):
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _record(self, number, frame):
    if self._number == number == signal.SIGINT:
      raise KeyboardInterrupt
    self._number = number


class StopVote:
  """Lets all processes stop after the same step when any of them receives a signal.

  Each step starts a reduction, the largest signal number over all devices, and reads the result
  of the step before, which is ready by then: no process waits, and none stops alone.
  """

  def __init__(self, mesh: Mesh):
    self._is_single_process = len({device.process_index for device in mesh.devices.flat}) == 1
    self._size = mesh.size
    self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    self._largest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
    self._ballots: dict[int, jax.Array] = {}
    self._pending: jax.Array | None = None

  def cast(self, number: int | None) -> int:
    """Returns the signal to stop for after this step, or 0; call it once per step.

    Args:
      number: the signal that this process received, if any.
    """
    if self._is_single_process:
      return number or 0
    previous = self._pending
    self._pending = self._largest(self._ballot(number or 0))
    return 0 if previous is None else int(previous)

  def _ballot(self, number: int) -> jax.Array:
    if number not in self._ballots:
      self._ballots[number] = jax.make_array_from_callback(
        (self._size,), self._sharding, lambda index: np.full(1, number, np.int32)
      )
    return self._ballots[number]
