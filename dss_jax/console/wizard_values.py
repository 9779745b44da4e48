"""The values of the form for a new distillation: its steps, its fields, and the job they make."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from starlette.datastructures import FormData

from dss_jax.console.forms import text_of
from dss_jax.jobs.bodies.schema import PARAMETERS, parameter_values
from dss_jax.jobs.store import Job

TEMPLATE = "https://us-kfp.pkg.dev/ml-pipeline/distillation/distillation/v1.0.0"
REVIEW = "review_rationales"
KEY = "encryption_spec_key_name"
# The data whose report was shown last, of each step that has some.
EXAMINED, EVALUATION_EXAMINED = "examined", "evaluation_examined"
_OUTPUT = "gcsOutputDirectory"


class FormField(NamedTuple):
  """A field of the form.

  Attributes:
    name: of the pipeline's parameter, if there is one.
    label: as people read it.
    kind: "whole" and "number" are sent as such, "flag" is a checkbox.
  """

  name: str
  label: str
  default: str = ""
  kind: str = "text"


class Step(NamedTuple):
  name: str
  title: str
  fields: tuple[FormField, ...]


STEPS = (
  Step("model", "Model details", (
    FormField("teacher_model_reference", "Teacher"),
    FormField("student_model_reference", "Student"),
    FormField("model_display_name", "Name of the new model"),
    FormField("location", "Region", "us-central1"),
    FormField("accelerator_type", "Accelerator"),
  )),
  Step("dataset", "Data set", (
    FormField("dataset_uri", "Training data"),
    FormField(EXAMINED, "Report"),
    FormField("output", "Folder for the results"),
  )),
  Step("evaluation", "Evaluation", (
    FormField("evaluation_kind", "Evaluation data", "none"),
    FormField("evaluation_data_uri", "Evaluation data"),
    FormField(EVALUATION_EXAMINED, "Report"),
    FormField("split_percent", "Share of the rows", "10"),
    FormField("evaluation_interval", "Steps between evaluations", "20", "whole"),
    FormField("enable_early_stopping", "Early stopping", "true", "flag"),
    FormField("enable_checkpoint_selection", "Checkpoint selection", "default"),
  )),
  Step("advanced", "Advanced options", (
    FormField("train_steps", "Training steps", "300", "whole"),
    FormField("learning_rate_multiplier", "Learning rate multiplier", "1.0", "number"),
    FormField("max_context_length", "Longest input", "8k"),
    FormField("temperature", "Temperature of the teacher", "0", "number"),
    FormField(REVIEW, "Review the rationales before training", "", "flag"),
    FormField(KEY, "Encrypt the job with a key"),
  )),
  Step("summary", "Summary", ()),
)  # fmt: skip
_FIELDS = {field.name: field for step in STEPS for field in step.fields}
# Another name of a field in the API's messages.
_NAMES = {_OUTPUT: "output", "kmsKeyName": KEY}


class Problem(NamedTuple):
  """What is wrong with a field; "" is none in particular."""

  field: str
  message: str


def defaults() -> dict[str, str]:
  """Returns the values that the form begins with."""
  return {name: field.default for name, field in _FIELDS.items()}


def step_number(name: str) -> int:
  """Returns the place of a step; of an unknown one, the first."""
  names = [step.name for step in STEPS]
  return names.index(name) if name in names else 0


def read_values(form: FormData, step: Step) -> dict[str, str]:
  """Returns the values of a form that was sent from a step; the others' fields are in it, too."""
  values = {name: text_of(form, name, field.default) for name, field in _FIELDS.items()}
  shown = {field.name for field in step.fields}
  for name, field in _FIELDS.items():
    if field.kind == "flag" and name in shown:
      # A checkbox that is off is not sent.
      values[name] = text_of(form, name)
  return values


