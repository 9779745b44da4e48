"""A student as teacher: batches, order, errors, and the format of answers."""

import asyncio
import threading

import pytest

from dss_jax.annotation.outcome import AnnotationConfig
from dss_jax.annotation.prompts import Prompt
from dss_jax.annotation.run import RequestConfig, annotate
from dss_jax.data.records import read_rows
from dss_jax.student.predictor import Answer
from dss_jax.teachers.student_teacher import StudentTeacher


class _Predictor:
  """A fake student that records its batches."""

  def __init__(self):
    self.batches = []
    self.threads = set()

  def candidates(self, questions):
    self.batches.append(questions)
    self.threads.add(threading.current_thread())
    if any(question.text == "bad" for question in questions):
      raise ZeroDivisionError("a device failed")
    kinds = {"rationale": "Since {} is so.", "label": "label of {}"}
    return [[Answer(f" {kinds[each.kind].format(each.text)} ")] for each in questions]


def test_rows_are_decoded_in_batches(tmp_path):
  predictor = _Predictor()
  rows = [{"input_text": f"{n}", **({"output_text": "gold"} if n == 3 else {})} for n in range(50)]
  teacher = StudentTeacher(predictor, "t5:mine", batch_size=16)
  request_config = RequestConfig(max_requests_in_flight=32)
  prompt = Prompt(instruction="-")
  config = AnnotationConfig(show_labels=False)
  report = annotate(lambda: rows, tmp_path / "o.jsonl", teacher, prompt, config, request_config)
  written = list(read_rows(tmp_path / "o.jsonl"))
  assert [row["rationale"] for row in written] == [f"Since {n} is so." for n in range(50)]
  assert written[4]["output_text"] == "label of 4"
  assert written[3]["output_text"] == "gold"
  assert written[3]["provenance"]["agrees_with_gold"] is False
  assert all(len(questions) <= 2 * 16 for questions in predictor.batches)
  assert len(predictor.batches) <= 8
  assert len(predictor.threads) == 1
  assert report["statuses"]["answered"] == 50
  # Its answers are in the journal, too.
  predictor.batches.clear()
  teacher = StudentTeacher(predictor, "t5:mine", batch_size=16)
  annotate(lambda: rows, tmp_path / "o.jsonl", teacher, prompt, config, request_config)
  assert not predictor.batches


def test_an_error_of_the_device_ends_the_run(tmp_path):
  teacher = StudentTeacher(_Predictor(), "t5:mine", batch_size=4)
  rows = [{"input_text": "good"}, {"input_text": "bad"}]
  with pytest.raises(ZeroDivisionError, match="a device failed"):
    annotate(
      lambda: rows, tmp_path / "o.jsonl", teacher, Prompt(instruction="-"), AnnotationConfig()
    )


def test_a_request_during_a_batch_is_answered(monkeypatch):
  from dss_jax.teachers.base import TeacherRequest

  class _Slow(_Predictor):
    def candidates(self, questions):
      gate.wait(10)
      return super().candidates(questions)

  gate = threading.Event()
  teacher = StudentTeacher(_Slow(), "t5:mine", batch_size=4)

  async def run():
    first = asyncio.create_task(teacher.ask(TeacherRequest(0, "a", None, "", (), 1, 0.0)))
    await asyncio.sleep(0.1)
    second = asyncio.create_task(teacher.ask(TeacherRequest(1, "b", None, "", (), 1, 0.0)))
    await asyncio.sleep(0)
    gate.set()
    responses = await asyncio.gather(first, second)
    await teacher.close()
    return [response.text for response in responses]

  assert asyncio.run(run()) == [
    "Since a is so.\nAnswer: label of a",
    "Since b is so.\nAnswer: label of b",
  ]
