"""Signals and an event are recorded; a second SIGINT interrupts; processes stop together."""

import os
import signal
import threading

import jax
import numpy as np
import pytest

from dss_jax.errors import Preempted
from dss_jax.parallel.preemption import StopSignal, StopVote, stopped_by


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_recorded(number):
  with StopSignal() as stop:
    assert stop.number is None
    os.kill(os.getpid(), number)
    assert stop.number == number


def test_a_second_sigint_interrupts():
  with StopSignal() as stop:
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.number == signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)


def test_a_second_sigterm_does_not_interrupt():
  with StopSignal() as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.number == signal.SIGTERM


def test_the_previous_handlers_are_restored():
  before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
  with StopSignal():
    assert signal.getsignal(signal.SIGTERM) != before[0]
  assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_another_thread_records_nothing():
  seen = []

  def enter():
    with StopSignal() as stop:
      seen.append(stop.number)

  thread = threading.Thread(target=enter)
  thread.start()
  thread.join()
  assert seen == [None]


def test_the_exit_code_and_the_sentence():
  error = Preempted(17, signal.SIGTERM)
  assert error.exit_code == 143
  assert "SIGTERM after step 17" in str(error)
  assert "run the same command again to continue" in str(error)


def test_a_single_process_stops_at_once(mesh_of):
  vote = StopVote(mesh_of(2, 4))
  assert vote.cast(None) == 0
  assert vote.cast(signal.SIGTERM) == signal.SIGTERM


def test_several_processes_stop_one_step_later(mesh_of, monkeypatch):
  vote = StopVote(mesh_of(2, 4))
  monkeypatch.setattr(vote, "_is_single_process", False)
  ballots = [None, signal.SIGTERM, signal.SIGINT, None, None]
  assert [vote.cast(ballot) for ballot in ballots] == [0, 0, signal.SIGTERM, signal.SIGINT, 0]


def test_a_signal_to_one_process_stops_all(mesh_of, monkeypatch):
  """Only one device votes to stop, as if another process had received a signal."""
  vote = StopVote(mesh_of(2, 4))
  monkeypatch.setattr(vote, "_is_single_process", False)
  sharding = vote._ballot(0).sharding
  ballots = np.array([0, 0, 0, 0, 0, signal.SIGTERM, 0, 0], np.int32)
  monkeypatch.setattr(vote, "_ballot", lambda number: jax.device_put(ballots, sharding))
  vote.cast(None)
  assert vote.cast(None) == signal.SIGTERM


def test_an_event_stops_as_sigterm_does():
  """In any thread, for the body alone."""
  seen = []

  def enter():
    event = threading.Event()
    with stopped_by(event), StopSignal() as stop:
      seen.append(stop.number)
      event.set()
      seen.append(stop.number)
    with StopSignal() as stop:
      seen.append(stop.number)

  thread = threading.Thread(target=enter)
  thread.start()
  thread.join()
  assert seen == [None, signal.SIGTERM, None]
