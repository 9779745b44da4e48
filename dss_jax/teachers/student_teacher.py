"""A student as teacher: a T5 checkpoint that was trained here writes labels and rationales."""

import asyncio
import concurrent.futures
from typing import TYPE_CHECKING

from dss_jax.teachers.base import TeacherRequest, TeacherResponse

if TYPE_CHECKING:
  from dss_jax.student.predictor import Predictor

# How long an incomplete batch waits for more requests.
_BATCH_WAIT_SECONDS = 0.02


class StudentTeacher:
  """Decodes a student's rationale and label greedily, in batches on its mesh.

  The student gets the row's input with the prefixes that it was trained with, and no prompt. The
  answer is "RATIONALE\\nAnswer: LABEL".
  """

  is_recorded = False

  def __init__(self, predictor: "Predictor", name: str, *, batch_size: int):
    self.name = name
    self._predictor = predictor
    self._batch_size = batch_size
    self._queue: list[tuple[str, asyncio.Future[str]]] = []
    self._decoding: asyncio.Task[None] | None = None
    # One thread: decoding must not block the event loop, and runs one batch at a time.
    self._executor = concurrent.futures.ThreadPoolExecutor(1, "t5_teacher")

  async def ask(self, request: TeacherRequest) -> TeacherResponse:
    answer = asyncio.get_running_loop().create_future()
    self._queue.append((request.input_text, answer))
    if self._decoding is None or self._decoding.done():
      self._decoding = asyncio.create_task(self._run())
    return TeacherResponse(await answer, finish="stop")

  async def close(self) -> None:
    self._executor.shutdown()

  async def _run(self) -> None:
    loop = asyncio.get_running_loop()
    while self._queue:
      if len(self._queue) < self._batch_size:
        await asyncio.sleep(_BATCH_WAIT_SECONDS)
      batch = self._queue[: self._batch_size]
      self._queue = self._queue[self._batch_size :]
      try:
        texts = await loop.run_in_executor(
          self._executor, self._answers, [input_text for input_text, _ in batch]
        )
      # Raised in the waiting requests, so that the run ends with the device's own message.
      except Exception as error:
        for _, answer in batch:
          if not answer.done():
            answer.set_exception(error)
        continue
      for (_, answer), text in zip(batch, texts, strict=True):
        if not answer.done():
          answer.set_result(text)

  def _answers(self, inputs: list[str]) -> list[str]:
    from dss_jax.student.questions import Question

    # Both kinds in one run, so that labels fill the slots that rationales leave.
    questions = [Question(text, kind) for kind in ("rationale", "label") for text in inputs]
    texts = [answers[0].text.strip() for answers in self._predictor.candidates(questions)]
    rationales, labels = texts[: len(inputs)], texts[len(inputs) :]
    return [
      f"{rationale}\nAnswer: {label}" for rationale, label in zip(rationales, labels, strict=True)
    ]
