"""A compiler that dies leaves a sentence; what it returns or raises comes back."""

import os
import signal

import pytest

from dss_jax.errors import UserError
from dss_jax.plan.child_process import run_in_child_process


def test_what_is_returned_and_raised_comes_back():
  assert run_in_child_process(divmod, 17, 5) == (3, 2)
  assert run_in_child_process(os.getpid) != os.getpid()
  with pytest.raises(ValueError, match="invalid literal"):
    run_in_child_process(int, "ten")


def test_a_death_is_a_sentence():
  with pytest.raises(UserError, match="the TPU's compiler died") as caught:
    run_in_child_process(signal.raise_signal, signal.SIGSEGV)
  assert "\n" not in str(caught.value)
