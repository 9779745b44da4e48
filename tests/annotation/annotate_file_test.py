"""annotate_file: figures of recorded answers, default prompts, dry run, invalid options."""

import json

import pytest

from dss_jax.annotation.annotate_file import (
  TeacherOptions,
  annotate_file,
  dry_run_file,
  prompt_path,
)
from dss_jax.annotation.outcome import AnnotationConfig
from dss_jax.annotation.run import RequestConfig
from dss_jax.annotation.usage import Prices
from dss_jax.data.records import write_rows
from dss_jax.errors import UserError


@pytest.mark.parametrize(
  ("task", "name", "rows", "parsed", "agreeing"),
  [
    ("cqa", "train", 9741, 9738, 7234),
    ("cqa", "test", 1221, 1221, 943),
    ("svamp", "train", 800, 787, 594),
    ("esnli", "valid", 9842, 9838, 7201),
  ],
)
def test_recorded_answers_give_the_published_figures(
  task, name, rows, parsed, agreeing, shared, tmp_path
):
  folder = shared / "data" / task
  report = annotate_file(
    folder / f"{name}.jsonl",
    tmp_path / "out.jsonl",
    TeacherOptions(teacher=f"recorded:{folder / name}_palm_cot.jsonl"),
    AnnotationConfig(),
    RequestConfig(),
    task=task,
  )
  assert [report[key] for key in ("rows", "parsed", "compared_with_gold", "agreeing")] == [
    rows, parsed, rows, agreeing,
  ]  # fmt: skip
  assert report["with_rationale"] == parsed
  assert report["labelled"] == rows
  assert not list(tmp_path.glob("*.answers.jsonl"))


def test_invalid_rows_fail_before_any_request(server, quick_teacher, tmp_path):
  data = tmp_path / "in.jsonl"
  data.write_text('{"input_text": "row 1"}\n{"input": "row 2"}\n')
  options = TeacherOptions(teacher="openai:m", url=server.url)
  with pytest.raises(UserError, match=r"in.jsonl:2: \"input_text\" is missing"):
    annotate_file(data, tmp_path / "o.jsonl", options, AnnotationConfig(), RequestConfig())
  assert not server.requests
  assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_default_prompt_is_saved_and_can_be_edited(server, tmp_path, monkeypatch, numbered):
  monkeypatch.delenv("OPENAI_API_KEY", raising=False)
  data, output = tmp_path / "in.jsonl", tmp_path / "o.jsonl"
  known = [{"input_text": f"known row {n}?", "output_text": "yes", "rationale": "It is so."}
           for n in range(3)]  # fmt: skip
  write_rows(data, known + numbered(4))
  server.answer = lambda row: f"Row {row} is so.\nAnswer: yes"
  options = TeacherOptions(teacher="openai:m", url=server.url)
  report = annotate_file(data, output, options, AnnotationConfig(), RequestConfig())
  assert report["statuses"] == {
    "failed": 0, "unasked": 0, "unparsable": 0, "undecided": 0, "answered": 4, "untouched": 3,
  }  # fmt: skip
  assert "known row 2?" in json.dumps(server.bodies[0])
  path = tmp_path / "o.jsonl.prompt.yaml"
  assert str(path) == prompt_path(output)
  path.write_text(path.read_text().replace("You are given a text.", "EDITED"))
  annotate_file(data, output, options, AnnotationConfig(), RequestConfig())
  assert len(server.requests) == 8
  assert "EDITED" in json.dumps(server.bodies[-1])


