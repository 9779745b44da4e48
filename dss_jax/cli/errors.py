"""The message and the exit code of a command that fails."""

import click

from dss_jax.errors import Preempted, TrainingDiverged, UserError


def report_error(error: BaseException) -> int | None:
  """Prints why a command ends; returns its exit code, or None for a fault of the program.

  2 is a user's mistake, 1 a run that diverged, 128 + n signal n.
  """
  if isinstance(error, click.exceptions.Exit):
    return error.exit_code
  if isinstance(error, click.exceptions.NoArgsIsHelpError):
    click.echo(error.format_message(), err=True)
    return 2
  if isinstance(error, click.ClickException):
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "dss"
    message = error.format_message().rstrip(".")
    click.echo(f"dss: {message}; see `{command} --help`", err=True)
    return 2
  if isinstance(error, (click.Abort, KeyboardInterrupt)):
    click.echo("dss: interrupted", err=True)
    return 130
  for kind, code in ((UserError, 2), (TrainingDiverged, 1)):
    if isinstance(error, kind):
      click.echo(f"dss: {error}", err=True)
      return code
  if isinstance(error, Preempted):
    click.echo(f"dss: {error}", err=True)
    return error.exit_code
  return None
