"""`dss jobs serve`: the queue and the API until a signal; the jobs go on after it."""

import dataclasses
import os
from collections.abc import Callable, Sequence

import uvicorn
from starlette.routing import BaseRoute

from dss_jax.jobs.api.access import Access, read_access
from dss_jax.jobs.api.app import make_app
from dss_jax.jobs.queue.runner import Runner, locked
from dss_jax.jobs.service import JobService, open_service
from dss_jax.progress import say
from dss_jax.serving.listening import BACKLOG, bound, listening
from dss_jax.storage.memory import forbid_core_dumps, has_swap


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerOptions:
  """How a job server runs.

  Attributes:
    config: the operator's settings, by default ROOT/jobs.yaml.
    tokens: the file of tokens, by default ROOT/tokens.yaml if it is there.
    token_env: the environment variable with administrators' tokens.
    drain_seconds: how long answers are written on after SIGTERM.
  """

  root: str
  host: str = "127.0.0.1"
  port: int = 8080
  config: str | None = None
  tokens: str | None = None
  token_env: str
  drain_seconds: int = 30


def serve(
  options: ServerOptions, routes: Callable[[JobService, Access], Sequence[BaseRoute]]
) -> None:
  """Serves the API and runs the queue until SIGINT or SIGTERM; jobs that run go on.

  Args:
    routes: makes those beside the API's.

  Raises UserError if the root, the settings, the tokens or the address cannot be used.
  """
  service = open_service(options.root, options.config)
  access = read_access(service.root, options.tokens, options.token_env, options.host)
  if service.settings.keys:
    forbid_core_dumps()
    if has_swap():
      say("warning: this machine swaps, so memory of encrypted jobs may be on a disk; see"
          " docs/encryption.md")  # fmt: skip
  with locked(service.root), bound(options.host, options.port) as listener:
    config = uvicorn.Config(
      make_app(service, access, routes=routes(service, access)),
      access_log=False,
      log_level="warning",
      backlog=BACKLOG,
      server_header=False,
      timeout_graceful_shutdown=options.drain_seconds,
    )
    for name, devices in service.devices.items():
      say(f"device set {name}: {devices.count} of {devices.platform.upper()}")
    url = listening(listener)
    say(f"console: {url}/console")
    say(f"ready: jobs of {service.root} at {url}/v1")
    runner = Runner(service)
    # JAX, which is loaded with the first student, would take the jobs' devices.
    os.environ["JAX_PLATFORMS"] = service.settings.answer_on
    runner.start()
    try:
      # Ends by the signal itself, once all answers are complete.
      uvicorn.Server(config).run(sockets=[listener])
    finally:
      runner.stop()
