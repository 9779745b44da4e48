"""The house: which way imports point, how long files are, what they are called, what is light."""

import ast
import json
import pathlib
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "dss_jax"
MODULES = sorted(PACKAGE.rglob("*.py"))
LONGEST_FILE = 450

# From what users call down to what everything rests on. A module imports its own layer and
# those below it. A file or folder of dss_jax that is named nowhere here needs a place.
LAYERS = [
  {"cli", "cli_distributed", "cli_errors", "cli_plan", "cli_teacher", "t5x"},
  {
    "distill", "evaluate", "predict", "sweep", "quickstart", "quickstart_data", "initial", "export",
    "hf_folder",
    "teacher", "jobs", "serve", "registry", "launch", "plan",
  },
  {"student"},
  {"train"},
  {"losses", "model", "data"},
  {
    "config", "gin_door", "progress", "errors", "compile_cache", "processes", "lost_processes",
    "mesh_presets", "__init__",
  },
]  # fmt: skip
# Neighbours that know nothing of each other.
STRANGERS = {"losses", "model", "data"}


def imports_of(path):
  """Every module that a file imports, at its top or within a function."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: relative imports hide which way they point"
      found.add(node.module)
      # `from dss_jax import distill` imports dss_jax.distill.
      found |= {f"{node.module}.{alias.name}" for alias in node.names if node.module == "dss_jax"}
  return found


def part_of(path):
  """The file or folder of dss_jax that a module belongs to."""
  return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def layer_of(part):
  return next((number for number, layer in enumerate(LAYERS) if part in layer), None)


def parts_imported(path):
  names = {name.split(".")[1] for name in imports_of(path) if name.startswith("dss_jax.")}
  return {name for name in names if name != "__version__"}


def name_of(path):
  return str(path.relative_to(REPOSITORY))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_one_way(path):
  own = part_of(path)
  assert layer_of(own) is not None, f"give {own!r} a place in LAYERS"
  for other in parts_imported(path):
    assert layer_of(other) is not None, f"{other!r} has no place in LAYERS"
    assert layer_of(own) <= layer_of(other), f"{own} must not import {other}"
    if {own, other} <= STRANGERS:
      assert own == other, f"{own} must not import {other}"


def test_the_layers_tell_right_from_wrong(tmp_path):
  """Else the test above would pass over anything."""
  path = tmp_path / "sample.py"
  path.write_text(
    "import dss_jax.model.t5\nfrom dss_jax import distill\n\n"
    "def late():\n  from dss_jax.train.step import Trainer\n"
  )
  assert parts_imported(path) == {"model", "distill", "train"}
  assert layer_of("train") > layer_of("distill")
  edges = {(part_of(path), other) for path in MODULES for other in parts_imported(path)}
  assert {("train", "losses"), ("distill", "student"), ("model", "config")} <= edges


def importers(*names):
  """The files of dss_jax and tasks that import one of the libraries."""
  return {
    name_of(path)
    for path in [*MODULES, *(REPOSITORY / "tasks").rglob("*.py")]
    if {module.split(".")[0] for module in imports_of(path)} & set(names)
  }


def test_only_the_door_imports_gin():
  assert importers("gin") == {"dss_jax/gin_door.py"}


def test_only_the_command_line_imports_click():
  found = importers("click", "argparse", "absl")
  assert "dss_jax/cli.py" in found
  assert {pathlib.Path(name).name.startswith("cli") for name in found} == {True}


def test_t5x_stays_in_its_folder():
  assert all(name.startswith("dss_jax/t5x/") for name in importers("t5x"))


def test_tensorflow_stays_with_the_data():
  assert all(name.startswith(("dss_jax/data/", "dss_jax/t5x/")) for name in importers("tensorflow"))


OUR_FILES = [
  path
  for folder in ("dss_jax", "tasks", "tests", "benchmarks")
  for path in sorted((REPOSITORY / folder).rglob("*.py"))
]


@pytest.mark.parametrize("path", OUR_FILES, ids=name_of)
def test_a_file_holds_one_idea(path):
  lines = len(path.read_text(encoding="utf-8").splitlines())
  assert lines <= LONGEST_FILE, f"{lines} lines hold two ideas: split the file"
  words = set(path.stem.removesuffix("_test").split("_"))
  assert not words & {"utils", "util", "common", "helpers", "helper", "misc"}, "say what it is for"


def modules_after(*arguments):
  """(exit code, top-level modules imported) of a `dss` command in a fresh interpreter."""
  program = (
    "import json, sys\n"
    "from dss_jax.cli import main\n"
    "sys.argv = ['dss', *json.loads(sys.argv[1])]\n"
    "code = 0\n"
    "try:\n"
    "  main()\n"
    "except SystemExit as end:\n"
    "  code = end.code or 0\n"
    "print('\\n' + json.dumps([code, sorted({name.split('.')[0] for name in sys.modules})]))\n"
  )
  result = subprocess.run(
    [sys.executable, "-c", program, json.dumps(arguments)],
    capture_output=True,
    text=True,
    check=True,
  )
  code, modules = json.loads(result.stdout.splitlines()[-1])
  return code, set(modules)


HEAVY = {"jax", "jaxlib", "flax", "optax", "orbax", "tensorflow", "seqio", "tensorboardX", "gin"}


@pytest.mark.parametrize(
  "command", [[], ["distill"], ["train"], ["predict"], ["validate"], ["plan"]]
)
def test_help_imports_nothing_heavy(command):
  code, modules = modules_after(*command, "--help")
  assert code == 0
  assert "click" in modules
  assert not modules & (HEAVY | {"numpy"})


@pytest.mark.parametrize("options", [[], ["--vocabulary", "bytes"], ["--json"]])
def test_validate_imports_nothing_heavy(tmp_path, options):
  path = tmp_path / "train.jsonl"
  row = {"input_text": "Is it so?", "output_text": "yes", "rationale": "It is so: yes."}
  path.write_text(json.dumps(row) + "\n")
  code, modules = modules_after("validate", str(path), *options)
  assert code == 0
  assert "dss_jax" in modules
  assert not modules & HEAVY
