"""TextGenerationModel: a student, or what becomes one, with the hosted service's methods."""

import asyncio
import functools
import os
import pathlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from dss_jax.config.schema import student_names
from dss_jax.errors import UserError
from dss_jax.language_models.arguments import (
  ArgumentError,
  check_names,
  check_text,
  check_texts,
)
from dss_jax.language_models.batch_prediction import batch_prediction_job
from dss_jax.language_models.decoding import (
  DEFAULT_MAX_OUTPUT_TOKENS,
  NAMES,
  Parameters,
  check_decoder,
  decode,
  stream,
)
from dss_jax.language_models.jobs import BatchPredictionJob, TuningJob
from dss_jax.language_models.responses import (
  CountTokensResponse,
  MultiCandidateTextGenerationResponse,
  Prediction,
  TextGenerationResponse,
)
from dss_jax.language_models.specs import (
  EvaluationTextGenerationSpec,
  TuningEvaluationSpec,
  check_evaluation_spec,
)
from dss_jax.language_models.tuning import check_run, teacher_text, tuning_config
from dss_jax.progress import say
from dss_jax.storage.files import PathLike, is_url
from dss_jax.student.registry import Registry

if TYPE_CHECKING:
  from dss_jax.student.drift import DriftDetector
  from dss_jax.student.predictor import Predictor
  from dss_jax.student.student import Student

# The file that a student's folder has, and no other checkpoint.
_CONFIG = "config.gin"


