"""Programs compiled before they are needed, by threads of their own."""

import concurrent.futures
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax


class CompiledAhead:
  """Compiled programs by key, worked on in the order given while other things go on.

  A run meets several shapes of batches. Compiled when first met, each would stop the devices
  for as long as it takes; so they stand still for the first alone.
  """

  def __init__(self, programs: Mapping[Any, Callable[[], jax.stages.Lowered]]):
    # Tracing holds Python's lock, compiling does not; half of the processors are left to others.
    threads = max(1, min(len(programs), (os.cpu_count() or 2) // 2))
    self._threads = concurrent.futures.ThreadPoolExecutor(threads, "compiling")
    self._programs = {
      key: self._threads.submit(_compiled, lower) for key, lower in programs.items()
    }

  def get(self, key: Any) -> Callable | None:
    """The program, waited for if it is not ready; None where it was not asked for.

    Raises whatever compiling it raised.
    """
    program = self._programs.get(key)
    return None if program is None else program.result()

  def close(self) -> None:
    """Begins no other program. One that is being worked on cannot be stopped."""
    self._threads.shutdown(wait=False, cancel_futures=True)


def _compiled(lower: Callable[[], jax.stages.Lowered]) -> Callable:
  return lower().compile()
