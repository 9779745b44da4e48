"""The command line itself: quick to start, complete help, the same from a wheel."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

from dss_jax.config.schema import (
  DataConfig,
  DistributedConfig,
  EvaluationConfig,
  LossConfig,
  RunConfig,
  TeacherConfig,
)

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
COMMANDS = {
  "distill": ["--model-dir", "--dataset", "--task", "--alpha", "--label-source", "--gin-file"],
  "tune": ["--model-dir", "--dataset", "--task", "--gin-file"],
  "train": ["--gin_file", "--gin.NAME=VALUE"],
  "sweep": ["SWEEP.gin", "--model-dir", "--gin-file"],
  "quickstart": ["--model-dir", "--seed", "--gin"],
  "predict": ["--model", "--output", "--explain", "--max-output-tokens"],
  "evaluate": ["--model", "--dataset", "--split", "test", "--explain", "--text", "--html"],
  "validate": ["FILE", "--eval-dataset", "--vocabulary", "--max-input-tokens", "--json"],
  "export": ["--model", "--format", "--output"],
  "annotate": ["--teacher", "--teacher-labels", "--api", "--prompt", "--samples", "--output"],
  "plan": ["--student", "--mesh", "--input-tokens", "--json"],
}


def test_help_names_every_command(dss):
  text = dss("--help").out
  assert all(f"\n  {command} " in text for command in COMMANDS)
  assert "..." not in text.partition("Commands:")[2]


@pytest.mark.parametrize(("command", "words"), COMMANDS.items())
def test_the_help_of_a_command(dss, command, words):
  outcome = dss(command, "--help")
  assert outcome.code == 0
  assert all(word in outcome.out for word in words)


def test_help_is_shown_without_a_command(dss):
  outcome = dss()
  assert outcome.code == 2
  assert outcome.err.startswith("Usage: dss ")


DEFAULTS = {
  "--train-steps": RunConfig.train_steps,
  "--batch-size": RunConfig.batch_size,
  "--evaluation-interval": EvaluationConfig.interval_steps,
  "--alpha": LossConfig.alpha,
  "--max-input-tokens": DataConfig().max_input_tokens,
  "--max-output-tokens": DataConfig().max_output_tokens,
  "--teacher-key-env": TeacherConfig.key_env,
  "--start-timeout-seconds": DistributedConfig.start_timeout_seconds,
}


@pytest.mark.parametrize(("flag", "default"), DEFAULTS.items())
def test_help_shows_the_schema_s_default(dss, flag, default):
  text = " ".join(dss("distill", "--help").out.split())
  help_text = re.search(rf" {flag} .*?\[default: ([^;\]]*)", text)
  assert help_text, text
  assert help_text[1] == str(default)


def test_a_flag_that_is_not_given_leaves_the_field_to_gin(dss, monkeypatch):
  from dss_jax.pipelines import distill

  configs = []

  def run(config):
    configs.append(config)
    return dict.fromkeys(("student", "steps", "best_step", "stopped_early", "metrics"))

  monkeypatch.setattr(distill, "run", run)
  (dss.folder / "mine.gin").write_text(
    "EvaluationConfig.early_stopping = False\nTeacherConfig.samples = 3\nTRAIN_STEPS = 7\n"
  )
  flags = ("--model-dir", "new", "--gin-file", "mine.gin")
  assert dss("distill", *flags).code == 0
  assert (
    dss("distill", *flags, "--early-stopping", "--samples", "1", "--train-steps", "9").code == 0
  )
  assert [(c.evaluation.early_stopping, c.teacher.samples, c.train_steps) for c in configs] == [
    (False, 3, 7),
    (True, 1, 9),
  ]


def test_the_version(dss):
  from dss_jax import __version__

  assert dss("--version").out == f"dss, version {__version__}\n"


def test_validate_prints_a_report(dss):
  outcome = dss("validate", "train.jsonl", "--eval-dataset", "eval.jsonl", "--json")
  report = outcome.json
  assert outcome.code == 0
  assert (report["train"]["rows"], report["evaluation"]["rows"]) == (40, 12)
  text = dss("validate", "train.jsonl").out
  assert "train.jsonl" in text
  assert "40" in text


def test_a_flag_for_one_length_leaves_the_other_to_the_gin_file(dss, monkeypatch):
  from dss_jax.pipelines import distill

  lengths = []

  def run(config):
    lengths.append(dict(config.data.feature_lengths))
    return dict.fromkeys(("student", "steps", "best_step", "stopped_early", "metrics"))

  monkeypatch.setattr(distill, "run", run)
  (dss.folder / "mine.gin").write_text("TASK_FEATURE_LENGTHS = {'inputs': 99, 'targets': 33}\n")
  flags = ("--model-dir", "new", "--gin-file", "mine.gin", "--max-input-tokens", "50")
  assert dss("distill", *flags).code == 0
  assert dss("distill", *flags[:2], "--max-output-tokens", "50").code == 0
  assert lengths == [
    {"inputs": 50, "targets": 33},
    {"inputs": DataConfig().max_input_tokens, "targets": 50},
  ]


def test_a_wheel_contains_all_it_needs(dss, tmp_path):
  # Builds a copy, since setuptools writes into the source folder.
  source = tmp_path / "source"
  source.mkdir()
  for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
    shutil.copy(REPOSITORY / name, source)
  for name in ("dss_jax", "tasks", "gin_configs"):
    shutil.copytree(REPOSITORY / name, source / name)
  build = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)]
  subprocess.run([sys.executable, *build], check=True, capture_output=True)
  (wheel,) = tmp_path.glob("*.whl")
  console = REPOSITORY / "dss_jax" / "console"
  pages = [*(console / "static").iterdir(), *(console / "templates").iterdir()]
  assert {"htmx.min.js", "htmx.LICENSE", "uPlot.LICENSE", "base.html"} <= {
    page.name for page in pages
  }
  with zipfile.ZipFile(wheel) as archive:
    assert {str(page.relative_to(REPOSITORY)) for page in pages} <= set(archive.namelist())
  site = tmp_path / "site"
  pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
  pip += ["--target", str(site)]
  subprocess.run([sys.executable, *pip, str(wheel)], check=True, capture_output=True)
  assert {path.name for path in site.iterdir() if path.suffix != ".dist-info"} == {"dss_jax", "bin"}

  code = """
import json, sys
from dss_jax.cli.main import main
try:
  main()
finally:
  import dss_jax
  from dss_jax.config.schema import shipped_folder
  from dss_jax.data.task_files import shipped_tasks
  print(json.dumps([
    dss_jax.__file__, str(shipped_folder("gin_configs")), [str(t) for t in shipped_tasks().values()]
  ]), file=sys.stderr)
"""
  environment = {**os.environ, "PYTHONPATH": str(site)}
  for arguments in (["--help"], ["distill", *dss.flags("student", "--train-steps", "2")]):
    done = subprocess.run(
      [sys.executable, "-c", code, *arguments],
      cwd=dss.folder,
      env=environment,
      capture_output=True,
      text=True,
      check=False,
    )
    assert done.returncode == 0, done.stderr
    package, gin, tasks = json.loads(done.stderr.splitlines()[-1])
    inside = str(site / "dss_jax")
    assert all(path.startswith(inside) for path in (package, gin, *tasks))
    assert {"cqa", "svamp", "esnli"} <= {pathlib.Path(path).stem for path in tasks}
  assert dss.card()["finished"]
