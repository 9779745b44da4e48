"""The `dss` command: parses, then calls one function. Imports nothing heavy."""

import os
import sys

import click

from dss_jax import __version__, terminal
from dss_jax.cli.annotate import annotate
from dss_jax.cli.data import validate
from dss_jax.cli.errors import report_error
from dss_jax.cli.jobs import jobs
from dss_jax.cli.models import models
from dss_jax.cli.plan import plan
from dss_jax.cli.quickstart import quickstart
from dss_jax.cli.serve import serve
from dss_jax.cli.student import evaluate, export, predict
from dss_jax.cli.train import distill, sweep, train, tune

# Settings of JAX that may be in the environment for other programs, and with which a run would
# have other numbers, or fail. JAX's defaults apply.
_OF_OTHER_PROGRAMS = (
  "JAX_ENABLE_X64",
  "JAX_DEFAULT_DTYPE_BITS",
  "JAX_NUMPY_DTYPE_PROMOTION",
  "JAX_NUMPY_RANK_PROMOTION",
  "JAX_DEFAULT_PRNG_IMPL",
  "JAX_THREEFRY_PARTITIONABLE",
  "JAX_ENABLE_CUSTOM_PRNG",
  "JAX_DISABLE_JIT",
)


def main() -> None:
  """Runs the command; a user's mistake is one sentence and exit code 2."""
  # Keeps XLA's, TensorFlow's and absl's own log lines off the terminal.
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  for name in _OF_OTHER_PROGRAMS:
    os.environ.pop(name, None)
  terminal.prepare()
  try:
    dss(prog_name="dss", standalone_mode=False)
    sys.stdout.flush()
  except BaseException as error:
    code = report_error(error)
    if code is None:
      raise
    sys.exit(code)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="dss")
def dss() -> None:
  """Distil a large teacher language model, step by step, into a small T5 student."""


for _command in (
  annotate, distill, evaluate, export, jobs, models, plan, predict, quickstart, serve, sweep, train,
  tune, validate,
):  # fmt: skip
  dss.add_command(_command)


if __name__ == "__main__":
  main()
