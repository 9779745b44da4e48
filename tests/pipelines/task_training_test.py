"""`dss distill --task --teacher`: the teacher completes the task's rows before training."""

import json

import pytest

from dss_jax.config.gin_loader import Binding, load_config
from dss_jax.config.schema import RunConfig
from dss_jax.data.pipeline import sources
from dss_jax.data.records import read_rows
from dss_jax.errors import UserError
from dss_jax.pipelines.annotate_stage import annotate_training_rows

ROWS = 30
# svamp's validation split: every tenth row of its training file.
TRAINED = [number for number in range(ROWS) if number % 10]


def answer(number):
  return f"There are {number} and 1 more. The answer is ({number} + 1)."


def write_answers(path, texts):
  lines = [json.dumps({"index": index, "llm_output": text}) for index, text in texts.items()]
  path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def data_dir(tmp_path):
  """svamp's published file without recorded answers; rows 4 and 5 have another label."""
  folder = tmp_path / "svamp"
  folder.mkdir()
  with (folder / "train.jsonl").open("w") as file:
    for number in range(ROWS):
      label = "( 0.0 + 0.0 )" if number in (4, 5) else f"( {number}.0 + 1.0 )"
      row = {"input": f"row {number}: there are {number} and 1 more, how many?", "label": label}
      file.write(json.dumps(row) + "\n")
  return folder


@pytest.fixture
def config(tmp_path, data_dir):
  """A function that returns the config of a run on the task, with changes."""

  def make(**changes):
    values = {
      "MODEL_DIR": str(tmp_path / "model"),
      "MIXTURE_OR_TASK_NAME": "svamp",
      "DATA_DIR": str(data_dir),
      "VOCABULARY": "bytes",
      **changes,
    }
    settings = [Binding(name, value, "test") for name, value in values.items()]
    return load_config(RunConfig, ["runs/distill.gin"], settings)

  return make


@pytest.fixture
def served(config, server, monkeypatch):
  """As config, with the faulty server as teacher."""
  monkeypatch.delenv("OPENAI_API_KEY", raising=False)
  server.answer = answer

  def make(**changes):
    teacher = {"TeacherConfig.name": "openai:m", "TeacherConfig.url": server.url}
    return config(**teacher, **changes)

  return make


def rows_of(path):
  return {int(row["input_text"].split()[1][:-1]): row for row in read_rows(path)}


def test_recorded_answers_use_row_numbers_of_the_task_file(config, tmp_path):
  recorded = tmp_path / "recorded.jsonl"
  write_answers(recorded, {number: answer(number) for number in range(ROWS)})
  path, figures = annotate_training_rows(config(**{"TeacherConfig.name": f"recorded:{recorded}"}))
  assert (figures["rows"], figures["agreeing"]) == (len(TRAINED), len(TRAINED) - 2)
  rows = rows_of(path)
  assert list(rows) == TRAINED
  assert all(row["rationale"] == f"There are {n} and 1 more." for n, row in rows.items())
  # The task's labels and their spelling do not change.
  assert rows[3]["output_text"] == "( 3.0 + 1.0 )"


def test_training_uses_the_split_and_metric_of_the_task(served, server):
  run = served()
  path, figures = annotate_training_rows(run)
  assert figures["statuses"]["answered"] == len(TRAINED) - 2
  # The rationale leads to another label than the one shown, so it is rejected.
  assert figures["statuses"]["unparsable"] == 2
  assert "Solve the arithmetic word problem" in json.dumps(server.bodies[0])
  train, evaluation = sources(run.data, path)
  assert train.name == "svamp_train"
  assert train.metric(["(1 + 2)"], ["3"])["accuracy"] == 100
  assert (train.summary.labelled, train.summary.with_rationale) == (len(TRAINED), len(TRAINED) - 2)
  assert (evaluation.name, evaluation.summary.rows) == ("svamp_validation", ROWS - len(TRAINED))
  # Without a teacher, the task needs its recorded answers.
  with pytest.raises(UserError, match=r"train_palm_cot.jsonl: task svamp needs this file"):
    sources(run.data)


def test_only_incomplete_rows_are_requested(served, server, data_dir):
  texts = {number: answer(number) for number in range(ROWS)}
  texts |= {7: "no idea", 11: "none"}
  write_answers(data_dir / "train_palm_cot.jsonl", texts)
  path, figures = annotate_training_rows(served())
  assert sorted(row for row, _ in server.requests) == [7, 11]
  assert figures["statuses"]["untouched"] == len(TRAINED) - 2
  assert rows_of(path)[7]["rationale"] == "There are 7 and 1 more."


def test_teacher_labels(served, server):
  path, figures = annotate_training_rows(served(**{"TeacherConfig.labels": "teacher"}))
  assert {row for row, _ in server.requests} == set(TRAINED)
  rows = rows_of(path)
  assert rows[4]["output_text"] == "(4 + 1)"
  assert rows[4]["provenance"]["gold_label"] == "( 0.0 + 0.0 )"
  assert figures["agreeing"] == len(TRAINED) - 2


def test_an_interrupted_annotation_is_resumed(served, server, tmp_path):
  """An interrupted run requests the rest; a complete one requests nothing."""
  server.fault = lambda row, attempt: (401, b"{}", ()) if row > 20 else None
  with pytest.raises(UserError, match="HTTP 401"):
    annotate_training_rows(served(**{"TeacherConfig.max_requests_in_flight": 4}))
  assert not (tmp_path / "model" / "annotated.jsonl").exists()
  answered = set(server.completed)
  assert answered
  server.fault = lambda row, attempt: None
  asked = len(server.requests)
  first = annotate_training_rows(served())
  assert not {row for row, _ in server.requests[asked:]} & answered
  asked = len(server.requests)
  assert annotate_training_rows(served()) == first
  assert len(server.requests) == asked
