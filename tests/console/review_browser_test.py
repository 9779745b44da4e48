"""The review of rationales in a real browser, up to the answer of the student: browser_test.py."""

import json
import os
import pathlib
import subprocess

import pytest

from tests.console.browser_test import CHROMIUM, PYTHON, TOKEN, pytestmark, serving
from tests.e2e.conftest import sums
from tests.jobs.workplace import Workplace, pipeline

__all__ = ["pytestmark"]

# Of the second row the label is not mentioned, the third ends within a sentence, the fourth has
# no label at all.
ANSWERS = {
  1: "It is a sum.\nThe answer is 7",
  2: "The two of them together make,\nThe answer is 3",
  3: "I do not know.",
}


@pytest.fixture
def workplace(tmp_path):
  workplace = Workplace(tmp_path / "work")
  answers = [
    {"index": number, "llm_output": ANSWERS.get(
      number, f"{row['rationale']}\nThe answer is {row['output_text']}")}
    for number, row in enumerate(sums(1, 40))
  ]  # fmt: skip
  workplace.write("../teacher.jsonl", answers)
  return workplace


@pytest.mark.timeout(1800)
def test_a_review_in_a_browser(workplace, tmp_path):
  service = workplace.open()
  parameters = {
    "review_rationales": True,
    "train_steps": 60,
    "evaluation_data_uri": "gs://my-bucket/eval.jsonl",
    "evaluation_interval": 20,
    "model_display_name": "Sums",
  }
  body = pipeline(parameters, displayName="Sums with a review")
  job = service.create("pipelineJobs", "my-project", "europe-west4", body, job_id="reviewed")
  shots = pathlib.Path(os.environ.get("DSS_SHOTS") or tmp_path / "shots")
  shots.mkdir(exist_ok=True)
  script = pathlib.Path(__file__).with_name("review_browser_calls.py")
  environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
  with serving(workplace) as address:
    result = subprocess.run(
      [PYTHON, str(script), address, TOKEN, CHROMIUM, job.name, str(shots)],
      capture_output=True,
      text=True,
      check=False,
      env=environment,
    )
  assert result.returncode == 0, result.stderr
  found = json.loads(result.stdout.splitlines()[-1])
  assert len(set(found.pop("looked at"))) == 2 + 4 * 8
  conflict = found.pop("conflict")
  assert "was edited since you read it, last by DSS_JOBS_TOKEN-1" in conflict
  assert found == {
    "paused": "Paused",
    "first has concerns": True,
    "said": "Row 1 is saved.",
    "focus went on": True,
    "figures": ["Rows", "40", "With concerns", "3", "Edited", "1", "Left out", "0"],
    "typed stays": "1001",
    "refused": "Error:\nRow 1: has neither label nor rationale; leave it out of training.",
    "without scripts": ["row-3", "Without a script."],
    "state": "Succeeded",
    "answer": True,
    "probability": 1,
    "timing": True,
    "drift": True,
    "lineage": True,
    "report": "12",
    "cookies of the report": "SecurityError",
    "console": [],
    "accessibility": [],
    "too wide": [],
  }
  reviewed = service.folder(job) / "model" / "annotated.reviewed.jsonl"
  rows = [json.loads(line) for line in reviewed.read_text().splitlines()]
  assert len(rows) == 39
  assert (rows[0]["output_text"], rows[0]["rationale"]) == (
    "1001", "A person in a browser knows better.",
  )  # fmt: skip
  assert rows[1]["rationale"] == "Without a script."
  card = json.loads((reviewed.parent / "model.json").read_text())
  assert card["data"]["report"]["annotation"]["review"] == {"rows": 40, "edited": 2, "left_out": 1}
