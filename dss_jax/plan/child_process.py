"""Runs the compiler in a child process, so that a crash does not end the command."""

import concurrent.futures
import multiprocessing
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from dss_jax.errors import UserError

Result = TypeVar("Result")


def run_in_child_process(function: Callable[..., Result], *arguments: Any, **named: Any) -> Result:
  """Calls a function in a child process and returns its result; all values are pickled.

  Raises:
    UserError: the child crashed, by a bug of the compiler or for lack of memory.
    Exception: whatever the function raises.
  """
  spawn = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(1, spawn) as pool:
    try:
      return pool.submit(function, *arguments, **named).result()
    except BrokenProcessPool:
      raise UserError(
        "dss plan: the TPU's compiler crashed while it compiled this step, by a bug of its own or "
        "because this machine ran out of memory; try another --mesh, fewer --input-tokens, or "
        "--gin T5Config.scan_layers=True"
      ) from None
