"""The options of a run in several processes, and its end as one of them."""

import contextlib
import os
import signal
import traceback
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import click

from dss_jax.cli.errors import report_error
from dss_jax.errors import Preempted, TrainingDiverged, UserError

if TYPE_CHECKING:
  from dss_jax.parallel.processes import DistributedConfig

_OPTIONS = (
  click.option("--distributed", "--multiprocess_gpu", "distributed", is_flag=True, help="Run as "
               "one of several processes, which find each other: on a TPU pod, or under Slurm, "
               "Open MPI or Kubernetes."),
  click.option("--coordinator", "--coordinator_address", "coordinator", metavar="HOST:PORT",
               envvar="JAX_COORDINATOR_ADDRESS", show_envvar=True, help="Run as one of several "
               "processes that meet there: a free port of process 0's machine."),
  click.option("--num-processes", "--process_count", "num_processes", type=click.IntRange(min=1),
               envvar="JAX_NUM_PROCESSES", show_envvar=True, help="How many they are."),
  click.option("--process-id", "--process_index", "process_id", type=click.IntRange(min=0),
               envvar="JAX_PROCESS_ID", show_envvar=True, help="Which of them this is, from 0."),
  click.option("--start-timeout-seconds", type=click.IntRange(min=1), default=300,
               show_default=True, help="How long the processes wait for each other."),
  click.option("--heartbeat-timeout-seconds", type=click.IntRange(min=5), default=60,
               show_default=True, help="A process that is silent for so long is gone."),
)  # fmt: skip


def process_options(function):
  """Adds the options; the command hands them to `in_processes`."""
  for option in reversed(_OPTIONS):
    function = option(function)
  return function


@contextlib.contextmanager
def in_processes(flags: Mapping[str, Any]) -> Iterator[None]:
  """Runs the block as one of several processes, where the flags, the environment or a pod say so.

  The program then ends in here if the block fails, since leaving it as usual would wait for
  processes that may never come.
  """
  place = _place(flags)
  if place is None:
    yield
    return
  from dss_jax.parallel import processes

  try:
    signal.signal(signal.SIGTERM, _terminate)
    processes.initialize(place)
    yield
    processes.shutdown()
  except BaseException as error:
    _leave(error)


def _leave(error: BaseException) -> NoReturn:
  """Says why, tells the other processes, and ends this one."""
  from dss_jax.parallel import processes

  if processes.is_loss(error):
    processes.await_news()
  if isinstance(error, SystemExit):
    # A signal before the first step; the loop has its own way with those.
    sentence = (
      "stopped by SIGTERM while it took no steps; the same command goes on from the newest "
      "checkpoint, if there is one"
    )
    click.echo(f"dss: {sentence}", err=True)
    processes.exit_process(int(error.code or 0), sentence, alike=False)
  code = report_error(error)
  if code is None:
    traceback.print_exception(error)
    code = 1
  alike = isinstance(error, (Preempted, TrainingDiverged))
  processes.exit_process(code, str(error) or type(error).__name__, alike=alike)


def _terminate(number, frame) -> NoReturn:
  raise SystemExit(128 + number)


def _place(flags: Mapping[str, Any]) -> "DistributedConfig | None":
  """Where this process meets the others; None for a run of one process.

  Raises UserError for options that do not fit together.
  """
  names = ("coordinator", "num_processes", "process_id")
  given = {name: flags[name] for name in names if flags[name] is not None}
  missing = [name for name in names if name not in given]
  if given and missing and not flags["distributed"]:
    raise UserError(
      f"{_flag(next(iter(given)))} is given without {' and '.join(map(_flag, missing))}; "
      "a process needs all three, or --distributed to find what is missing"
    )
  if not (given or flags["distributed"] or _is_on_a_pod()):
    return None
  _check(**{name: flags[name] for name in names})
  from dss_jax.parallel.processes import DistributedConfig

  return DistributedConfig(
    flags["coordinator"],
    flags["num_processes"],
    flags["process_id"],
    start_timeout_seconds=flags["start_timeout_seconds"],
    heartbeat_timeout_seconds=flags["heartbeat_timeout_seconds"],
  )


def _check(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
  host, _, port = (coordinator or "").rpartition(":")
  is_address = bool(host) and port.isdecimal() and 0 < int(port) < 65536
  if coordinator is not None and not is_address:
    raise UserError(
      f"--coordinator {coordinator}: is no HOST:PORT; give process 0's machine and a free port of "
      "it, such as 10.0.0.1:8476"
    )
  if process_id is not None and num_processes is not None and process_id >= num_processes:
    raise UserError(
      f"--process-id {process_id}: --num-processes is {num_processes}, so it must be from 0 to "
      f"{num_processes - 1}"
    )


def _is_on_a_pod() -> bool:
  """Whether this machine is one of several of a TPU slice, as Cloud TPU tells its machines."""
  is_told_to_be_alone = os.environ.get("TPU_PROCESS_BOUNDS") == "1,1,1"
  uses_another_device = os.environ.get("JAX_PLATFORMS", "tpu") != "tpu"
  several = "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
  return several and not is_told_to_be_alone and not uses_another_device


def _flag(name: str) -> str:
  return f"--{name.replace('_', '-')}"
