"""The parameters of a distillation pipeline: defaults, types, bounds, and all errors at once."""

import pytest

from dss_jax.jobs.api_error import ApiError
from dss_jax.jobs.bodies.schema import PARAMETERS, parameter_values, read_parameters

# The table of the service.
DEFAULTS = {
  "teacher_model_reference": "text-unicorn@001",
  "student_model_reference": "text-bison@002",
  "model_display_name": "distilled-student-model",
  "train_steps": 300,
  "learning_rate_multiplier": 1.0,
  "evaluation_data_uri": None,
  "evaluation_interval": 20,
  "enable_early_stopping": True,
  "enable_checkpoint_selection": None,
  "accelerator_type": "GPU",
  "tensorboard_resource_id": None,
  "encryption_spec_key_name": None,
  "location": None,
  "max_context_length": "8k",
  "temperature": 0.0,
  "evaluation_output_root_dir": None,
  "api_endpoint": None,
  "version": "latest",
  "tpu_training_skip_cmek": False,
  # Ours.
  "review_rationales": False,
}
GIVEN = {"project": "p", "dataset_uri": "gs://b/train.jsonl"}


def read(**values):
  problems = []
  return read_parameters({**GIVEN, **values}, problems), problems


def test_the_defaults_are_the_services():
  values, problems = read()
  assert not problems
  assert values == {**GIVEN, **DEFAULTS}
  assert list(PARAMETERS)[:2] == ["project", "dataset_uri"]


@pytest.mark.parametrize(
  ("name", "given", "value"),
  [
    # Protobuf's Struct has no integers.
    ("train_steps", 20.0, 20),
    ("learning_rate_multiplier", 2, 2.0),
    ("enable_early_stopping", False, False),
    ("enable_early_stopping", "false", False),
    ("enable_checkpoint_selection", "default", None),
    ("enable_checkpoint_selection", "true", True),
    ("enable_checkpoint_selection", "false", False),
    ("enable_checkpoint_selection", False, False),
    ("max_context_length", "32k", "32k"),
    ("evaluation_data_uri", "", None),
    ("evaluation_data_uri", None, None),
    ("tensorboard_resource_id", "projects/1/locations/l/tensorboards/2",
     "projects/1/locations/l/tensorboards/2"),
  ],
)  # fmt: skip
def test_values_as_clients_send_them(name, given, value):
  values, problems = read(**{name: given})
  assert not problems
  assert values[name] == value
  assert type(values[name]) is type(value)


def test_a_parameter_may_have_the_documentations_other_name():
  assert read(tuned_model_location="europe-west4")[0]["location"] == "europe-west4"
  assert not read(tuned_model_location="us-east1", location="us-east1")[1]
  _, problems = read(location="us-east1", tuned_model_location="europe-west4")
  assert problems == ["tuned_model_location is 'europe-west4', but its other name says 'us-east1'"]


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("train_steps", 0),
    ("train_steps", -1),
    ("train_steps", 1.5),
    ("train_steps", "300"),
    ("train_steps", True),
    ("train_steps", 10**7),
    ("train_steps", [300]),
    ("learning_rate_multiplier", 0),
    ("learning_rate_multiplier", float("nan")),
    ("learning_rate_multiplier", "1"),
    ("temperature", 1.1),
    ("temperature", -0.1),
    ("evaluation_interval", 0),
    ("enable_early_stopping", "default"),
    ("enable_early_stopping", 1),
    ("enable_checkpoint_selection", "yes"),
    ("accelerator_type", "gpu"),
    ("accelerator_type", ["TPU"]),
    ("max_context_length", "16k"),
    ("max_context_length", 8),
    ("location", "Europe"),
    ("tensorboard_resource_id", "a b"),
    ("dataset_uri", ""),
    ("dataset_uri", {"a": 1}),
    ("model_display_name", "x" * 129),
    ("model_display_name", " "),
    ("project", 7),
  ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(name, value):
  values, problems = read(**{name: value})
  assert len(problems) == 1
  assert problems[0].startswith(f"{name} is ")
  assert ", but must be " in problems[0]
  assert values[name] == {**dict.fromkeys(GIVEN), **DEFAULTS}[name]


def test_all_errors_are_said_at_once():
  problems = []
  read_parameters(
    {"train_stepz": 1, "train_steps": 0, "x" * 500: 1, "temperature": "hot"}, problems
  )
  assert problems == [
    "'train_stepz' is no parameter, did you mean train_steps?",
    f"'{'x' * 60}' is no parameter, leave it out",
    "project is required",
    "dataset_uri is required",
    "train_steps is 0, but must be a whole number from 1 to 1,000,000",
    "temperature is 'hot', but must be a number from 0 to 1",
  ]


def test_the_deprecated_form_is_read():
  old = {
    "train_steps": {"intValue": "20"},
    "temperature": {"doubleValue": 0.5},
    "enable_early_stopping": {"stringValue": "false"},
  }
  given = parameter_values({"parameters": old})
  assert given == {"train_steps": 20, "temperature": 0.5, "enable_early_stopping": "false"}
  values, problems = read(**given)
  assert not problems
  assert (values["train_steps"], values["enable_early_stopping"]) == (20, False)


@pytest.mark.parametrize(
  "old", [{"a": 1}, {"a": {"intValue": "x"}}, {"a": {"boolValue": True}}, {"a": {}},
          {"a": {"intValue": 1, "stringValue": "1"}}, {"a": {"doubleValue": "1e999x"}},
          {"a": {"intValue": [1]}}],
)  # fmt: skip
def test_another_form_is_refused(old):
  with pytest.raises(ApiError, match="must be one of intValue, doubleValue"):
    parameter_values({"parameters": old})


def test_both_forms_at_once_are_refused():
  with pytest.raises(ApiError, match="give one"):
    parameter_values({"parameterValues": {"a": 1}, "parameters": {"a": {"intValue": 1}}})
