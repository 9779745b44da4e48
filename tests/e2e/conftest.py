"""The `dss` command as a user runs it: in this process where it can be, in its own where it must."""

import contextlib
import hashlib
import io
import json
import os
import pathlib
import random
import subprocess
import sys
from typing import Any, NamedTuple

import pytest

# The smallest run there is: seconds, and it learns next to nothing.
TINY = (
  *("--student", "tiny", "--vocabulary", "bytes", "--mesh", "data=1"),
  *("--max-input-tokens", "64", "--max-output-tokens", "32"),
)


class Outcome(NamedTuple):
  """What a command left behind."""

  code: int
  out: str
  err: str

  @property
  def json(self) -> dict[str, Any]:
    return json.loads(self.out)


class Dss:
  """Runs `dss`; paths are relative to the folder it was made in."""

  def __call__(self, *arguments: object) -> Outcome:
    """In this process: a subprocess costs seconds of imports."""
    from dss_jax import cli

    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(sys, "argv", ["dss", *map(str, arguments)])
      with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
          cli.main()
          code = 0
        except SystemExit as error:
          code = error.code if isinstance(error.code, int) else int(error.code is not None)
    return Outcome(code, out.getvalue(), err.getvalue())

  def train(self, model_dir: object, *arguments: object, command: str = "distill") -> Outcome:
    """Trains a tiny student on train.jsonl and eval.jsonl of this folder, and must succeed."""
    outcome = self(command, *training(model_dir), *arguments)
    assert outcome.code == 0, outcome.err
    return outcome

  def start(self, *arguments: object, python: str = "from dss_jax.cli import main; main()"):
    """A process of its own, running."""
    return subprocess.Popen(
      [sys.executable, "-c", python, *map(str, arguments)],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )


def training(model_dir: object, steps: int = 4) -> list[str]:
  """The flags of a tiny run."""
  return [
    *TINY,
    *("--dataset", "train.jsonl", "--eval-dataset", "eval.jsonl", "--model-dir", str(model_dir)),
    *("--train-steps", str(steps), "--batch-size", "4", "--evaluation-interval", "2"),
  ]


def sums(seed: int, count: int) -> list[dict[str, Any]]:
  """Rows about small sums, with a key that is nobody's business."""
  dice = random.Random(seed)
  rows = []
  for number in range(count):
    a, b = dice.randrange(10), dice.randrange(10)
    rows.append(
      {
        "id": number,
        "input_text": f"Add {a} and {b}.",
        "output_text": str(a + b),
        "rationale": f"{a} plus {b} is {a + b}.",
      }
    )
  return rows


def write_jsonl(path: pathlib.Path, rows: list[Any]) -> pathlib.Path:
  path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
  return path


def read_jsonl(path: pathlib.Path) -> list[dict[str, Any]]:
  return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def tree(folder: pathlib.Path) -> dict[str, str]:
  """Every path under a folder, hidden ones too, with a digest of what it holds."""
  return {
    str(path.relative_to(folder)): (
      hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    )
    for path in sorted(folder.rglob("*"))
  }


@pytest.fixture(scope="package", autouse=True)
def compiled_once(tmp_path_factory):
  """What XLA compiles is kept for the session: the same tiny student is trained many times."""
  import jax
  from jax.experimental.compilation_cache import compilation_cache

  folder = str(tmp_path_factory.getbasetemp() / "compiled")
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("DSS_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "dss_cache"))
    for name, value in (
      ("jax_compilation_cache_dir", folder),
      ("jax_persistent_cache_min_compile_time_secs", 0),
    ):
      patch.setenv(name.upper(), str(value))
      before = getattr(jax.config, name)
      jax.config.update(name, value)
      patch.setattr(jax.config, name, before, raising=False) if False else None
    compilation_cache.reset_cache()
    yield
  jax.config.update("jax_compilation_cache_dir", None)
  compilation_cache.reset_cache()


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """An empty working folder with train.jsonl and eval.jsonl."""
  work = tmp_path / "work"
  work.mkdir()
  monkeypatch.chdir(work)
  write_jsonl(work / "train.jsonl", sums(1, 40))
  write_jsonl(work / "eval.jsonl", sums(2, 12))
  return work


@pytest.fixture
def dss(folder):
  return Dss()


@pytest.fixture(scope="package")
def trained(tmp_path_factory, compiled_once):
  """A folder with a finished student, `student`; to be read only."""
  work = tmp_path_factory.mktemp("trained")
  before = pathlib.Path.cwd()
  os.chdir(work)
  try:
    write_jsonl(work / "train.jsonl", sums(1, 40))
    write_jsonl(work / "eval.jsonl", sums(2, 12))
    Dss().train("student")
  finally:
    os.chdir(before)
  return work
