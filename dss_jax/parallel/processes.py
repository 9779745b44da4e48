"""The processes of one run: start, agreement, broadcast and exit.

They communicate through the key-value store of JAX's coordination service, which runs in process
0. All processes must call these functions in the same order; in a run of one process they do
nothing.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

from dss_jax import progress
from dss_jax.config.schema import DistributedConfig
from dss_jax.errors import UserError
from dss_jax.parallel.abort import CapturedOutput, Rendezvous

T = TypeVar("T")

# In effect no timeout: JAX ends the wait if another process is lost.
_WEEK_MILLISECONDS = 7 * 24 * 3600 * 1000
_POLL_SECONDS = 1.0
_SHUTDOWN_SECONDS = 30
_EXIT_NOTICES = "dss/exited/"


class _Group:
  """The connected processes of a run, and this one's index among them."""

  def __init__(
    self, client: Any, count: int, index: int, config: DistributedConfig, output: CapturedOutput
  ):
    self.client = client
    self.count = count
    self.index = index
    self.config = config
    self.output = output
    self.calls = 0
    self.is_done = threading.Event()
    self.watcher = threading.Thread(target=_watch, args=(self,), name="processes", daemon=True)

  def key(self, topic: str) -> str:
    """Returns a key that no earlier call has used."""
    self.calls += 1
    return f"dss/{self.calls}/{topic}/"


_group: _Group | None = None


def count() -> int:
  """Returns the number of processes of the run."""
  return 1 if _group is None else _group.count


def is_first() -> bool:
  """Returns whether this is process 0, which writes, reports and decides."""
  return _group is None or _group.index == 0


def initialize(config: DistributedConfig) -> None:
  """Connects to the other processes and starts JAX's backend; process 0 alone shows progress.

  If not all of them connect in time, the program ends with a sentence and exit code 2.

  Raises:
    UserError: the port is taken, no coordinator is given or detected, or the processes were
      started with different counts or devices.
  """
  global _group
  assert _group is None
  if config.process_id == 0 and config.coordinator is not None:
    _check_port(config.coordinator)
  import jax
  from jax._src import distributed

  output = CapturedOutput()
  address = (config.coordinator, config.num_processes, config.process_id)
  output.rendezvous = Rendezvous(*address, config.start_timeout_seconds)
  if jax.config.jax_cpu_collectives_implementation is None:  # type: ignore[attr-defined,unused-ignore]
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
  # That service would consume SIGTERM long before there is a step to stop after.
  jax.config.update("jax_enable_preemption_service", False)
  is_explicit = None not in address
  try:
    jax.distributed.initialize(
      *address,
      # With an explicit address JAX must not query a pod's or a cluster's services.
      cluster_detection_method="deactivate" if is_explicit else None,
      initialization_timeout=config.start_timeout_seconds,
      heartbeat_timeout_seconds=config.heartbeat_timeout_seconds,
      shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
    )
  except (ValueError, RuntimeError, OSError) as error:
    if is_explicit:
      raise UserError(f"--coordinator {config.coordinator}: {_first_line(error)}") from error
    raise UserError(
      f"--distributed: found no TPU pod, Slurm, Open MPI or Kubernetes job to join "
      f"({_first_line(error)}); give --coordinator HOST:PORT, --num-processes and --process-id"
    ) from error
  state = distributed.global_state
  output.rendezvous = Rendezvous(
    state.coordinator_address, state.num_processes, state.process_id, config.start_timeout_seconds
  )
  _group = _Group(state.client, state.num_processes, state.process_id, config, output)
  if _group.index > 0:
    progress.be_silent()
  _group.watcher.start()
  agree(
    "--num-processes",
    {"--num-processes": str(state.num_processes)},
    "give every process the same number",
  )
  if jax.process_count() != _group.count:
    raise UserError(
      f"--num-processes {_group.count}: the {jax.default_backend().upper()} devices make a group "
      f"of {jax.process_count()} processes; set JAX_PLATFORMS to the devices that all have"
    )
  agree(
    "the processes have different devices",
    {"the number of devices": f"{jax.local_device_count()} ({jax.default_backend()})"},
    "give every process as many of one kind",
  )


def agree(what: str, values: Mapping[str, str], mend: str) -> None:
  """Raises UserError if this process's values differ from process 0's; names three of them."""
  if _group is None:
    return
  key = _group.key("agree")
  if is_first():
    _group.client.key_value_set(key, json.dumps(dict(values)))
    # No process goes on before all have agreed.
    wait_for_all("agreed")
    return
  theirs = json.loads(_group.client.blocking_key_value_get(key, _WEEK_MILLISECONDS))
  differing = [
    f"{name} is {values.get(name, 'nothing')} in process {_group.index} and "
    f"{theirs.get(name, 'nothing')} in process 0"
    for name in {**theirs, **values}
    if values.get(name) != theirs.get(name)
  ]
  if differing:
    more = f" (and {len(differing) - 3} more)" if len(differing) > 3 else ""
    raise UserError(f"{what}: {'; '.join(differing[:3])}{more}; {mend}")
  wait_for_all("agreed")


