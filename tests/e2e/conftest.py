"""The `dss` command as a user runs it: in this process if possible, in one of its own if not."""

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

from dss_jax.cli import main as cli
from dss_jax.config.schema import MeshConfig
from dss_jax.parallel.mesh import make_mesh
from dss_jax.student.student import Student
from dss_jax.train.checkpointing import Checkpoints


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
    *("--gin", "T5Config.num_encoder_layers=1", "--gin", "T5Config.num_decoder_layers=1"),
  )

  # Learns so fast that its best evaluation is not its last.
  LONG = (
    *("--train-steps", "40", "--evaluation-interval", "3"),
    *("--learning-rate-multiplier", "30", "--seed", "4"),
    # Its verdicts follow from metrics.jsonl alone; the other rule compares rows.
    *("--gin", "EvaluationConfig.selection='token-accuracy'"),
  )

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self.write("train.jsonl", sums(1, 40))
    self.write("eval.jsonl", sums(2, 12))

  def __call__(self, *arguments: object) -> Outcome:
    """Runs the command in this process: a process of its own costs seconds of imports."""
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
    self, *arguments: object, code: str = "from dss_jax.cli.main import main; main()"
  ) -> subprocess.Popen[str]:
    """A process of its own, running; its numbers may differ from this one's in rounding."""
    return subprocess.Popen(
      [sys.executable, "-c", code, *map(str, arguments)],
      cwd=self.folder,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  def finish(self, process: subprocess.Popen[str]) -> Outcome:
    """What a process left behind, once it has ended; code is negative for a signal's number."""
    out, err = process.communicate(timeout=300)
    return Outcome(process.returncode, out, err)

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

  def numbers(self, model_dir: str = "student") -> list[dict[str, float]]:
    """The lines of metrics.jsonl without what tells the time."""
    return [
      {name: value for name, value in line.items() if not name.startswith("time/")}
      for line in self.read(f"{model_dir}/metrics.jsonl")
    ]

  def weights(self, model_dir: str = "student") -> dict[int, Any]:
    """The weights of every checkpoint that is kept, by step."""
    student = Student.open(self.folder / model_dir)
    shape = student.params_shape(make_mesh(MeshConfig(data=1), 4))
    folder = student.directory / "checkpoints"
    steps = sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
    with contextlib.closing(Checkpoints(folder, keep_best=True, read_only=True)) as checkpoints:
      return {step: jax.device_get(checkpoints.restore_params(step, shape)) for step in steps}

  def tree(self, name: str = ".") -> dict[str, str]:
    """Every path under a folder, hidden ones too, with a digest of what it holds.

    Without what Python itself keeps of an imported task.
    """
    top = self.folder / name
    return {
      str(path.relative_to(top)): (
        hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
      )
      for path in sorted(top.rglob("*"))
      if "__pycache__" not in path.parts
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


@pytest.fixture
def dss(tmp_path):
  folder = tmp_path / "work"
  folder.mkdir()
  return Dss(folder)


@pytest.fixture
def refuses(dss):
  """Runs a command that must fail as a user's mistake does: one sentence, exit code 2.

  Every part of `says` must stand in the sentence, and no file may have come, gone or changed.
  """

  def refuses(*arguments, says, workshop=dss):
    before = workshop.tree()
    outcome = workshop(*arguments)
    errors = [
      line for line in outcome.err.splitlines() if not line.startswith(("tokenising ", "warning: "))
    ]
    assert outcome.code == 2, outcome
    assert len(errors) == 1, outcome.err
    assert errors[0].startswith("dss: ")
    assert outcome.out == ""
    for part in says:
      assert part in errors[0]
    assert workshop.tree() == before

  return refuses


@pytest.fixture(scope="package")
def finished(tmp_path_factory):
  """A working folder with a finished student in `student`, for tests that change nothing."""
  workshop = Dss(tmp_path_factory.mktemp("finished"))
  workshop.train()
  return workshop


@pytest.fixture(scope="package")
def whole(finished):
  """As `finished`, with a longer run in `whole` that nothing disturbed.

  It stops early, some evaluations after its best.
  """
  finished.train("whole", *finished.LONG)
  return finished


@pytest.fixture(scope="package")
def shared_student(tmp_path_factory):
  """As `finished`, with a student that encodes a row once."""
  workshop = Dss(tmp_path_factory.mktemp("shared"))
  workshop.train("student", "--shared-encoder", "--learning-rate-multiplier", "30")
  return workshop


@pytest.fixture
def with_student(finished, tmp_path):
  """A copy of that folder, to change."""
  folder = tmp_path / "copy"
  shutil.copytree(finished.folder, folder)
  return Dss(folder)


@pytest.fixture(scope="package")
def pieces(tmp_path_factory):
  """The path of a SentencePiece model that knows the words of the rows."""
  import sentencepiece

  folder = tmp_path_factory.mktemp("vocabulary")
  words = [text for row in sums(3, 100) for text in (row["input_text"], row["rationale"])]
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["predict: explain:", *words]),
    model_prefix=str(folder / "pieces"),
    vocab_size=60,
    hard_vocab_limit=False,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    minloglevel=2,
  )
  return str(folder / "pieces.model")


@pytest.fixture(scope="package")
def worded(tmp_path_factory, pieces):
  """As `finished`, with a student that was trained with SentencePiece; the file is gone since."""
  workshop = Dss(tmp_path_factory.mktemp("worded"))
  shutil.copy(pieces, workshop.folder / "pieces.model")
  workshop.train("student", "--vocabulary", "pieces.model")
  (workshop.folder / "pieces.model").unlink()
  return workshop


@pytest.fixture
def with_words(worded, tmp_path):
  """A copy of that folder, to change."""
  folder = tmp_path / "copy"
  shutil.copytree(worded.folder, folder)
  return Dss(folder)
