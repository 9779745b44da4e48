"""Results and errors of the child process; a crash becomes one sentence."""

import os
import signal

import pytest

from dss_jax.errors import UserError
from dss_jax.plan.child_process import run_in_child_process


def test_results_and_errors_are_returned():
  assert run_in_child_process(divmod, 17, 5) == (3, 2)
  assert run_in_child_process(os.getpid) != os.getpid()
  with pytest.raises(ValueError, match="invalid literal"):
    run_in_child_process(int, "ten")


def test_a_crash_is_one_sentence():
  with pytest.raises(UserError, match="the TPU's compiler crashed") as caught:
    run_in_child_process(signal.raise_signal, signal.SIGSEGV)
  assert "\n" not in str(caught.value)
