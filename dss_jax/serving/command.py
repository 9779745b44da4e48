"""`dss serve`: loads students, watches their aliases, and runs the server until a signal."""

import contextlib
import dataclasses
import pathlib
import threading
import time
from collections.abc import Iterator, Sequence

import uvicorn

from dss_jax.config.schema import MeshConfig, WeightType
from dss_jax.errors import UserError
from dss_jax.parallel.mesh import make_mesh
from dss_jax.progress import say
from dss_jax.serving.access import read_tokens
from dss_jax.serving.app import make_app
from dss_jax.serving.listening import BACKLOG, bound, listening
from dss_jax.serving.models import Models
from dss_jax.serving.served_student import ServedStudent
from dss_jax.student.registry import Registry
from dss_jax.student.student import Student

_WATCH_SECONDS = 2.0
# About the length of a question; longer inputs compile their programs when they come.
_WARM_UP_WORDS = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerOptions:
  """How a server runs.

  Attributes:
    token_env: the environment variable with its tokens.
    max_waiting: answers that may wait for a slot.
    timeout_seconds: of one answer.
    slots: answers that each student writes at a time.
    drain_seconds: how long answers are written on after SIGTERM.
    registry: the folder of the registry, if it is not the user's own.
  """

  host: str = "127.0.0.1"
  port: int = 8000
  token_env: str
  max_waiting: int = 256
  timeout_seconds: float = 60.0
  slots: int = 32
  drain_seconds: int = 30
  weights: WeightType = "float32"
  mesh: MeshConfig = MeshConfig()  # noqa: RUF009
  registry: str | None = None


def serve(references: Sequence[str], options: ServerOptions) -> None:
  """Serves students until SIGINT or SIGTERM; answers that are being written are completed.

  Args:
    references: folders, or NAME, NAME@VERSION or NAME@ALIAS of the registry; the name that clients
      give is the same, or the folder's last part.

  Raises:
    UserError: a student or the address cannot be used, or a token is needed.
  """
  tokens = read_tokens(options.token_env, options.host)
  names = _names(references)
  with bound(options.host, options.port) as listener:
    loader = _Loader(names, options)
    loader.load_all()
    app = make_app(loader.models, tokens=tokens, timeout_seconds=options.timeout_seconds)
    config = uvicorn.Config(
      app,
      access_log=False,
      log_level="warning",
      backlog=BACKLOG,
      server_header=False,
      timeout_graceful_shutdown=options.drain_seconds,
    )
    say(f"ready: {', '.join(names)} at {listening(listener)}/v1")
    with loader.watching():
      # Ends by the signal itself, once all answers are complete.
      uvicorn.Server(config).run(sockets=[listener])


def _names(references: Sequence[str]) -> dict[str, str]:
  """Returns the reference of each name."""
  names: dict[str, str] = {}
  for reference in references:
    name = reference
    if pathlib.Path(reference).is_dir():
      name = pathlib.Path(reference).resolve().name
    if name in names:
      raise UserError(
        f"--model {reference}: {names[name]} is served as {name!r}, too; register one of them under"
        " another name"
      )
    names[name] = reference
  return names


class _Loader:
  """Loads students, and loads them again when their references mean another version."""

  def __init__(self, names: dict[str, str], options: ServerOptions):
    self.models = Models(options.max_waiting)
    self._names = names
    self._options = options
    self._mesh = make_mesh(options.mesh, options.slots)
    self._stop = threading.Event()

  def load_all(self) -> None:
    for name, reference in self._names.items():
      self._load(name, reference, self._version(reference))

  def _load(self, name: str, reference: str, version: str) -> None:
    started = time.monotonic()
    student = Student.open(reference, self._options.registry)
    options = self._options
    served = ServedStudent(student, self._mesh, slots=options.slots, weights=options.weights)
    served.warm_up("word " * _WARM_UP_WORDS)
    self.models.put(name, version, served)
    shown = f"{name} (version {version})" if version else name
    say(f"loaded {shown} in {time.monotonic() - started:.0f} s")

  def _version(self, reference: str) -> str:
    """Returns the version in the registry that a reference means now; "" for a folder."""
    if pathlib.Path(reference).is_dir():
      return ""
    return str(Registry(self._options.registry).version(reference).number)

  @contextlib.contextmanager
  def watching(self) -> Iterator[None]:
    """Loads a new version within seconds of its alias being moved."""
    thread = threading.Thread(target=self._watch, name="aliases", daemon=True)
    thread.start()
    try:
      yield
    finally:
      self._stop.set()
      thread.join()

  def _watch(self) -> None:
    while not self._stop.wait(_WATCH_SECONDS):
      for name, reference in self._names.items():
        try:
          version = self._version(reference)
          if version != self.models.get(name)[0].version:
            self._load(name, reference, version)
        # The student that is served goes on.
        except Exception as error:
          say(f"warning: {name} is not replaced: {error}")
