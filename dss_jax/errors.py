"""What ends a run in one sentence: a user's mistake, numbers that are none, a signal."""

import signal


class UserError(Exception):
  """A mistake its user can mend: one sentence with the value, the place and the mend.

  The `dss` command prints the sentence without a traceback and exits with code 2.
  """


class TrainingDiverged(Exception):
  """The loss or the gradient is no longer a finite number; the command exits with code 1."""


class Preempted(Exception):
  """The run was asked to stop; its state at `step` is saved."""

  def __init__(self, step: int, signal_number: int):
    super().__init__(
      f"stopped by {signal.Signals(signal_number).name} after step {step}, which is saved; "
      "the same command goes on from there"
    )
    self.exit_code = 128 + signal_number
