"""The processes of one run: how they meet, agree, take turns and end together.

They talk through the key-value store of JAX's coordination service, which process 0 holds.
Everything here is called by all processes in the same order; in a run of one process it costs
nothing and talks to nobody.
"""

import contextlib
import dataclasses
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

from dss_jax import progress
from dss_jax.errors import UserError
from dss_jax.parallel.abort import LowLevelOutput, Rendezvous

T = TypeVar("T")

# Waiting for the others has no end of its own: a process that is gone ends the wait.
_WEEK_MILLISECONDS = 7 * 24 * 3600 * 1000
_WATCH_SECONDS = 1.0
_SHUTDOWN_SECONDS = 30
_ENDED = "dss/ended/"


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
  """A process's place in its run, as it was told.

  Attributes:
    coordinator, count, index: HOST:PORT of process 0, how many there are and which this is;
      JAX finds those that are None (on TPU pods, under Slurm, Open MPI and Kubernetes).
    start_timeout_seconds: how long to wait for the others at the start.
    heartbeat_timeout_seconds: after so long a silence a process counts as gone.
  """

  coordinator: str | None = None
  count: int | None = None
  index: int | None = None
  start_timeout_seconds: int = 300
  heartbeat_timeout_seconds: int = 60


class _Group:
  """The processes that have met, and this one among them."""

  def __init__(
    self, client: Any, count: int, index: int, place: DistributedConfig, output: LowLevelOutput
  ):
    self.client = client
    self.count = count
    self.index = index
    self.place = place
    self.output = output
    self.turn = 0
    self.is_over = threading.Event()
    self.watcher = threading.Thread(target=_watch, args=(self,), name="processes", daemon=True)

  def key(self, topic: str) -> str:
    """A key that no earlier call has used."""
    self.turn += 1
    return f"dss/{self.turn}/{topic}/"


_group: _Group | None = None


def count() -> int:
  """How many processes the run has."""
  return 1 if _group is None else _group.count


def is_first() -> bool:
  """Whether this is the process that writes, reports and decides."""
  return _group is None or _group.index == 0


def initialize(place: DistributedConfig) -> None:
  """Meets the other processes and starts JAX's backend; only process 0 tells progress from now.

  Where they do not all come, the program ends with a sentence and exit code 2.

  Raises:
    UserError: the port is taken, nothing says where to meet, or the processes were started
      with different counts.
  """
  global _group
  assert _group is None
  if place.index == 0 and place.coordinator is not None:
    _check_port(place.coordinator)
  import jax
  from jax._src import distributed

  output = LowLevelOutput()
  output.meeting = Rendezvous(
    place.coordinator, place.count, place.index, place.start_timeout_seconds
  )
  if jax.config.jax_cpu_collectives_implementation is None:  # type: ignore[attr-defined]
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
  # It would take SIGTERM away from the program long before there is a step to stop after.
  jax.config.update("jax_enable_preemption_service", False)
  is_told = None not in (place.coordinator, place.count, place.index)
  try:
    jax.distributed.initialize(
      place.coordinator,
      place.count,
      place.index,
      # Told where to meet, JAX must not ask a pod's or a cluster's services.
      cluster_detection_method="deactivate" if is_told else None,
      initialization_timeout=place.start_timeout_seconds,
      heartbeat_timeout_seconds=place.heartbeat_timeout_seconds,
      shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
    )
  except (ValueError, RuntimeError, OSError) as error:
    if is_told:
      raise UserError(f"--coordinator {place.coordinator}: {_first_line(error)}") from error
    raise UserError(
      f"--distributed: found no TPU pod, Slurm, Open MPI or Kubernetes job to join "
      f"({_first_line(error)}); give --coordinator HOST:PORT, --num-processes and --process-id"
    ) from error
  state = distributed.global_state
  output.meeting = Rendezvous(
    state.coordinator_address, state.num_processes, state.process_id, place.start_timeout_seconds
  )
  _group = _Group(state.client, state.num_processes, state.process_id, place, output)
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
  """Raises UserError where a process has other values than process 0; the first are named."""
  if _group is None:
    return
  key = _group.key("agree")
  if is_first():
    _group.client.key_value_set(key, json.dumps(dict(values)))
    # Nothing is begun before all have agreed.
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
  """What `make` gives in process 0, in every process; it must be what JSON can hold."""
  if _group is None:
    return make()
  key = _group.key(topic)
  if is_first():
    made = make()
    _group.client.key_value_set(key, json.dumps(made))
    return made
  return json.loads(_group.client.blocking_key_value_get(key, _WEEK_MILLISECONDS))


