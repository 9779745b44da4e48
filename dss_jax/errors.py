"""The one exception that a user's mistake becomes."""


class UserError(Exception):
  """A mistake its user can mend: one sentence with the value, the place and the mend.

  The `dss` command prints the sentence without a traceback and exits with code 2.
  """


class TrainingDiverged(Exception):
  """The loss or the gradient is no longer a finite number; the command exits with code 1."""