def values_of(job: Job) -> dict[str, str]:
  """Returns the values that make a job like another one."""
  runtime = job.request.get("runtimeConfig", {})
  given = parameter_values(runtime)
  values = defaults()
  for name, value in given.items():
    name = "location" if name == "tuned_model_location" else name
    if name in values and value is not None:
      values[name] = str(value).lower() if isinstance(value, bool) else f"{value}"
  for name in ("teacher_model_reference", "student_model_reference", "model_display_name"):
    values[name] = values[name] or str(PARAMETERS[name].default)
  values["accelerator_type"] = job.accelerator
  values["location"] = str(given.get("location") or job.location)
  values["output"] = runtime.get(_OUTPUT) or ""
  # A copy of an encrypted job is encrypted, too, however the key was named.
  values[KEY] = values[KEY] or job.request.get("encryptionSpec", {}).get("kmsKeyName", "")
  values["evaluation_kind"] = "own" if values["evaluation_data_uri"] else "none"
  if REVIEW in values and values[REVIEW] != "true":
    values[REVIEW] = ""
  if values["enable_early_stopping"] != "true":
    values["enable_early_stopping"] = ""
  return values


def body_of(values: Mapping[str, str], project: str) -> dict[str, Any]:
  """Returns the PipelineJob that the values ask for, as a client of the API sends it."""
  given: dict[str, Any] = {"project": project}
  for name in PARAMETERS:
    field = _FIELDS.get(name)
    if field is None or (name in (REVIEW, KEY, "dataset_uri") and not values[name]):
      continue
    given[name] = _typed(values[name], field.kind)
  evaluation = {
    "none": None,
    "own": values["evaluation_data_uri"],
    # Until the rows are held out, at the end, the data stand for them.
    "split": values["dataset_uri"],
  }.get(values["evaluation_kind"])
  given["evaluation_data_uri"] = evaluation
  return {
    "displayName": values["model_display_name"][:128],
    "templateUri": TEMPLATE,
    "runtimeConfig": {_OUTPUT: values["output"] or None, "parameterValues": given},
  }


def _typed(text: str, kind: str) -> Any:
  """Returns a text as its kind; as it is where it is not of that kind, which the API then says."""
  if kind == "flag":
    return text == "true"
  try:
    return {"whole": int, "number": float}[kind](text) if kind != "text" else text
  except ValueError:
    return text


def own_problems(values: Mapping[str, str]) -> list[Problem]:
  """Returns what is wrong in the fields that are no parameters of the API."""
  found = []
  if values["evaluation_kind"] == "own" and not values["evaluation_data_uri"]:
    found.append(
      Problem("evaluation_data_uri", "Give evaluation data, or choose another kind of evaluation")
    )
  if values["evaluation_kind"] == "split":
    percent = _typed(values["split_percent"], "number")
    if not isinstance(percent, float) or not 1 <= percent <= 50:
      found.append(
        Problem("split_percent", f"Share of the rows is {values['split_percent'][:40]!r}, but must"
                " be a number from 1 to 50")
      )  # fmt: skip
  if values["evaluation_kind"] not in ("none", "own", "split"):
    found.append(Problem("evaluation_kind", "Choose one of the kinds of evaluation data"))
  return found


def api_problems(sentences: Iterable[str]) -> list[Problem]:
  """Returns the API's sentences as those of the form's fields, with the fields' labels."""
  found = []
  for sentence in sentences:
    name = sentence.replace(":", " ", 1).split(" ", 1)[0]
    own = name.rpartition(".")[2]
    field = _FIELDS.get(_NAMES.get(own, own))
    if field is None:
      found.append(Problem("", sentence[:1].upper() + sentence[1:]))
      continue
    rest = sentence[len(name) :].removeprefix(":").strip()
    found.append(Problem(field.name, f"{field.label} {rest}"))
  return found


def first_step(problems: Sequence[Problem], last: int) -> int | None:
  """Returns the first step with a problem, none after `last`; None if there is none.

  A problem of no field is one of the summary.
  """
  wrong = {problem.field for problem in problems}
  for number, step in enumerate(STEPS[: last + 1]):
    if wrong & {field.name for field in step.fields}:
      return number
  return last if last == len(STEPS) - 1 and problems else None
