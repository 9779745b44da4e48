"""Which flags, variables and machines make a run one of several processes."""

import click
import pytest
from click.testing import CliRunner

from dss_jax.cli import distributed as subject
from dss_jax.errors import UserError
from dss_jax.parallel.processes import DistributedConfig

ALL = ["--coordinator", "10.0.0.1:8476", "--num-processes", "4", "--process-id", "3"]
VARIABLES = {
  "JAX_COORDINATOR_ADDRESS": "10.0.0.2:99",
  "JAX_NUM_PROCESSES": "2",
  "JAX_PROCESS_ID": "1",
}


@pytest.fixture
def place(monkeypatch):
  """The place that a command line and an environment give."""
  for name in (*VARIABLES, "TPU_WORKER_HOSTNAMES", "TPU_PROCESS_BOUNDS", "JAX_PLATFORMS"):
    monkeypatch.delenv(name, raising=False)

  def place(*arguments, **variables):
    @click.command()
    @subject.process_options
    def command(**flags):
      found.append(subject._place(flags))

    found = []
    result = CliRunner().invoke(command, list(arguments), env=variables, standalone_mode=False)
    if result.exception is not None:
      raise result.exception
    return found[0]

  return place


def test_a_run_of_its_own(place):
  assert place() is None
  assert place(TPU_WORKER_HOSTNAMES="localhost") is None
  assert place(TPU_WORKER_HOSTNAMES="a,b", TPU_PROCESS_BOUNDS="1,1,1") is None
  assert place(TPU_WORKER_HOSTNAMES="a,b", JAX_PLATFORMS="cpu") is None


def test_told_by_flags(place):
  assert place(*ALL) == DistributedConfig("10.0.0.1:8476", 4, 3)
  assert place(
    *ALL, "--heartbeat-timeout-seconds", "9", "--start-timeout-seconds", "8"
  ) == DistributedConfig(
    "10.0.0.1:8476", 4, 3, start_timeout_seconds=8, heartbeat_timeout_seconds=9
  )


def test_told_by_t5x_s_flags(place):
  flags = ["--coordinator_address=h:1", "--process_count=2", "--process_index=0"]
  assert place(*flags) == DistributedConfig("h:1", 2, 0)
  assert place("--multiprocess_gpu", *flags) == DistributedConfig("h:1", 2, 0)


def test_told_by_the_environment_and_flags_win(place):
  assert place(**VARIABLES) == DistributedConfig("10.0.0.2:99", 2, 1)
  assert place("--process-id", "0", **VARIABLES) == DistributedConfig("10.0.0.2:99", 2, 0)


def test_found_by_jax(place):
  assert place("--distributed") == DistributedConfig()
  assert place("--distributed", "--coordinator", "h:1") == DistributedConfig("h:1")
  assert place(TPU_WORKER_HOSTNAMES="t1v-n-0,t1v-n-1") == DistributedConfig()


@pytest.mark.parametrize(
  ("arguments", "says"),
  [
    (ALL[:2], ["--coordinator is given without --num-processes and --process-id"]),
    (ALL[:4], ["--coordinator is given without --process-id", "--distributed"]),
    (ALL[4:], ["--process-id is given without --coordinator and --num-processes"]),
    ([*ALL, "--process-id", "4"], ["--process-id 4", "from 0 to 3"]),
    ([*ALL, "--coordinator", "host"], ["--coordinator host", "HOST:PORT"]),
    ([*ALL, "--coordinator", "host:0"], ["--coordinator host:0", "HOST:PORT"]),
    ([*ALL, "--coordinator", ":80"], ["--coordinator :80", "HOST:PORT"]),
    (["--distributed", *ALL[2:], "--process-id", "7"], ["--process-id 7", "from 0 to 3"]),
  ],
)
def test_what_does_not_fit_together(place, arguments, says):
  with pytest.raises(UserError) as caught:
    place(*arguments)
  assert "\n" not in str(caught.value)
  for part in says:
    assert part in str(caught.value)


@pytest.mark.parametrize("arguments", [["--num-processes", "0"], ["--process-id", "-1"]])
def test_numbers_out_of_bounds(place, arguments):
  with pytest.raises(click.BadParameter):
    place(*arguments)
