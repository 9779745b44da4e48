"""Programs compiled in other threads, in their order, before they are asked for."""

import threading

import jax
import pytest

from dss_jax.train.compile_ahead import CompiledAhead


class Slow:
  """Stands for what is to be compiled: it takes as long as the test wants."""

  def __init__(self, begun, name, may_end=None, error=None):
    self.begun, self.name, self.may_end, self.error = begun, name, may_end, error

  def __call__(self):
    return self

  def compile(self):
    self.begun.append(self.name)
    if self.may_end is not None:
      assert self.may_end.wait(60)
    if self.error is not None:
      raise self.error
    return self.name


def test_a_program_is_compiled_before_it_is_asked_for():
  lowered = jax.jit(lambda x: 2 * x).lower(jax.ShapeDtypeStruct((3,), "int32"))
  asked = threading.Event()
  ahead = CompiledAhead({"twice": lambda: (asked.set(), lowered)[1]})
  assert asked.wait(60)
  assert ahead.get("twice")(jax.numpy.arange(3)).tolist() == [0, 2, 4]
  assert ahead.get("thrice") is None
  ahead.close()


def test_what_compiling_raises_is_raised_where_the_program_is_needed():
  ahead = CompiledAhead({1: Slow([], 1, error=ValueError("too large")), 2: Slow([], 2)})
  with pytest.raises(ValueError, match="too large"):
    ahead.get(1)
  assert ahead.get(2) == 2
  ahead.close()


def test_closing_begins_no_other(monkeypatch):
  monkeypatch.setattr("os.cpu_count", lambda: 2)  # one thread
  begun, may_end = [], threading.Event()
  ahead = CompiledAhead({name: Slow(begun, name, may_end) for name in "abc"})
  closing = threading.Thread(target=ahead.close)
  closing.start()
  closing.join(60)
  assert not closing.is_alive()  # It does not wait.
  may_end.set()
  assert set(begun) <= {"a"}
