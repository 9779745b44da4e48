"""Batch prediction: the prompts of files are answered in the background."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dss_jax.data.published_rows import read_objects
from dss_jax.errors import UserError
from dss_jax.language_models.arguments import ArgumentError
from dss_jax.language_models.decoding import Parameters, decode
from dss_jax.language_models.jobs import BatchPredictionJob
from dss_jax.storage.atomic import make_folder
from dss_jax.storage.files import exists, join

if TYPE_CHECKING:
  from dss_jax.student.student import Student

OUTPUT = "predictions_0001.jsonl"
# So many prompts are in memory, and sorted by length, at a time.
_WINDOW_ROWS = 2048


def batch_prediction_job(
  student: "Student", files: Sequence[str], destination: str, parameters: Parameters
) -> BatchPredictionJob:
  """Starts a job that writes an answer for each line of the files.

  Raises UserError if a line has no prompt, or there is an output already.
  """
  output = join(destination, OUTPUT)
  if exists(output):
    raise ArgumentError(f"destination_uri_prefix: {output} exists already; give another folder")
  rows = sum(1 for _ in _prompts(files))
  if not rows:
    raise ArgumentError('dataset: the files have no lines; give lines like {"prompt": "..."}')

  def answer() -> dict[str, Any]:
    from dss_jax.config.schema import MeshConfig
    from dss_jax.data.records import write_rows
    from dss_jax.parallel.mesh import make_mesh
    from dss_jax.storage.cache import keep_compiled_programs
    from dss_jax.student.predictor import Predictor

    keep_compiled_programs()
    batch_size = student.config.batch_size
    mesh = make_mesh(MeshConfig(), batch_size)
    predictor = Predictor(student, mesh, batch_size=batch_size)
    make_folder(destination)
    write_rows(output, _answered(predictor, files, parameters))
    return {"output": output, "rows": rows}

  return BatchPredictionJob(f"batch prediction into {destination}", output, answer)


def _prompts(files: Sequence[str]) -> Iterator[dict[str, str]]:
  """Yields each line as it is, with its prompt under "prompt" or "input_text"."""
  for file in files:
    for line, values in read_objects(file):
      prompt = values.get("prompt", values.get("input_text"))
      if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(
          f'{file}:{line}: has no "prompt"; each line is an object like {{"prompt": "..."}}'
        )
      yield values


def _answered(
  predictor: Any, files: Sequence[str], parameters: Parameters
) -> Iterator[dict[str, Any]]:
  from dss_jax.student.drift import DriftCounter, DriftDetector

  drift = DriftCounter(DriftDetector.of(predictor.student))
  window: list[dict[str, str]] = []

  def answers() -> Iterator[dict[str, Any]]:
    prompts = [values.get("prompt") or values["input_text"] for values in window]
    drift.add(prompts)
    for values, predictions in zip(window, decode(predictor, prompts, parameters), strict=True):
      yield {"instance": values, "predictions": predictions, "status": ""}

  for values in _prompts(files):
    window.append(values)
    if len(window) == _WINDOW_ROWS:
      yield from answers()
      window.clear()
  if window:
    yield from answers()
  drift.say()
