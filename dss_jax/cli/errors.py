"""The message and the exit code of a command that fails."""

import signal
import sys

import click

from dss_jax.errors import Preempted, ReaderGone, TrainingDiverged, UserError
from dss_jax.terminal import printable


def report_error(error: BaseException) -> int | None:
  """Prints why a command ends; returns its exit code, or None for a fault of the program.

  2 is a user's mistake, 1 a run that diverged, 128 + n signal n; a closed pipe counts as SIGPIPE.
  """
  if isinstance(error, ReaderGone):
    return 128 + signal.SIGPIPE
  if isinstance(error, click.exceptions.Exit):
    return error.exit_code
  if isinstance(error, click.exceptions.NoArgsIsHelpError):
    _say(error.format_message())
    return 2
  if isinstance(error, click.ClickException):
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "dss"
    message = error.format_message().rstrip(".")
    _say(f"dss: {message}; see `{command} --help`")
    return 2
  if isinstance(error, (click.Abort, KeyboardInterrupt)):
    _say("dss: interrupted")
    return 130
  for kind, code in ((UserError, 2), (TrainingDiverged, 1)):
    if isinstance(error, kind):
      _say(f"dss: {error}")
      return code
  if isinstance(error, Preempted):
    _say(f"dss: {error}")
    return error.exit_code
  return None


def _say(message: str) -> None:
  print(printable(message), file=sys.stderr, flush=True)
