"""The compiler in a process of its own, which may die without taking the command with it."""

import concurrent.futures
import multiprocessing
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from dss_jax.errors import UserError

Result = TypeVar("Result")


def run_in_child_process(function: Callable[..., Result], *arguments: Any, **named: Any) -> Result:
  """What the function returns, called in another process; function and values are pickled.

  Raises:
    UserError: the other process died, as of a fault of the compiler or for lack of memory.
    Exception: whatever the function raises.
  """
  spawn = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(1, spawn) as one:
    try:
      return one.submit(function, *arguments, **named).result()
    except BrokenProcessPool:
      raise UserError(
        "dss plan: the TPU's compiler died while it compiled this step, by a fault of its own or "
        "because this machine's memory ran out; try another --mesh, fewer --input-tokens, or "
        "--gin T5Config.scan_layers=True"
      ) from None
