"""A student as teacher: a T5 checkpoint that was trained here labels and explains rows itself."""

import asyncio
import concurrent.futures
from typing import TYPE_CHECKING

from dss_jax.teachers.base import TeacherRequest, TeacherResponse

if TYPE_CHECKING:
  from dss_jax.student.predictor import Predictor

# A batch that is not full waits so long for more questions.
_LINGER_SECONDS = 0.02


class T5Teacher:
  """Answers by a student's two tasks, in batches on its mesh, greedily.

  The student takes the row's bare input under the prefixes that it was trained with; its
  rationale and label are put together as "RATIONALE\\nAnswer: LABEL".
  """

  is_recorded = False
  retries = 0

  def __init__(self, predictor: "Predictor", name: str, *, batch_size: int):
    self.name = name
    self._predictor = predictor
    self._batch_size = batch_size
    self._waiting: list[tuple[str, asyncio.Future[str]]] = []
    self._runner: asyncio.Task[None] | None = None
    # Decoding runs beside the event loop, one batch at a time.
    self._thread = concurrent.futures.ThreadPoolExecutor(1, "t5_teacher")

  async def ask(self, request: TeacherRequest) -> TeacherResponse:
    answer = asyncio.get_running_loop().create_future()
    self._waiting.append((request.input_text, answer))
    if self._runner is None or self._runner.done():
      self._runner = asyncio.create_task(self._run())
    return TeacherResponse(await answer, finish="stop")

  async def close(self) -> None:
    self._thread.shutdown()

  async def _run(self) -> None:
    loop = asyncio.get_running_loop()
    while self._waiting:
      if len(self._waiting) < self._batch_size:
        await asyncio.sleep(_LINGER_SECONDS)
      batch = self._waiting[: self._batch_size]
      self._waiting = self._waiting[self._batch_size :]
      try:
        texts = await loop.run_in_executor(
          self._thread, self._answers, [input_text for input_text, _ in batch]
        )
      # Handed to whoever waits: an error of the device ends the run with its own message.
      except Exception as error:
        for _, answer in batch:
          if not answer.done():
            answer.set_exception(error)
        continue
      for (_, answer), text in zip(batch, texts, strict=True):
        if not answer.done():
          answer.set_result(text)

  def _answers(self, inputs: list[str]) -> list[str]:
    rationales = self._predictor.answers(inputs, "rationale")
    labels = self._predictor.answers(inputs, "label")
    return [
      f"{rationale.strip()}\nAnswer: {label.strip()}"
      for rationale, label in zip(rationales, labels, strict=True)
    ]
