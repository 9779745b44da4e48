"""Compilation of programs in background threads, before they are needed."""

import concurrent.futures
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax


class CompiledAhead:
  """Compiles programs, by key and in the given order, in background threads.

  A run has several batch shapes. If each were compiled at its first batch, the devices would
  be idle meanwhile; this way they wait for the first shape only.
  """

  def __init__(self, programs: Mapping[Any, Callable[[], jax.stages.Lowered]]):
    # Tracing needs the GIL, compiling does not; half of the processors stay free for training.
    threads = max(1, min(len(programs), (os.cpu_count() or 2) // 2))
    self._threads = concurrent.futures.ThreadPoolExecutor(threads, "compiling")
    self._programs = {
      key: self._threads.submit(_compiled, lower) for key, lower in programs.items()
    }

  def get(self, key: Any) -> Callable | None:
    """Returns the program, waiting until it is compiled; None for an unknown key.

    Raises what compiling it raised.
    """
    program = self._programs.get(key)
    return None if program is None else program.result()

  def close(self) -> None:
    """Cancels the programs that are not being compiled yet."""
    self._threads.shutdown(wait=False, cancel_futures=True)


def _compiled(lower: Callable[[], jax.stages.Lowered]) -> Callable:
  return lower().compile()
