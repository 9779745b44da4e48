"""Signals that ask a run to stop: it saves at the next step instead of dying."""

import signal
import threading
from typing import Any


class Preempted(Exception):
  """The run was asked to stop; its state at `step` is saved."""

  def __init__(self, step: int, signal_number: int):
    super().__init__(
      f"stopped by {signal.Signals(signal_number).name} after step {step}, which is saved; "
      "the same command goes on from there"
    )
    self.exit_code = 128 + signal_number


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
