"""The exceptions that end a run: a user's mistake, divergence, a signal, a reader that left."""

import signal


class UserError(Exception):
  """A mistake that the user can correct: one sentence with the value, the place and the mend.

  The `dss` command prints the sentence without a traceback and exits with code 2.
  """


class ReaderGone(Exception):
  """Standard output is a pipe that nobody reads any more; the command ends quietly."""


class TrainingDiverged(Exception):
  """A loss or a gradient that is no longer finite; the command exits with code 1."""


class Preempted(Exception):
  """A run that a signal stopped; its state at `step` is saved."""

  def __init__(self, step: int, signal_number: int):
    super().__init__(
      f"stopped by {signal.Signals(signal_number).name} after step {step}, which is saved; "
      "run the same command again to continue from there"
    )
    self.step = step
    self.exit_code = 128 + signal_number