class TextGenerationModel:
  """A model that answers prompts, or that a student is trained from.

  Attributes:
    folder: the student's folder; None for a size or a checkpoint, which cannot answer yet.
  """

  def __init__(
    self,
    name: str,
    *,
    folder: pathlib.Path | None = None,
    size: str | None = None,
    version: int | None = None,
    registry: PathLike | None = None,
  ):
    """Use from_pretrained or get_tuned_model."""
    self._name = name
    self.folder = folder
    self._size = size
    self._version = version
    self._registry = registry
    self._lock = threading.Lock()

  def __repr__(self) -> str:
    version = "" if self._version is None else f"@{self._version}"
    return f"TextGenerationModel({f'{self._name}{version}'!r})"

  @classmethod
  def from_pretrained(
    cls, model_name: str, *, registry: PathLike | None = None
  ) -> "TextGenerationModel":
    """Opens a model: a student's folder, NAME[@VERSION] of the registry, a size or a checkpoint.

    What exists under this path wins, then a size ("small"; a registered student of that name is
    "small@default"). A size, or the path of a T5X or Hugging Face checkpoint, is there to be
    distilled and tuned.

    Raises UserError, with similar names, if there is none.
    """
    name = os.fspath(model_name) if isinstance(model_name, os.PathLike) else model_name
    check_text("model_name", name)
    if os.path.exists(name):
      if os.path.isfile(os.path.join(name, _CONFIG)):
        return cls(name, folder=pathlib.Path(name), registry=registry)
      return cls(name, registry=registry)
    if name in student_names():
      return cls(name, size=name, registry=registry)
    if is_url(name):
      return cls(name, registry=registry)
    return cls.get_tuned_model(name, registry=registry)

  @classmethod
  def get_tuned_model(
    cls, tuned_model_name: str, *, registry: PathLike | None = None
  ) -> "TextGenerationModel":
    """Opens a registered student by NAME, NAME@VERSION or NAME@ALIAS."""
    version = Registry(registry).version(check_text("tuned_model_name", tuned_model_name))
    return cls(version.name, folder=version.folder, version=version.number, registry=registry)

  @staticmethod
  def list_tuned_model_names(*, registry: PathLike | None = None) -> list[str]:
    """Returns the names of the registered students."""
    return Registry(registry).names()

  def distill_from(
    self,
    *,
    dataset: str,
    teacher_model: "str | TextGenerationModel | None" = None,
    train_steps: int | None = None,
    learning_rate_multiplier: float | None = None,
    evaluation_spec: TuningEvaluationSpec | None = None,
    accelerator_type: str | None = None,
    model_display_name: str | None = None,
    max_context_length: str | None = None,
    model_dir: str | None = None,
    settings: Mapping[str, Any] | None = None,
  ) -> "TuningJob[TextGenerationModel]":
    """Starts a job that distils a teacher into this model, step by step.

    The same call again goes on from what is in `model_dir`.

    Args:
      dataset: JSONL rows.
      teacher_model: openai:MODEL, recorded:FILE, t5:MODEL or a trained model; None if the rows
        have labels and rationales.
      accelerator_type: "TPU", "GPU" or "CPU"; any by default.
      model_display_name: the name under which the student is registered.
      max_context_length: "8k" or "32k".
      model_dir: the run's folder, by default runs/MODEL_DISPLAY_NAME.
      settings: other fields of the configuration, such as {"DataConfig.vocabulary": "bytes"}.

    Raises UserError if an argument is wrong; nothing was started or written then.
    """
    folder = None
    if isinstance(teacher_model, TextGenerationModel):
      folder = None if teacher_model.folder is None else str(teacher_model.folder.absolute())
    return self._start(
      "distill",
      dataset,
      teacher=teacher_text(teacher_model, folder),
      train_steps=train_steps,
      learning_rate_multiplier=learning_rate_multiplier,
      evaluation_spec=check_evaluation_spec("evaluation_spec", evaluation_spec),
      accelerator_type=accelerator_type,
      display_name=model_display_name or "distilled-student-model",
      max_context_length=max_context_length,
      model_dir=model_dir,
      settings=settings,
    )

  def tune_model(
    self,
    training_data: str,
    *,
    train_steps: int | None = None,
    learning_rate_multiplier: float | None = None,
    tuning_job_location: str | None = None,
    tuned_model_location: str | None = None,
    model_display_name: str | None = None,
    tuning_evaluation_spec: TuningEvaluationSpec | None = None,
    accelerator_type: str | None = None,
    max_context_length: str | None = None,
    model_dir: str | None = None,
    settings: Mapping[str, Any] | None = None,
  ) -> "TuningJob[TextGenerationModel]":
    """Starts a job that trains this model on labels alone; arguments as those of distill_from.

    The locations have no effect: the job runs on this machine.
    """
    if tuning_job_location is not None or tuned_model_location is not None:
      say("tune_model: the locations have no effect, since the job runs on this machine")
    return self._start(
      "tune",
      training_data,
      teacher=None,
      train_steps=train_steps,
      learning_rate_multiplier=learning_rate_multiplier,
      evaluation_spec=check_evaluation_spec("tuning_evaluation_spec", tuning_evaluation_spec),
      accelerator_type=accelerator_type,
      display_name=model_display_name or "tuned-student-model",
      max_context_length=max_context_length,
      model_dir=model_dir,
      settings=settings,
    )

  def predict(
    self,
    prompt: str,
    *,
    max_output_tokens: int | None = DEFAULT_MAX_OUTPUT_TOKENS,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_sequences: Sequence[str] | None = None,
    candidate_count: int | None = None,
    logprobs: int | None = None,
    presence_penalty: float | None = None,
    frequency_penalty: float | None = None,
    logit_bias: dict[Any, float] | None = None,
    seed: int | None = None,
  ) -> MultiCandidateTextGenerationResponse:
    """Answers a prompt, of the form of the training inputs; the arguments are in Parameters.

    Raises UserError if an argument is wrong, or the model is not trained.
    """
    parameters = Parameters(
      max_output_tokens=max_output_tokens,
      temperature=temperature,
      top_k=top_k,
      top_p=top_p,
      stop_sequences=stop_sequences,
      candidate_count=candidate_count,
      logprobs=logprobs,
      presence_penalty=presence_penalty,
      frequency_penalty=frequency_penalty,
      logit_bias=logit_bias,
      seed=seed,
    )
    return self._predict(check_text("prompt", prompt), parameters)

  def predict_streaming(self, prompt: str, **parameters: Any) -> Iterator[TextGenerationResponse]:
    """Returns an iterator over the parts of the answer, as they are decoded.

    The arguments are predict's.
    """
    checked = _parameters(parameters)
    check_text("prompt", prompt)
    if (checked.candidate_count or 1) > 1:
      raise ArgumentError("candidate_count: one answer is streamed; leave it out")
    check_decoder(checked)
    # Raises for a model that is not trained before the first part is asked for.
    _ = self._student
    return self._stream(prompt, checked)

  async def predict_async(
    self, prompt: str, **parameters: Any
  ) -> MultiCandidateTextGenerationResponse:
    """Answers a prompt as predict does, without blocking the event loop."""
    checked = _parameters(parameters)
    return await asyncio.to_thread(self._predict, check_text("prompt", prompt), checked)

  def batch_predict(
    self,
    *,
    dataset: str | list[str],
    destination_uri_prefix: str,
    model_parameters: Mapping[str, Any] | None = None,
  ) -> BatchPredictionJob:
    """Starts a job that answers the prompts of JSONL files, lines like {"prompt": "..."}.

    It writes predictions_0001.jsonl into the folder `destination_uri_prefix`.

    Args:
      model_parameters: predict's.
    """
    files = [dataset] if isinstance(dataset, str) else dataset
    return batch_prediction_job(
      self._student,
      check_texts("dataset", files),
      check_text("destination_uri_prefix", destination_uri_prefix),
      _parameters(check_names("model_parameters", model_parameters, NAMES)),
    )

  def count_tokens(self, prompts: list[str]) -> CountTokensResponse:
    """Counts the tokens of prompts, without prefix and end mark."""
    texts = check_texts("prompts", prompts)
    tokens = self._student.vocabulary.count_tokens(texts)
    characters = sum(len("".join(text.split())) for text in texts)
    return CountTokensResponse(sum(tokens), characters)

  def evaluate(self, *, task_spec: EvaluationTextGenerationSpec) -> dict[str, Any]:
    """Returns the metrics on labelled rows, as `dss evaluate` prints them."""
    if not isinstance(task_spec, EvaluationTextGenerationSpec):
      raise ArgumentError(
        f"task_spec: is {task_spec!r:.60}, but must be an EvaluationTextGenerationSpec"
      )
    file = task_spec.file("task_spec")
    student = self._student
    from dss_jax.config.schema import MeshConfig
    from dss_jax.evaluation.evaluate import evaluate_student, source_for

    source = source_for(student, file, None, None, None)
    return evaluate_student(student, source, MeshConfig()).report

  @functools.cached_property
  def _student(self) -> "Student":
    if self.folder is None:
      raise UserError(
        f"{self._name}: is not trained here, so it cannot answer; train it with distill_from or"
        " tune_model"
      )
    from dss_jax.student.student import Student

    return Student.open(self.folder)

  @functools.cached_property
  def _predictor(self) -> "Predictor":
    """The student's weights, for one prompt at a time."""
    student = self._student
    from dss_jax.config.schema import MeshConfig
    from dss_jax.parallel.mesh import make_mesh
    from dss_jax.storage.cache import keep_compiled_programs
    from dss_jax.student.predictor import Predictor

    keep_compiled_programs()
    return Predictor(student, make_mesh(MeshConfig(), 1), batch_size=1)

  @functools.cached_property
  def _drift(self) -> "DriftDetector | None":
    from dss_jax.student.drift import DriftDetector

    return DriftDetector.of(self._student)

  def _predict(self, prompt: str, parameters: Parameters) -> MultiCandidateTextGenerationResponse:
    # One prompt at a time: threads would compile the same program each.
    with self._lock:
      (predictions,) = decode(self._predictor, [prompt], parameters)
      drift = () if self._drift is None else tuple(self._drift.drift_of(prompt))
    prediction = self._prediction(predictions)
    texts = [one["content"] for one in predictions]
    candidates = [TextGenerationResponse(text, prediction, drift=drift) for text in texts]
    return MultiCandidateTextGenerationResponse(
      texts[0], prediction, drift=drift, candidates=candidates
    )

  def _stream(self, prompt: str, parameters: Parameters) -> Iterator[TextGenerationResponse]:
    with self._lock:
      drift = () if self._drift is None else tuple(self._drift.drift_of(prompt))
      for text in stream(self._predictor, prompt, parameters):
        prediction = self._prediction([{"content": text, "safetyAttributes": {}}])
        yield TextGenerationResponse(text, prediction, drift=drift)

  def _prediction(self, predictions: list[dict[str, Any]]) -> Prediction:
    return Prediction(
      predictions,
      deployed_model_id=str(self.folder),
      model_resource_name=self._name,
      model_version_id=None if self._version is None else str(self._version),
    )

  def _start(
    self,
    kind: Literal["distill", "tune"],
    dataset: str,
    *,
    display_name: str,
    model_dir: str | None,
    **arguments: Any,
  ) -> "TuningJob[TextGenerationModel]":
    from dss_jax.student.registry import check_name

    check_name(check_text("model_display_name", display_name))
    checkpoint = None
    if self._size is None:
      checkpoint = self._name if self.folder is None else str(self.folder.absolute())
    config = tuning_config(
      kind,
      dataset=dataset,
      student=self._size,
      initial_checkpoint=checkpoint,
      display_name=display_name,
      model_dir=model_dir or os.path.join("runs", display_name),
      registry=self._registry,
      **arguments,
    )
    check_run(config)

    def train() -> str:
      from dss_jax.pipelines import distill
      from dss_jax.storage.cache import keep_compiled_programs

      keep_compiled_programs()
      return distill.run(config)["registered"]

    open_model = functools.partial(type(self).get_tuned_model, registry=self._registry)
    return TuningJob(display_name, config.model_dir, train, open_model)


def _parameters(given: Mapping[str, Any]) -> Parameters:
  return Parameters(**check_names("parameters", given, NAMES))
