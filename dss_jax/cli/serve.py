"""The command `dss serve`. Imports nothing heavy."""

import click

from dss_jax.cli import options
from dss_jax.cli.options import option
from dss_jax.errors import UserError


@click.command(short_help="Serve students over HTTP.")
@option(
  "--model",
  "models",
  multiple=True,
  required=True,
  metavar="NAME[@VERSION]|DIR",
  help="A student of the registry, or its folder; may be repeated.",
)
@option(
  "--host",
  default="127.0.0.1",
  show_default=True,
  metavar="ADDRESS",
  help="The address to listen at; others than this machine's need a token.",
)
@option(
  "--port",
  type=click.IntRange(0, 65535),
  default=8000,
  show_default=True,
  metavar="N",
  help="0 takes a free one.",
)
@option(
  "--token-env",
  default="DSS_SERVE_TOKEN",
  show_default=True,
  metavar="NAME",
  help="The environment variable with the tokens, separated by commas.",
)
@option(
  "--max-waiting",
  type=click.IntRange(min=1),
  default=256,
  show_default=True,
  metavar="N",
  help="Answers that may wait; more are refused with 429.",
)
@option(
  "--answer-seconds",
  type=click.FloatRange(min=0.1),
  default=60.0,
  show_default=True,
  metavar="X",
  help="How long one answer may take.",
)
@option(
  "--slots",
  type=click.IntRange(min=1),
  default=32,
  show_default=True,
  metavar="N",
  help="Answers that each student writes at a time.",
)
@option(
  "--drain-seconds",
  type=click.IntRange(min=0),
  default=30,
  show_default=True,
  metavar="N",
  help="How long answers are completed after SIGTERM.",
)
@options.WEIGHTS
@options.MESH
@options.REGISTRY
def serve(
  models: tuple[str, ...],
  host: str,
  port: int,
  token_env: str,
  max_waiting: int,
  answer_seconds: float,
  slots: int,
  drain_seconds: int,
  weights: str,
  mesh: str | None,
  registry: str | None,
) -> None:
  """Serve students with the APIs of OpenAI and of the hosted service, on this machine alone.

  Clients of other machines need --host and a token. SIGTERM completes the answers that are being
  written. A student given as NAME or NAME@ALIAS is replaced when the alias is moved.
  """
  try:
    from dss_jax.serving.command import ServerOptions
    from dss_jax.serving.command import serve as run
  except ImportError as error:
    raise UserError(
      f"dss serve: {error.name} is not installed; pip install 'dss-jax[serve]'"
    ) from None
  from dss_jax.config.mesh_presets import mesh_config
  from dss_jax.storage.cache import keep_compiled_programs

  keep_compiled_programs()
  run(
    models,
    ServerOptions(
      host=host,
      port=port,
      token_env=token_env,
      max_waiting=max_waiting,
      timeout_seconds=answer_seconds,
      slots=slots,
      drain_seconds=drain_seconds,
      weights=weights,  # type: ignore[arg-type]
      mesh=mesh_config(mesh),
      registry=registry,
    ),
  )
