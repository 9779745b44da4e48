"""`dss distill --teacher`: annotation before training, resuming, and several rationales."""

import dataclasses
import json

import pytest

from dss_jax.annotation.review import Review
from dss_jax.config.gin_loader import Binding, load_config
from dss_jax.config.schema import LABEL, RATIONALE, RunConfig, shipped_folder
from dss_jax.data.pipeline import prepare, sources
from dss_jax.data.records import read_rows, write_rows
from dss_jax.data.sources import TrainingRows, source_from_file
from dss_jax.errors import UserError
from dss_jax.pipelines.annotate_stage import annotate_training_rows
from dss_jax.student.model_dir import check_directory, write_config

ROWS = 20


@pytest.fixture
def config(tmp_path):
  """A function that returns the config of a run with a recorded teacher, with changes."""
  write_rows(tmp_path / "in.jsonl", [{"input_text": f"row {n}"} for n in range(ROWS)])
  with (tmp_path / "recorded.jsonl").open("w") as file:
    for number in range(ROWS):
      text = f"There is 1 and {number}. The answer is (1 + {number})."
      file.write(json.dumps({"index": number, "llm_output": text}) + "\n")

  def make(**changes):
    values = {
      "MODEL_DIR": str(tmp_path / "model"),
      "DATASET": str(tmp_path / "in.jsonl"),
      "VOCABULARY": "bytes",
      "TeacherConfig.name": f"recorded:{tmp_path / 'recorded.jsonl'}",
      "TeacherConfig.prompt": "svamp",
      **changes,
    }
    settings = [Binding(name, value, "test") for name, value in values.items()]
    return load_config(RunConfig, ["runs/distill.gin"], settings)

  return make


def test_rows_are_annotated_into_the_model_dir(config, tmp_path):
  path, figures = annotate_training_rows(config())
  assert path == str(tmp_path / "model" / "annotated.jsonl")
  assert figures["statuses"]["answered"] == ROWS
  source, _ = sources(config().data, path)
  assert (source.summary.labelled, source.summary.with_rationale) == (ROWS, ROWS)
  # A folder with only this annotation is accepted as model directory.
  check_directory(config())


def test_no_annotation_without_a_teacher(config, tmp_path):
  asked = config()
  alone = dataclasses.replace(asked, teacher=dataclasses.replace(asked.teacher, name=None))
  assert annotate_training_rows(alone) == (None, None)
  assert not (tmp_path / "model").exists()


def test_a_resumed_run_sends_nothing(config, tmp_path):
  first = annotate_training_rows(config())
  (tmp_path / "recorded.jsonl").unlink()
  assert annotate_training_rows(config()) == first
  # A setting that does not change answers may differ.
  assert annotate_training_rows(config(**{"TeacherConfig.max_requests_in_flight": 3})) == first
  with pytest.raises(UserError, match=r"recorded.jsonl: no such file"):
    annotate_training_rows(config(**{"TeacherConfig.labels": "teacher"}))


def test_approved_rows_are_trained_on(config, tmp_path):
  """The token store has the edited texts; a row that was left out is not there."""
  path, figures = annotate_training_rows(config())
  review = Review(path)
  with review.locked():
    review.edit(1, 0, {"rationale": "Zero adds nothing.", "output_text": "one"}, "ann", "now")
    review.edit(2, 0, {"left_out": True}, "ann", "now")
    assert annotate_training_rows(config()) == (path, figures)
    review.approve("ann", "now")
  reviewed, with_review = annotate_training_rows(config())
  assert reviewed == str(tmp_path / "model" / "annotated.reviewed.jsonl")
  figures_of_review = {"rows": ROWS, "edited": 1, "left_out": 1}
  assert with_review == {**figures, "review": figures_of_review}
  data = prepare(config().data, (LABEL, RATIONALE), reviewed)
  assert data.train.num_examples == ROWS - 1
  decode = data.vocabulary.decode
  targets = [decode(data.train.target_tokens(0, kind).tolist()) for kind in (LABEL, RATIONALE)]
  assert targets == ["one", "Zero adds nothing."]


def test_a_stamp_without_its_rows_is_ignored(config, tmp_path):
  annotate_training_rows(config())
  (tmp_path / "model" / "annotated.jsonl").unlink()
  annotate_training_rows(config())
  assert len(list(read_rows(tmp_path / "model" / "annotated.jsonl"))) == ROWS


def begin_training(config, tmp_path):
  """Makes the configuration and the first checkpoint of the run."""
  (tmp_path / "model" / "checkpoints" / "1" / "_CHECKPOINT_METADATA").mkdir(parents=True)
  write_config(config)


