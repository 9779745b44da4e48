"""Agreement, broadcast and exit notices between processes, with an in-memory store."""

import json

import pytest

from dss_jax.config.schema import DistributedConfig
from dss_jax.errors import UserError
from dss_jax.parallel import processes as subject


class Store:
  """JAX's key-value store, in memory; reading a missing key raises instead of waiting."""

  def __init__(self):
    self.values = {}
    self.barriers = []

  def key_value_set(self, key, value):
    assert key not in self.values
    self.values[key] = value

  def blocking_key_value_get(self, key, timeout_in_ms):
    return self.values[key]

  def key_value_dir_get(self, prefix):
    return [(key, value) for key, value in self.values.items() if key.startswith(prefix)]

  def wait_at_barrier(self, key, timeout_in_ms):
    assert key not in self.barriers
    self.barriers.append(key)


class Output:
  exit_code = None

  def forward(self): ...


@pytest.fixture
def as_process(monkeypatch):
  """Makes this process one of two that has made no call yet."""

  def as_process(index, store):
    group = subject._Group(store, 2, index, DistributedConfig(), Output())
    monkeypatch.setattr(subject, "_group", group)
    return group

  return as_process


def test_a_single_process_does_not_communicate():
  assert (subject.count(), subject.is_first()) == (1, True)
  subject.agree("they differ", {"a": "1"}, "mend it")
  assert subject.broadcast("topic", lambda: (1, 2)) == (1, 2)
  assert subject.first_process_first("topic", lambda: "made") == "made"
  subject.wait_for_all("topic")
  subject.shutdown()


def test_process_0_broadcasts_to_the_others(as_process):
  store = Store()
  as_process(0, store)
  assert subject.is_first()
  assert subject.broadcast("answer", lambda: ["yes", None]) == ["yes", None]
  assert subject.broadcast("answer", lambda: 2) == 2
  as_process(1, store)
  assert not subject.is_first()
  assert subject.broadcast("answer", lambda: pytest.fail("was called")) == ["yes", None]
  assert subject.broadcast("answer", lambda: pytest.fail("was called")) == 2


def test_process_0_finishes_before_the_others_begin(as_process):
  store = Store()
  as_process(1, store)
  with pytest.raises(KeyError):  # would wait
    subject.first_process_first(
      "tokens", lambda: pytest.fail("was called before process 0 was done")
    )
  as_process(0, store)
  assert subject.first_process_first("tokens", lambda: len(store.values)) == 0
  as_process(1, store)
  assert subject.first_process_first("tokens", lambda: "opened") == "opened"


def test_equal_values_agree(as_process):
  store = Store()
  for index in (0, 1):
    as_process(index, store)
    store.barriers.clear()
    subject.agree("they differ", {"seed": "1", "task": "None"}, "mend it")
    assert len(store.barriers) == 1


def test_differences_are_named_and_no_process_goes_on(as_process):
  store = Store()
  as_process(0, store)
  subject.agree("they differ", {"seed": "1", "task": "None", "old": "x"}, "mend it")
  as_process(1, store)
  store.barriers.clear()
  with pytest.raises(UserError) as caught:
    subject.agree("they differ", {"seed": "2", "task": "None", "new": "y"}, "mend it")
  assert str(caught.value) == (
    "they differ: seed is 2 in process 1 and 1 in process 0; old is nothing in process 1 and x in "
    "process 0; new is y in process 1 and nothing in process 0; mend it"
  )
  assert not store.barriers


def test_many_differences_are_counted(as_process):
  store = Store()
  as_process(0, store)
  subject.agree("they differ", dict.fromkeys("abcde", "1"), "mend it")
  as_process(1, store)
  with pytest.raises(UserError, match=r"c is 2 in .* \(and 2 more\); mend it"):
    subject.agree("they differ", dict.fromkeys("abcde", "2"), "mend it")


class Ended(Exception):
  """Raised in place of os._exit."""


@pytest.fixture
def ends(monkeypatch):
  def end(code):
    raise Ended(code)

  monkeypatch.setattr(subject.os, "_exit", end)
  monkeypatch.setattr(subject, "_POLL_SECONDS", 0.0)


def test_the_others_exit_with_the_code_of_the_one_that_failed(as_process, ends, capsys):
  store = Store()
  as_process(1, store)
  with pytest.raises(Ended, match="2"):
    subject.exit_process(2, "its disk is full", all_exit=False)
  assert not store.barriers
  first = as_process(0, store)
  with pytest.raises(Ended, match="2"):
    subject._watch(first)
  assert capsys.readouterr().err == "dss: process 1 has ended: its disk is full\n"
  assert first.output.exit_code == 2


def test_no_notice_is_given_when_all_exit(as_process, ends):
  store = Store()
  first = as_process(0, store)
  with pytest.raises(Ended, match="143"):
    subject.exit_process(143, "stopped", all_exit=True)
  assert not store.values
  assert len(store.barriers) == 1
  assert first.output.exit_code == 143


def test_a_process_ignores_its_own_notice(as_process, ends):
  store = Store()
  group = as_process(1, store)
  store.key_value_set(f"{subject._EXIT_NOTICES}1", json.dumps({"code": 2, "sentence": "mine"}))

  def forward():
    group.is_done.set()

  group.output.forward = forward
  subject._watch(group)
  assert group.is_done.is_set()
  assert group.output.exit_code is None


def test_errors_that_a_lost_peer_causes(as_process):
  broken = RuntimeError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer")
  assert not subject.is_lost_peer(broken)
  as_process(0, Store())
  assert subject.is_lost_peer(broken)
  assert not subject.is_lost_peer(RuntimeError("RESOURCE_EXHAUSTED: out of memory"))


def test_a_port_in_use_is_refused():
  with subject.socket.socket() as taken:
    taken.bind(("", 0))
    taken.listen()
    port = taken.getsockname()[1]
    with pytest.raises(
      UserError, match=f"--coordinator h:{port}: process 0 cannot listen on port {port} .* in use"
    ):
      subject._check_port(f"h:{port}")
  subject._check_port(f"h:{port}")
