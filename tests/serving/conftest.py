"""A server over a student that writes at once, and clients of it."""

import threading

import pytest
from starlette.testclient import TestClient

from dss_jax.serving.app import make_app
from dss_jax.serving.models import Models
from dss_jax.student.questions import Increment


class EchoStudent:
  """Answers "LABEL of INPUT", a word at a time, side by side as an engine does.

  `gate` holds back all answers while it is clear; `slots` limits those written at a time.
  """

  kinds = ("label", "rationale")
  max_output_tokens = 16

  def __init__(self, slots=4):
    self.gate = threading.Event()
    self.gate.set()
    self.slots = slots
    self.questions = []
    self.cancelled = 0

  def stream(self, questions, *, is_cancelled):
    running = {}
    taken = 0
    while True:
      while len(running) < self.slots:
        question = next(questions, None)
        if question is None:
          break
        self.questions.append(question)
        if question.text == "break":
          raise ZeroDivisionError("a device failed")
        words = f"{question.kind} of {question.text}".split(" ")
        for candidate in range(question.decoding.num_candidates if question.decoding else 1):
          running[taken, candidate] = (question, words, 0)
        taken += 1
      if not running:
        return
      is_open = self.gate.wait(0.005)
      for key, (question, words, position) in list(running.items()):
        if is_cancelled(key[0]):
          self.cancelled += 1
          del running[key]
          yield Increment(*key, "", finish="stop")
          continue
        if not is_open:
          continue
        most = question.max_tokens or self.max_output_tokens
        text = words[position] if not position else f" {words[position]}"
        finish = "stop" if position + 1 == len(words) else None
        finish = finish or ("length" if position + 1 == most else None)
        running[key] = (question, words, position + 1)
        if finish:
          del running[key]
        top = question.decoding.top_log_probabilities if question.decoding else 0
        # The token after the chosen one is more likely.
        listed = [(position + 8 - rank, -0.25 * (rank + 1)) for rank in range(top)]
        alternatives = [listed] if top else []
        yield Increment(*key, text, [position + 7], [-0.5], finish, alternatives)

  def count_tokens(self, text):
    return len(text.split())

  def texts_after(self, before, ids):
    return [f"<{number}>" for number in ids]

  def drift_of(self, text):
    return ["template"] if text.startswith("odd") else []


@pytest.fixture
def student():
  student = EchoStudent()
  yield student
  student.gate.set()


@pytest.fixture
def serve(student):
  """A function that makes a client of a server; keywords are those of make_app."""
  clients = []

  def make(max_waiting=64, models=None, base_url="http://127.0.0.1", **keywords):
    if models is None:
      models = Models(max_waiting)
      models.put("mine", "3", student)
    client = TestClient(
      make_app(models, **keywords), base_url=base_url, raise_server_exceptions=False
    )
    client.__enter__()
    clients.append(client)
    return client

  yield make
  student.gate.set()
  for client in clients:
    client.__exit__(None, None, None)