def test_a_teachers_files_may_move_and_not_change(config, tmp_path):
  prompt = tmp_path / "prompt.yaml"
  prompt.write_text((shipped_folder("tasks") / "prompts" / "svamp.yaml").read_text())
  first = annotate_training_rows(config(**{"TeacherConfig.prompt": str(prompt)}))
  begin_training(config(**{"TeacherConfig.prompt": str(prompt)}), tmp_path)
  prompt = prompt.rename(tmp_path / "moved.yaml")
  recorded = (tmp_path / "recorded.jsonl").rename(tmp_path / "moved.jsonl")
  moved = {"TeacherConfig.name": f"recorded:{recorded}", "TeacherConfig.prompt": str(prompt)}
  check_directory(config(**moved))
  assert annotate_training_rows(config(**moved)) == first
  recorded.write_text(recorded.read_text().replace("There is", "Here is"))
  with pytest.raises(UserError, match="the teacher and its settings are not those"):
    annotate_training_rows(config(**moved))


def test_a_run_that_began_without_a_teacher_gets_none(config, tmp_path):
  begin_training(config(**{"TeacherConfig.name": None}), tmp_path)
  check_directory(config())
  with pytest.raises(UserError, match="began without a teacher"):
    annotate_training_rows(config())


def test_changed_rows_after_training_began_are_an_error(config, tmp_path):
  annotate_training_rows(config())
  write_rows(tmp_path / "in.jsonl", [{"input_text": "row 0"}])
  assert annotate_training_rows(config())[1]["rows"] == 1
  write_rows(tmp_path / "in.jsonl", [{"input_text": "row 1"}])
  begin_training(config(), tmp_path)
  with pytest.raises(UserError, match="not those that this run began with"):
    annotate_training_rows(config())


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"VOCABULARY": "nowhere.model"}, "nowhere.model"),
    ({"EVAL_DATASET": "nowhere.jsonl"}, "nowhere.jsonl: no such file"),
    (
      {"TeacherConfig.filters": ("shape",)},
      r"\('shape',\) must be a tuple, each one of 'agreement', 'gold'",
    ),
    ({"DATASET": None}, "neither of --dataset and --task given"),
    ({"MIXTURE_OR_TASK_NAME": "svamp"}, "both of --dataset and --task given"),
    ({"DATASET": None, "MIXTURE_OR_TASK_NAME": "svamp"}, "--task svamp needs --data-dir"),
    ({"DATASET": None, "MIXTURE_OR_TASK_NAME": "svamp", "DATA_DIR": "."}, "task svamp needs this"),
  ],
)
def test_invalid_settings_fail_before_annotation(changes, message, config, tmp_path):
  with pytest.raises(UserError, match=message):
    annotate_training_rows(config(**changes))
  assert not (tmp_path / "model").exists()


def test_settings_are_applied(config, tmp_path):
  given = {"TeacherConfig.filters": ("unmentioned",), "TeacherConfig.labels": "keep"}
  annotate_training_rows(config(**given))
  rows = list(read_rows(tmp_path / "model" / "annotated.jsonl"))
  assert not any("output_text" in row or "rationale" in row for row in rows)
  assert all(row["provenance"]["dropped_for"] == ["unmentioned"] for row in rows)


def test_training_rows_have_each_rationale_and_each_label_once(tmp_path):
  path = tmp_path / "o.jsonl"
  rows = [
    {"input_text": "a", "output_text": "x", "rationale": "r", "rationales": ["r", "s", "t"]},
    {"input_text": "b", "output_text": "y", "rationale": "u"},
    {"input_text": "c", "output_text": "z", "rationales": "of the user's own"},
    {"input_text": "d", "rationale": "v", "rationales": [3, " ", "v"]},
  ]
  write_rows(path, rows)
  spread = list(TrainingRows(path))
  assert [(row["input_text"], row.get("output_text"), row.get("rationale")) for row in spread] == [
    ("a", "x", "r"), ("a", None, "s"), ("a", None, "t"),
    ("b", "y", "u"), ("c", "z", None), ("d", None, "v"),
  ]  # fmt: skip
  source = source_from_file(path)
  assert source.summary.rows == 4


def test_prepare_trains_on_all_rationales_and_reports_file_rows(config, tmp_path):
  rows = [
    {"input_text": f"{n}", "output_text": "x", "rationale": "r", "rationales": ["r", "s"]}
    for n in range(5)
  ]
  write_rows(tmp_path / "in.jsonl", rows)
  data = prepare(config().data, (LABEL, RATIONALE))
  source = data.report["train_source"]
  assert (source["labelled"], source["with_rationale"], source["further_rationales"]) == (5, 5, 5)
  assert (data.train.target_lengths > 0).sum(axis=0).tolist() == [5, 10]
  assert data.report["train"]["rows"] == 5
