"""The flags, variables and machines that make a run one of several processes."""

import click
import pytest
from click.testing import CliRunner

from dss_jax.cli import distributed as subject
from dss_jax.config.schema import DistributedConfig
from dss_jax.errors import UserError

ALL = ["--coordinator", "10.0.0.1:8476", "--num-processes", "4", "--process-id", "3"]
VARIABLES = {
  "JAX_COORDINATOR_ADDRESS": "10.0.0.2:99",
  "JAX_NUM_PROCESSES": "2",
  "JAX_PROCESS_ID": "1",
}


@pytest.fixture
def parse(monkeypatch):
  """Returns a function from a command line and an environment to a DistributedConfig."""
  for name in (*VARIABLES, "TPU_WORKER_HOSTNAMES", "TPU_PROCESS_BOUNDS", "JAX_PLATFORMS"):
    monkeypatch.delenv(name, raising=False)

  def parse(*arguments, **variables):
    @click.command()
    @subject.process_options
    def command(**flags):
      found.append(subject._distributed_config(flags))

    found = []
    result = CliRunner().invoke(command, list(arguments), env=variables, standalone_mode=False)
    if result.exception is not None:
      raise result.exception
    return found[0]

  return parse


def test_a_run_of_one_process(parse):
  assert parse() is None
  assert parse(TPU_WORKER_HOSTNAMES="localhost") is None
  assert parse(TPU_WORKER_HOSTNAMES="a,b", TPU_PROCESS_BOUNDS="1,1,1") is None
  assert parse(TPU_WORKER_HOSTNAMES="a,b", JAX_PLATFORMS="cpu") is None


def test_flags(parse):
  assert parse(*ALL) == DistributedConfig("10.0.0.1:8476", 4, 3)
  assert parse(
    *ALL, "--heartbeat-timeout-seconds", "9", "--start-timeout-seconds", "8"
  ) == DistributedConfig(
    "10.0.0.1:8476", 4, 3, start_timeout_seconds=8, heartbeat_timeout_seconds=9
  )


def test_t5x_s_flags(parse):
  flags = ["--coordinator_address=h:1", "--process_count=2", "--process_index=0"]
  assert parse(*flags) == DistributedConfig("h:1", 2, 0)
  assert parse("--multiprocess_gpu", *flags) == DistributedConfig("h:1", 2, 0)


def test_flags_win_over_the_environment(parse):
  assert parse(**VARIABLES) == DistributedConfig("10.0.0.2:99", 2, 1)
  assert parse("--process-id", "0", **VARIABLES) == DistributedConfig("10.0.0.2:99", 2, 0)


def test_what_jax_detects(parse):
  assert parse("--distributed") == DistributedConfig()
  assert parse("--distributed", "--coordinator", "h:1") == DistributedConfig("h:1")
  assert parse(TPU_WORKER_HOSTNAMES="t1v-n-0,t1v-n-1") == DistributedConfig()


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
def test_flags_that_do_not_fit_together_are_refused(parse, arguments, says):
  with pytest.raises(UserError) as caught:
    parse(*arguments)
  assert "\n" not in str(caught.value)
  for part in says:
    assert part in str(caught.value)


@pytest.mark.parametrize("arguments", [["--num-processes", "0"], ["--process-id", "-1"]])
def test_numbers_out_of_bounds_are_refused(parse, arguments):
  with pytest.raises(click.BadParameter):
    parse(*arguments)
