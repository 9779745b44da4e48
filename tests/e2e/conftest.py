"""The `dss` command as a user runs it: in this process where it can be, in its own where it must."""

import contextlib
import hashlib
import io
import json
import pathlib
import random
import shutil
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache


class Outcome(NamedTuple):
  """What a command left behind."""

  code: int
  out: str
  err: str

  @property
  def json(self) -> dict[str, Any]:
    return json.loads(self.out)


class Dss:
  """Runs `dss` in a working folder of its own, which holds train.jsonl and eval.jsonl."""

  # The smallest student there is: seconds, and it learns next to nothing.
  TINY = (
    *("--student", "tiny", "--vocabulary", "bytes", "--mesh", "data=1"),
    *("--max-input-tokens", "64", "--max-output-tokens", "32"),
  )

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self.write("train.jsonl", sums(1, 40))
    self.write("eval.jsonl", sums(2, 12))

  def __call__(self, *arguments: object) -> Outcome:
    """Runs the command in this process: a process of its own costs seconds of imports."""
    from dss_jax import cli

    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(sys, "argv", ["dss", *map(str, arguments)])
      patch.chdir(self.folder)
      with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
          cli.main()
          code = 0
        except SystemExit as error:
          code = error.code if isinstance(error.code, int) else int(error.code is not None)
    return Outcome(code, out.getvalue(), err.getvalue())

  def flags(self, model_dir: object = "student", *arguments: object) -> list[str]:
    """The flags of a tiny run; a flag given again in `arguments` wins."""
    return [
      *self.TINY,
      *("--dataset", "train.jsonl", "--eval-dataset", "eval.jsonl", "--model-dir", str(model_dir)),
      *("--train-steps", "4", "--batch-size", "4", "--evaluation-interval", "2"),
      *map(str, arguments),
    ]

  def train(
    self, model_dir: object = "student", *arguments: object, command: str = "distill"
  ) -> Outcome:
    """Trains a tiny student, and must succeed."""
    outcome = self(command, *self.flags(model_dir, *arguments))
    assert outcome.code == 0, outcome.err
    return outcome

  def start(
    self, *arguments: object, code: str = "from dss_jax.cli import main; main()"
  ) -> subprocess.Popen[str]:
    """A process of its own, running; what it says goes to files of its number."""
    return subprocess.Popen(
      [sys.executable, "-c", code, *map(str, arguments)],
      cwd=self.folder,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  def write(self, name: str, rows: list[Any]) -> pathlib.Path:
    """A JSONL file of rows."""
    path = self.folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path

  def read(self, name: str) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    text = (self.folder / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]

  def card(self, model_dir: str = "student") -> dict[str, Any]:
    return json.loads((self.folder / model_dir / "model.json").read_text(encoding="utf-8"))

  def tree(self, name: str = ".") -> dict[str, str]:
    """Every path under a folder, hidden ones too, with a digest of what it holds."""
    top = self.folder / name
    return {
      str(path.relative_to(top)): (
        hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
      )
      for path in sorted(top.rglob("*"))
    }


def sums(seed: int, count: int) -> list[dict[str, Any]]:
  """Rows about small sums, with a key that the program does not know."""
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


@pytest.fixture(scope="package", autouse=True)
def compiled_once(tmp_path_factory):
  """Keeps what XLA compiles for the session: the same tiny student is trained many times."""
  settings = {
    "jax_compilation_cache_dir": str(tmp_path_factory.getbasetemp() / "compiled"),
    "jax_persistent_cache_min_compile_time_secs": 0,
  }
  before = {name: getattr(jax.config, name) for name in settings}
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("DSS_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "dss_cache"))
    for name, value in settings.items():
      patch.setenv(name.upper(), str(value))
      jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


@pytest.fixture
def dss(tmp_path):
  folder = tmp_path / "work"
  folder.mkdir()
  return Dss(folder)


@pytest.fixture(scope="package")
def finished(tmp_path_factory, compiled_once):
  """A working folder with a finished student in `student`, for tests that change nothing."""
  workshop = Dss(tmp_path_factory.mktemp("finished"))
  workshop.train()
  return workshop


@pytest.fixture
def with_student(finished, tmp_path):
  """A copy of that folder, to change."""
  folder = tmp_path / "copy"
  shutil.copytree(finished.folder, folder)
  return Dss(folder)
