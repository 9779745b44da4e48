"""The options of a run in several processes, and how such a process ends."""

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from dss_jax.cli.errors import report_error
from dss_jax.cli.options import option, options
from dss_jax.config.schema import DistributedConfig
from dss_jax.errors import Preempted, TrainingDiverged, UserError

process_options = options(
  option("--distributed", "--multiprocess_gpu", "distributed", is_flag=True,
         help="Run as one of several processes that JAX detects: on a TPU pod, or under Slurm, "
         "Open MPI or Kubernetes."),
  option("--coordinator", "--coordinator_address", "coordinator", metavar="HOST:PORT",
         envvar="JAX_COORDINATOR_ADDRESS", show_envvar=True,
         help="Run as one of several processes that connect there: a free port of process 0's "
         "machine."),
  option("--num-processes", "--process_count", "num_processes",
         field="DistributedConfig.num_processes", uses_gin=False,
         envvar="JAX_NUM_PROCESSES", show_envvar=True, help="The number of processes."),
  option("--process-id", "--process_index", "process_id", field="DistributedConfig.process_id",
         uses_gin=False, envvar="JAX_PROCESS_ID", show_envvar=True,
         help="The number of this one, from 0."),
  option("--start-timeout-seconds", field="DistributedConfig.start_timeout_seconds",
         use_default=True, help="How long the processes wait for each other."),
  option("--heartbeat-timeout-seconds", field="DistributedConfig.heartbeat_timeout_seconds",
         use_default=True, help="A process that is silent for longer counts as lost."),
)  # fmt: skip


@contextlib.contextmanager
def in_processes(flags: Mapping[str, Any]) -> Iterator[None]:
  """Runs the block as one of several processes, if the flags, the environment or a pod say so.

  If the block fails, the program ends here: an ordinary exit would wait for processes that may
  never arrive.
  """
  config = _distributed_config(flags)
  if config is None:
    yield
    return
  from dss_jax.parallel import processes

  try:
    signal.signal(signal.SIGTERM, _terminate)
    processes.initialize(config)
    yield
    processes.shutdown()
  except BaseException as error:
    _exit(error)


def _exit(error: BaseException) -> NoReturn:
  """Prints the reason, reports it to the other processes, and ends this one."""
  from dss_jax.parallel import processes

  if processes.is_lost_peer(error):
    processes.wait_for_exit_notice()
  if isinstance(error, SystemExit):
    # A signal before the first step; the loop handles later ones.
    sentence = (
      "stopped by SIGTERM while it took no steps; the same command goes on from the newest "
      "checkpoint, if there is one"
    )
    print(f"dss: {sentence}", file=sys.stderr)
    processes.exit_process(int(error.code or 0), sentence, all_exit=False)
  code = report_error(error)
  if code is None:
    traceback.print_exception(error)
    code = 1
  all_exit = isinstance(error, (Preempted, TrainingDiverged))
  processes.exit_process(code, str(error) or type(error).__name__, all_exit=all_exit)


def _terminate(number, frame) -> NoReturn:
  raise SystemExit(128 + number)


def _distributed_config(flags: Mapping[str, Any]) -> DistributedConfig | None:
  """Returns how this process joins the others; None for a run of one process.

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
  return DistributedConfig(
    **given,
    start_timeout_seconds=flags["start_timeout_seconds"],
    heartbeat_timeout_seconds=flags["heartbeat_timeout_seconds"],
  )


def _check(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
  host, _, port = (coordinator or "").rpartition(":")
  is_address = bool(host) and port.isdecimal() and 0 < int(port) < 65536
  if coordinator is not None and not is_address:
    raise UserError(
      f"--coordinator {coordinator}: is not HOST:PORT; give process 0's machine and a free port of "
      "it, such as 10.0.0.1:8476"
    )
  if process_id is not None and num_processes is not None and process_id >= num_processes:
    raise UserError(
      f"--process-id {process_id}: --num-processes is {num_processes}, so it must be from 0 to "
      f"{num_processes - 1}"
    )


def _is_on_a_pod() -> bool:
  """Returns whether Cloud TPU's variables say that this machine is one of several of a slice."""
  is_single_host = os.environ.get("TPU_PROCESS_BOUNDS") == "1,1,1"
  uses_another_device = os.environ.get("JAX_PLATFORMS", "tpu") != "tpu"
  has_several_hosts = "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
  return has_several_hosts and not is_single_host and not uses_another_device


def _flag(name: str) -> str:
  return f"--{name.replace('_', '-')}"