def first_process_first(topic: str, make: Callable[[], T]) -> T:
  """Makes it in process 0, then in all others at once, which find what that left on disk."""
  if _group is None:
    return make()
  key = _group.key(topic)
  if is_first():
    made = make()
    _group.client.key_value_set(key, "made")
    return made
  _group.client.blocking_key_value_get(key, _WEEK_MILLISECONDS)
  return make()


def wait_for_all(topic: str) -> None:
  """Returns when every process has come here."""
  if _group is not None:
    _group.client.wait_at_barrier(_group.key(topic), _WEEK_MILLISECONDS)


def shutdown() -> None:
  """Ends the membership of a process that is done, once all are."""
  if _group is None:
    return
  import jax

  wait_for_all("done")
  _group.output.exit_code = 0
  _group.is_over.set()
  # A question to a store that is shut down meanwhile would crash.
  _group.watcher.join()
  _group.output.forward()
  # Whoever is gone by now was done as well.
  with contextlib.suppress(Exception):
    jax.distributed.shutdown()


def exit_process(code: int, sentence: str, *, alike: bool) -> NoReturn:
  """Ends this process; the others are told why, unless they end alike for the same reason.

  Nothing is waited for that might wait for a process that is gone: no device, no thread.
  """
  if _group is not None and alike:
    wait_for_all("end")
    _group.output.exit_code = code
  elif _group is not None:
    _group.output.exit_code = code
    with contextlib.suppress(Exception):
      news = json.dumps({"code": code, "sentence": sentence})
      _group.client.key_value_set(f"{_ENDED}{_group.index}", news)
      # With this process their connections break: they should have read it by then.
      time.sleep(3 * _WATCH_SECONDS)
  _end_now(code)


def is_loss(error: BaseException) -> bool:
  """Whether an exception is what another process's end looks like from here."""
  text = f"{type(error).__name__}: {error}"
  return _group is not None and any(
    sign in text for sign in ("Gloo", "UNAVAILABLE", "coordination service", "Barrier")
  )


def await_news() -> None:
  """Gives the news of another process's end the time to come; it ends this process, too."""
  if _group is not None:
    time.sleep(_group.place.heartbeat_timeout_seconds + 10)


def _watch(group: _Group) -> None:
  """Ends this process, wherever it waits, when another one has ended on its own."""
  while not group.is_over.wait(_WATCH_SECONDS):
    group.output.forward()
    try:
      news = group.client.key_value_dir_get(_ENDED)
    except Exception:
      continue  # Process 0 is gone: JAX notices and aborts, which has its own sentence.
    for key, text in news:
      number = int(key.rsplit("/", 1)[1])
      if number != group.index:
        ended = json.loads(text)
        group.output.exit_code = ended["code"]
        print(f"dss: process {number} has ended: {ended['sentence']}", file=sys.stderr)
        if group.index == 0:
          # The news goes with it: all should have read it by then.
          time.sleep(3 * _WATCH_SECONDS)
        _end_now(ended["code"])


def _end_now(code: int) -> NoReturn:
  with contextlib.suppress(OSError, ValueError):
    sys.stdout.flush()
    sys.stderr.flush()
  os._exit(code)


def _check_port(coordinator: str) -> None:
  """Raises UserError where process 0 cannot listen; JAX would crash over it."""
  port = int(coordinator.rpartition(":")[2])
  try:
    with socket.socket() as listener:
      listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      listener.bind(("", port))
  except OSError as error:
    raise UserError(
      f"--coordinator {coordinator}: port {port} of this machine cannot be listened on "
      f"({error.strerror}); give another one to every process"
    ) from error


def _first_line(error: BaseException) -> str:
  return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
