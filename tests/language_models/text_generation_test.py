"""The hosted service's classes: jobs, predictions, and arguments that are refused."""

import asyncio
import json
import pathlib
import random
import re
import shutil

import pytest

import dss_jax
from dss_jax import EvaluationTextGenerationSpec, TextGenerationModel, TuningEvaluationSpec
from dss_jax.errors import UserError
from dss_jax.student.registry import Registry
from dss_jax.student.student import Student

DOCS = pathlib.Path(__file__).resolve().parent.parent.parent / "docs" / "python.md"
BYTES = {"DataConfig.vocabulary": "bytes"}


def sums(seed, count):
  dice = random.Random(seed)
  for _ in range(count):
    a, b = dice.randrange(10), dice.randrange(10)
    yield {
      "input_text": f"Add {a} and {b}.",
      "output_text": str(a + b),
      "rationale": f"{a} plus {b} is {a + b}.",
    }


def write(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def documented(tmp_path_factory):
  """A folder in which the examples of docs/python.md have run, one after the other."""
  folder = tmp_path_factory.mktemp("python")
  write(folder / "train.jsonl", sums(1, 40))
  write(folder / "eval.jsonl", sums(2, 12))
  write(folder / "prompts.jsonl", ({"prompt": row["input_text"]} for row in sums(3, 12)))
  blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
  assert len(blocks) == 4
  names = {}
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(folder)
    patch.setenv("DSS_REGISTRY_DIR", str(folder / "registry"))
    for block in blocks:
      exec(block, names)
  return folder, names


@pytest.fixture
def workplace(documented, monkeypatch):
  folder, _ = documented
  monkeypatch.chdir(folder)
  monkeypatch.setenv("DSS_REGISTRY_DIR", str(folder / "registry"))
  return folder


def test_the_documented_examples(documented):
  folder, names = documented
  assert names["job"].state == "PIPELINE_STATE_SUCCEEDED"
  assert names["job"].model_dir == "runs/adder"
  assert repr(names["student"]) == "TextGenerationModel('adder@1')"
  assert Registry(folder / "registry").names() == ["adder"]
  config = Student.open(folder / "runs" / "adder").config
  assert (config.train_steps, config.evaluation.interval_steps) == (4, 2)
  assert (config.student, config.data.eval_dataset) == ("tiny", "eval.jsonl")
  response = names["response"]
  assert response.text == response.candidates[0].text
  raw = response.raw_prediction_response
  assert raw.predictions[0]["content"] == response.text
  assert (raw.model_resource_name, raw.model_version_id) == ("adder", "1")
  assert response.drift == ()
  assert names["figures"]["labelled"] == 12
  assert names["batch"].state == "JOB_STATE_SUCCEEDED"
  lines = (folder / "answers" / "predictions_0001.jsonl").read_text().splitlines()
  answers = [json.loads(line) for line in lines]
  assert [set(answer) for answer in answers] == [{"instance", "predictions", "status"}] * 12
  prompts = (folder / "prompts.jsonl").read_text().splitlines()
  assert [answer["instance"] for answer in answers] == [json.loads(line) for line in prompts]


def test_the_same_call_goes_on(workplace):
  """A finished run is not trained or registered again."""
  arguments = {
    "dataset": "train.jsonl",
    "train_steps": 4,
    "evaluation_spec": TuningEvaluationSpec(evaluation_data="eval.jsonl", evaluation_interval=2),
    "model_display_name": "adder",
    "settings": BYTES,
  }
  model = TextGenerationModel.from_pretrained("tiny")
  tuned = model.distill_from(**arguments).get_tuned_model()
  assert repr(tuned) == "TextGenerationModel('adder@1')"
  with pytest.raises(UserError, match=r"RunConfig.seed was 0, is 1"):
    model.distill_from(**{**arguments, "settings": {**BYTES, "RunConfig.seed": 1}})


def test_a_student_is_tuned_further(workplace):
  """From its registered weights."""
  student = TextGenerationModel.get_tuned_model("adder")
  job = student.tune_model("train.jsonl", train_steps=1, settings=BYTES, model_dir="tuned")
  tuned = job.get_tuned_model()
  assert tuned.folder == workplace / "registry" / "tuned-student-model" / "1"
  lineage = json.loads((tuned.folder / "version.json").read_text())["lineage"]
  assert lineage["initial_checkpoint"] == str(student.folder)
  assert Student.open("tuned").config.loss.alpha == 1.0


def test_a_student_teaches(workplace):
  """It is asked for what rows lack: here nothing."""
  student = TextGenerationModel.get_tuned_model("adder")
  job = TextGenerationModel.from_pretrained("tiny").distill_from(
    dataset="train.jsonl",
    teacher_model=student,
    train_steps=1,
    model_display_name="taught",
    settings=BYTES,
  )
  record = job.get_tuned_model().folder / "version.json"
  assert json.loads(record.read_text())["lineage"]["teacher"] == f"t5:{student.folder}"


def test_a_job_that_fails_says_why(workplace, capfd):
  write(workplace / "bare.jsonl", ({"input_text": row["input_text"]} for row in sums(5, 4)))
  job = TextGenerationModel.from_pretrained("tiny").distill_from(
    dataset="bare.jsonl", model_display_name="bare", settings=BYTES
  )
  with pytest.raises(UserError, match='no row has "output_text" to train on'):
    job.get_tuned_model()
  assert job.state == "PIPELINE_STATE_FAILED"
  assert "bare failed: " in capfd.readouterr().err


def test_predictions(workplace):
  student = TextGenerationModel.from_pretrained("runs/adder")
  response = student.predict("Add 1 and 2.")
  assert response.raw_prediction_response.model_version_id is None
  assert asyncio.run(student.predict_async("Add 1 and 2.", seed=3)).text == response.text
  parts = [part.text for part in student.predict_streaming("Add 1 and 2.")]
  assert "".join(parts) == response.text
  assert student.predict("Add 1 and 2.", temperature=0, top_k=3, top_p=0.5).text == response.text
  if len(response.text) > 1:
    stopped = student.predict("Add 1 and 2.", stop_sequences=[response.text[1]])
    assert response.text.startswith(stopped.text)
    assert response.text[1] not in stopped.text
  assert student.predict("Qu'est-ce que c'est donc, cher ami ?").drift
  counted = student.count_tokens(["a b", "cde"])
  assert (counted.total_tokens, counted.total_billable_characters) == (6, 5)


@pytest.mark.parametrize(
  ("parameters", "says"),
  [
    ({"temperature": 2}, "temperature: is 2.0, but must be from 0 to 1"),
    ({"temperature": "0"}, "temperature: is '0', but must be a number"),
    ({"temperature": True}, "temperature: is True"),
    ({"temperature": float("nan")}, "temperature: is nan"),
    ({"max_output_tokens": 0}, "max_output_tokens: is 0, but must be from 1 to 1024"),
    ({"max_output_tokens": 1.5}, "max_output_tokens: is 1.5, but must be an integer"),
    ({"top_k": 41}, "top_k: is 41"),
    ({"top_p": -0.1}, "top_p: is -0.1"),
    ({"stop_sequences": "."}, "stop_sequences: is '.', but must be a list of texts"),
    ({"stop_sequences": [""]}, r"stop_sequences\[0\]: is empty"),
    ({"candidate_count": 9}, "candidate_count: is 9"),
    ({"logprobs": 6}, "logprobs: is 6"),
    ({"presence_penalty": 3}, "presence_penalty: is 3"),
    ({"logit_bias": [1]}, "logit_bias: is .* must be a dictionary"),
    ({"logit_bias": {"5": 101}}, r"logit_bias\['5'\]: is 101"),
    ({"seed": -1}, "seed: is -1"),
  ],
)
def test_wrong_parameters(parameters, says):
  """Before a student is even opened."""
  model = TextGenerationModel.from_pretrained("tiny")
  for call in (model.predict, model.predict_streaming):
    with pytest.raises(ValueError, match=says) as caught:
      call("Add 1 and 2.", **parameters)
    assert isinstance(caught.value, UserError)
    assert "\n" not in str(caught.value)
  with pytest.raises(ValueError, match=says):
    asyncio.run(model.predict_async("Add 1 and 2.", **parameters))


@pytest.mark.parametrize(
  "parameters",
  [
    {"presence_penalty": -1.0},
    {"frequency_penalty": 1.0},
    {"logit_bias": {"5": 1.0}},
  ],
)
def test_what_the_decoder_does_not_have(workplace, parameters):
  model = TextGenerationModel.get_tuned_model("adder")
  (name,) = parameters
  with pytest.raises(UserError, match=f"^{name} = .*leave out {name}"):
    model.predict("Add 1 and 2.", **parameters)


def test_sampled_candidates(workplace):
  model = TextGenerationModel.get_tuned_model("adder")
  options = {"temperature": 1.0, "candidate_count": 3, "logprobs": 0, "seed": 5}
  response = model.predict("Add 1 and 2.", **options)
  assert len(response.candidates) == 3
  again = model.predict("Add 1 and 2.", **options)
  assert [one.text for one in again.candidates] == [one.text for one in response.candidates]
  for prediction in response.raw_prediction_response.predictions:
    logs = prediction["logprobs"]
    assert "topLogProbs" not in logs
    assert len(logs["tokens"]) == len(logs["tokenLogProbs"])
    assert all(number <= 0 for number in logs["tokenLogProbs"])


def test_likely_tokens(workplace):
  model = TextGenerationModel.get_tuned_model("adder")
  response = model.predict("Add 1 and 2.", logprobs=3)
  logs = response.raw_prediction_response.predictions[0]["logprobs"]
  for log, top in zip(logs["tokenLogProbs"], logs["topLogProbs"], strict=True):
    assert 1 <= len(top) <= 3
    assert max(top.values()) == log


def test_unknown_parameters(workplace):
  model = TextGenerationModel.get_tuned_model("adder")
  with pytest.raises(ValueError, match="there is no 'temprature'; did you mean 'temperature'"):
    model.predict_streaming("Add", temprature=0)
  with pytest.raises(ValueError, match="model_parameters: there is no 'maxOutputTokens'"):
    model.batch_predict(
      dataset="prompts.jsonl",
      destination_uri_prefix="new",
      model_parameters={"maxOutputTokens": 3},
    )


@pytest.mark.parametrize(
  ("arguments", "says"),
  [
    ({"train_steps": 0}, "train_steps: is 0, but must be at least 1"),
    ({"train_steps": "3"}, "train_steps: is '3'"),
    ({"learning_rate_multiplier": -1}, "learning_rate_multiplier: is -1.0"),
    ({"accelerator_type": "NPU"}, "accelerator_type: is 'NPU', but must be 'TPU' or"),
    ({"max_context_length": "16k"}, "max_context_length: is '16k'"),
    ({"model_display_name": "../x"}, "'../x': cannot be a model's name"),
    ({"model_dir": "train.jsonl"}, "train.jsonl: is a file"),
    ({"dataset": "absent.jsonl"}, "absent.jsonl: no such file"),
    ({"dataset": 3}, "dataset: is 3, but must be a text"),
    ({"settings": {"RunConfig.sed": 1}}, "settings: there is no 'RunConfig.sed'; did you mean"),
    ({"settings": {"RunConfig.seed": -1}}, r"settings\['RunConfig.seed'\]: RunConfig.seed = -1"),
    ({"teacher_model": "palm"}, "palm"),
    ({"teacher_model": 3}, "teacher_model: is 3, but must be openai:MODEL"),
    ({"teacher_model": "t5:absent"}, "absent: is no folder"),
    ({"evaluation_spec": "eval.jsonl"}, "evaluation_spec: is 'eval.jsonl', but must be a Tuning"),
    (
      {"evaluation_spec": TuningEvaluationSpec(evaluation_interval=0)},
      "evaluation_spec.evaluation_interval: is 0",
    ),
    (
      {"evaluation_spec": TuningEvaluationSpec(enable_early_stopping=True)},
      "enable_early_stopping: needs evaluation data",
    ),
  ],
)
def test_wrong_tuning_arguments(workplace, arguments, says):
  """Nothing is started or written."""
  before = sorted(workplace.rglob("*"))
  with pytest.raises(UserError, match=says) as caught:
    TextGenerationModel.from_pretrained("tiny").distill_from(
      **{"dataset": "train.jsonl", "settings": BYTES, **arguments}
    )
  assert "\n" not in str(caught.value)
  assert sorted(workplace.rglob("*")) == before


def test_what_cannot_be_opened(workplace):
  for name, says in [
    ("ader", "did you mean adder"),
    ("runs/none", "is not the name of a model"),
    ("", "model_name: is empty"),
    (3, "model_name: is 3"),
  ]:
    with pytest.raises(UserError, match=says):
      TextGenerationModel.from_pretrained(name)
  untrained = TextGenerationModel.from_pretrained("tiny")
  with pytest.raises(UserError, match="tiny: is not trained here"):
    untrained.predict("Add")
  with pytest.raises(UserError, match="teacher_model"):
    untrained.distill_from(dataset="train.jsonl", teacher_model=untrained)
  student = TextGenerationModel.get_tuned_model("adder")
  with pytest.raises(UserError, match=r"task_spec: is 'eval.jsonl'"):
    student.evaluate(task_spec="eval.jsonl")
  with pytest.raises(UserError, match="has 2 files"):
    student.evaluate(task_spec=EvaluationTextGenerationSpec(["a", "b"]))


def test_batches_that_are_refused(workplace):
  model = TextGenerationModel.get_tuned_model("adder")
  with pytest.raises(UserError, match="exists already"):
    model.batch_predict(dataset="prompts.jsonl", destination_uri_prefix="answers")
  (workplace / "bad.jsonl").write_text('{"prompt": "Add 1 and 2."}\n{"text": "Add"}\n')
  with pytest.raises(UserError, match=r'bad.jsonl:2: has no "prompt"'):
    model.batch_predict(dataset=["bad.jsonl"], destination_uri_prefix="new")
  assert not (workplace / "new").exists()


def test_a_run_that_is_gone(workplace, tmp_path):
  """A registered student needs no run."""
  shutil.move(workplace / "runs" / "adder", tmp_path / "adder")
  try:
    assert TextGenerationModel.from_pretrained("adder").predict("Add 1 and 2.").candidates
  finally:
    shutil.move(tmp_path / "adder", workplace / "runs" / "adder")


def test_an_unknown_attribute():
  with pytest.raises(AttributeError, match="no attribute 'ChatModel'"):
    _ = dss_jax.ChatModel