def broadcast(topic: str, make: Callable[[], T]) -> T:
  """Calls `make` in process 0 and returns its result, as JSON, in every process."""
  if _group is None:
    return make()
  key = _group.key(topic)
  if is_first():
    made = make()
    _group.client.key_value_set(key, json.dumps(made))
    return made
  return json.loads(_group.client.blocking_key_value_get(key, _WEEK_MILLISECONDS))


def first_process_first(topic: str, make: Callable[[], T]) -> T:
  """Calls `make` in process 0, then in the others, which find its files on disk."""
  if _group is None:
    return make()
  key = _group.key(topic)
  if is_first():
    made = make()
    _group.client.key_value_set(key, "done")
    return made
  _group.client.blocking_key_value_get(key, _WEEK_MILLISECONDS)
  return make()


def wait_for_all(topic: str) -> None:
  """Returns once every process has called it."""
  if _group is not None:
    _group.client.wait_at_barrier(_group.key(topic), _WEEK_MILLISECONDS)


def shutdown() -> None:
  """Disconnects this process once all are done."""
  if _group is None:
    return
  import jax

  wait_for_all("done")
  _group.output.exit_code = 0
  _group.is_done.set()
  # The watcher must not query a store that is shut down: that would crash.
  _group.watcher.join()
  _group.output.forward()
  # A process that has already disconnected was done, too.
  with contextlib.suppress(Exception):
    jax.distributed.shutdown()


def exit_process(code: int, sentence: str, *, all_exit: bool) -> NoReturn:
  """Ends this process, without waiting for a device or a thread.

  Args:
    sentence: the reason, which the other processes print as they end, too.
    all_exit: whether all processes exit now for the same reason, and need no notice.
  """
  if _group is not None and all_exit:
    wait_for_all("exit")
    _group.output.exit_code = code
  elif _group is not None:
    _group.output.exit_code = code
    with contextlib.suppress(Exception):
      notice = json.dumps({"code": code, "sentence": sentence})
      _group.client.key_value_set(f"{_EXIT_NOTICES}{_group.index}", notice)
      # This exit breaks their connections: lets them read the notice first.
      time.sleep(3 * _POLL_SECONDS)
  _exit_now(code)


def is_lost_peer(error: BaseException) -> bool:
  """Returns whether an exception may come from the exit of another process."""
  text = f"{type(error).__name__}: {error}"
  return _group is not None and any(
    sign in text for sign in ("Gloo", "UNAVAILABLE", "coordination service", "Barrier")
  )


def wait_for_exit_notice() -> None:
  """Waits for the notice of another process's exit, on which the watcher ends this one."""
  if _group is not None:
    time.sleep(_group.config.heartbeat_timeout_seconds + 10)


def _watch(group: _Group) -> None:
  """Ends this process, whatever it waits for, once another one has given notice of its exit."""
  while not group.is_done.wait(_POLL_SECONDS):
    group.output.forward()
    try:
      notices = group.client.key_value_dir_get(_EXIT_NOTICES)
    except Exception:
      continue  # Process 0 is lost: JAX aborts, which has its own sentence.
    for key, text in notices:
      number = int(key.rsplit("/", 1)[1])
      if number != group.index:
        notice = json.loads(text)
        group.output.exit_code = notice["code"]
        print(f"dss: process {number} has ended: {notice['sentence']}", file=sys.stderr)
        if group.index == 0:
          # The store ends with process 0: lets the others read the notice first.
          time.sleep(3 * _POLL_SECONDS)
        _exit_now(notice["code"])


def _exit_now(code: int) -> NoReturn:
  with contextlib.suppress(OSError, ValueError):
    sys.stdout.flush()
    sys.stderr.flush()
  os._exit(code)


def _check_port(coordinator: str) -> None:
  """Raises UserError if process 0 cannot listen on its port; JAX would crash."""
  port = int(coordinator.rpartition(":")[2])
  try:
    with socket.socket() as listener:
      listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      listener.bind(("", port))
  except OSError as error:
    raise UserError(
      f"--coordinator {coordinator}: process 0 cannot listen on port {port} of this machine "
      f"({error.strerror}); give another port to every process"
    ) from error


def _first_line(error: BaseException) -> str:
  return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