def test_dry_run_sends_and_writes_nothing(numbered, tmp_path):
  data = tmp_path / "in.jsonl"
  write_rows(data, numbered(100))
  request_config = RequestConfig(prices=Prices(1.0, 2.0))
  options = TeacherOptions(teacher="openai:m", url="http://127.0.0.1:9/v1")
  config = AnnotationConfig(samples=2, temperature=0.7)
  expected = dry_run_file(data, options, config, request_config, prompt="svamp")
  assert (expected["rows"], expected["requests"]) == (100, 200)
  assert len(expected["prompts"]) == 3
  assert "[system]\nSolve the arithmetic word problem." in expected["prompts"][0]
  assert "row 2: there are 2" in expected["prompts"][2]
  size = len(expected["prompts"][0].encode())
  assert 0.8 * size / 4 < expected["expected_prompt_tokens"] / 200 < 1.2 * size / 4
  assert expected["expected_completion_tokens"] == 200 * 80
  assert expected["most_completion_tokens"] == 200 * 256
  tokens = expected["expected_prompt_tokens"] + 2 * expected["expected_completion_tokens"]
  assert expected["expected_cost"] == pytest.approx(tokens / 1e6, rel=1e-3)
  assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"teacher": "gpt"}, "must be one of openai:MODEL, recorded:FILE, t5:MODEL"),
    ({"teacher": "openai:"}, "must be one of"),
    ({"teacher": "recorded:nowhere.jsonl"}, "nowhere.jsonl: no such file"),
    ({"teacher": "recorded:in.jsonl"}, "in.jsonl:1: not a recorded answer"),
    ({"teacher": "recorded:in.jsonl", "url": "http://h/v1"}, "need openai:MODEL"),
    ({"output": "gs://bucket/o.jsonl"}, "give a local file"),
    ({"output": "-"}, "give a local file"),
    ({"output": "none/o.jsonl"}, "its folder does not exist"),
    ({"output": "."}, "is a folder"),
    ({"output": "in.jsonl"}, "is the input"),
    ({"teacher": "t5:d", "config": AnnotationConfig(temperature=1.0)}, "decodes greedily"),
  ],
)
def test_invalid_options(changes, message, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  write_rows("in.jsonl", [{"input_text": "row 1"}])
  given = {
    "teacher": "openai:m",
    "url": None,
    "output": "o.jsonl",
    "config": AnnotationConfig(),
    **changes,
  }
  options = TeacherOptions(teacher=given["teacher"], url=given["url"])
  with pytest.raises(UserError, match=message):
    annotate_file(
      "in.jsonl", given["output"], options, given["config"], RequestConfig(), prompt="cqa"
    )
  assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_recorded_answers_are_read_by_the_parser_of_the_task(tmp_path):
  """A task file has no shipped prompt; recorded answers do not follow the default one."""
  (tmp_path / "task.py").write_text(
    "import dataclasses\nfrom dss_jax.data.task_files import load_task\n"
    "TASK = dataclasses.replace(load_task('svamp'), name='mine')\n"
  )
  data, output = tmp_path / "in.jsonl", tmp_path / "o.jsonl"
  published = [{"input": f"{n} and 1?", "label": f"( {n}.0 + 1.0 )"} for n in range(12)]
  data.write_text("\n".join(map(json.dumps, published)))
  answers = [
    {"index": n, "llm_output": f"It is {n} and 1. The answer is ({n} + 1)."} for n in range(12)
  ]
  (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, answers)))
  options = TeacherOptions(teacher=f"recorded:{tmp_path / 'r.jsonl'}")
  for _ in range(2):
    # The second run reads the prompt that the first one saved.
    report = annotate_file(
      data, output, options, AnnotationConfig(), RequestConfig(), task=str(tmp_path / "task.py")
    )
    assert (report["statuses"]["answered"], report["agreeing"]) == (12, 12)
    assert prompt_path(output) in {str(path) for path in tmp_path.iterdir()}


def test_dry_run_of_the_completion_api_shows_plain_text(numbered, tmp_path):
  write_rows(tmp_path / "in.jsonl", numbered(1))
  options = TeacherOptions(teacher="openai:m")
  expected = dry_run_file(
    tmp_path / "in.jsonl",
    options,
    AnnotationConfig(),
    RequestConfig(api="completion"),
    prompt="svamp",
  )
  (text,) = expected["prompts"]
  assert text.startswith("Solve the arithmetic word problem.")
  assert text.endswith("Q: row 0: there are 0 and 1 more, how many?\nA:")
