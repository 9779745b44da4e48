"""The house: which way imports point, how long files are, what they are called, what is light."""

import ast
import graphlib
import json
import pathlib
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "dss_jax"
MODULES = sorted(PACKAGE.rglob("*.py"))
LONGEST_FILE = 450

# The rooms of dss_jax, from the ground up: one imports itself and those before it.
ROOMS = [
  "__init__",
  "errors",
  "terminal",
  "html_page",
  "progress",
  "storage",
  "config",
  "model",
  "losses",
  "parallel",
  "data",
  "decoding",
  "checkpoints",
  "train",
  "student",
  "teachers",
  "annotation",
  "evaluation",
  "pipelines",
  "language_models",
  "plan",
  "serving",
  "jobs",
  "console",
  "t5x",
  "cli",
]


def imports_of(path):
  """Every module that a file imports, at its top or within a function."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: relative imports hide which way they point"
      found.add(node.module)
      # `from dss_jax.parallel import processes` imports dss_jax.parallel.processes.
      if node.module.split(".")[0] == "dss_jax":
        found |= {f"{node.module}.{alias.name}" for alias in node.names}
  return found


def room_of(path):
  """The file or folder of dss_jax that a module belongs to."""
  return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def rooms_imported(path):
  names = {name.split(".")[1] for name in imports_of(path) if name.startswith("dss_jax.")}
  return {name for name in names if name != "__version__"}


def name_of(path):
  return str(path.relative_to(REPOSITORY))


def test_every_room_has_its_place():
  assert {room_of(path) for path in MODULES} == set(ROOMS)
  assert len(ROOMS) == len(set(ROOMS))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_one_way(path):
  own = room_of(path)
  for other in rooms_imported(path):
    assert ROOMS.index(other) <= ROOMS.index(own), f"{own} must not import {other}"


# The folders of dss_jax/jobs; the files beside them are what all of them stand on, or what stands
# on all of them.
JOBS = ["bodies", "encryption", "students", "queue", "api"]


@pytest.mark.parametrize("folder", JOBS)
def test_the_folders_of_jobs_import_one_way(folder):
  files = [*(REPOSITORY / "dss_jax/jobs" / folder).glob("*.py")]
  assert files
  imported = {
    name.split(".")[2]
    for path in files
    for name in imports_of(path)
    if name.startswith("dss_jax.jobs.")
  }
  assert imported & set(JOBS) <= set(JOBS[: JOBS.index(folder) + 1])


def test_no_two_modules_import_each_other():
  """Within a room, too. What a type alone needs counts."""
  known = {module_of(path): imports_of(path) for path in MODULES}
  graph = {name: imported & set(known) - {name} for name, imported in known.items()}
  sorted_modules = list(graphlib.TopologicalSorter(graph).static_order())
  assert set(sorted_modules) == set(graph)


def module_of(path):
  parts = path.relative_to(REPOSITORY).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_the_rooms_tell_right_from_wrong(tmp_path):
  """Else the tests above would pass over anything."""
  path = tmp_path / "sample.py"
  path.write_text(
    "import dss_jax.model.t5\nfrom dss_jax import pipelines\n\n"
    "def late():\n  from dss_jax.train.step import Trainer\n"
  )
  assert rooms_imported(path) == {"model", "pipelines", "train"}
  edges = {(room_of(path), other) for path in MODULES for other in rooms_imported(path)}
  assert {("train", "losses"), ("pipelines", "student"), ("model", "config")} <= edges


def importers(*names):
  """The files of dss_jax and tasks that import one of the libraries."""
  return {
    name_of(path)
    for path in [*MODULES, *(REPOSITORY / "tasks").rglob("*.py")]
    if {module.split(".")[0] for module in imports_of(path)} & set(names)
  }


def test_only_the_loader_imports_gin():
  assert importers("gin") == {"dss_jax/config/gin_loader.py"}


def test_only_the_command_line_imports_click():
  found = importers("click", "argparse", "absl")
  assert "dss_jax/cli/main.py" in found
  assert all(name.startswith("dss_jax/cli/") for name in found)


def test_t5x_stays_in_its_folder():
  found = importers("t5x")
  assert found
  assert all(name.startswith("dss_jax/t5x/") for name in found)


def test_tensorflow_stays_with_the_data():
  found = importers("tensorflow")
  assert found
  assert all(name.startswith(("dss_jax/data/", "dss_jax/t5x/")) for name in found)


def test_only_storage_imports_fsspec():
  found = importers("fsspec")
  assert found == {"dss_jax/storage/atomic.py", "dss_jax/storage/files.py"}


def own_writing(source):
  """The places where Python code names, syncs or renames files itself, or looks for a cache."""
  found = []
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
      owner = node.func.value.id if isinstance(node.func.value, ast.Name) else None
      is_os_call = owner == "os" and node.func.attr in {"replace", "rename", "renames", "fsync"}
      # str.replace takes two values, dataclasses.replace takes names.
      is_path_call = node.func.attr == "rename" or (
        node.func.attr == "replace" and len(node.args) == 1 and not node.keywords
      )
      if is_os_call or is_path_call or (owner, node.func.attr) == ("shutil", "move"):
        found.append(node.lineno)
    elif (
      isinstance(node, ast.Constant)
      and isinstance(node.value, str)
      and (node.value.endswith(".part") or node.value in {"DSS_CACHE_DIR", ".cache"})
    ):
      found.append(node.lineno)
  return found


def test_only_storage_renames_and_syncs_files():
  found = {name_of(path): own_writing(path.read_text(encoding="utf-8")) for path in MODULES}
  outside = {
    name: lines
    for name, lines in found.items()
    if lines and not name.startswith("dss_jax/storage/")
  }
  assert not outside, "write through dss_jax/storage/atomic.py, cache through storage/cache.py"
  assert found["dss_jax/storage/atomic.py"]
  assert found["dss_jax/storage/cache.py"]


@pytest.mark.parametrize(
  ("line", "is_found"),
  [
    ("os.replace(a, b)", True),
    ("os.fsync(file.fileno())", True),
    ("path.rename(other)", True),
    ("path.with_name('x').replace(other)", True),
    ("shutil.move(a, b)", True),
    ("name = f'.{base}.part'", True),
    ("os.environ.get('DSS_CACHE_DIR')", True),
    ("text.replace('a', 'b')", False),
    ("dataclasses.replace(config, steps=1)", False),
    ("say('set DSS_CACHE_DIR to a folder')", False),
  ],
)
def test_own_writing_is_found(line, is_found):
  assert bool(own_writing(line)) == is_found


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


def modules_after(*commands):
  """Runs `dss` commands one after the other in a fresh interpreter, quietly and successfully.

  Returns the top-level modules imported after each of them.
  """
  program = (
    "import json, sys\n"
    "from dss_jax.cli.main import main\n"
    "for command in json.loads(sys.argv[1]):\n"
    "  sys.argv = ['dss', *command]\n"
    "  try:\n"
    "    main()\n"
    "  except SystemExit as end:\n"
    "    assert not end.code, command\n"
    "  print('\\nMODULES', json.dumps(sorted({name.split('.')[0] for name in sys.modules})))\n"
  )
  result = subprocess.run(
    [sys.executable, "-c", program, json.dumps(commands)], capture_output=True, text=True
  )
  assert (result.returncode, result.stderr) == (0, "")
  lines = [line for line in result.stdout.splitlines() if line.startswith("MODULES ")]
  assert len(lines) == len(commands)
  return [set(json.loads(line.removeprefix("MODULES "))) for line in lines]


HEAVY = {"jax", "jaxlib", "flax", "optax", "orbax", "tensorflow", "seqio", "tensorboardX", "gin"}
HEAVY |= {"scipy", "rouge_score", "nltk"}


def test_help_imports_nothing_heavy():
  names = ("distill", "train", "predict", "evaluate", "validate", "plan", "models", "serve", "jobs")
  commands = [[], *([name] for name in names)]
  for modules in modules_after(*([*command, "--help"] for command in commands)):
    assert "click" in modules
    assert not modules & (HEAVY | {"numpy"})


def test_validate_imports_nothing_heavy(tmp_path):
  path = tmp_path / "train.jsonl"
  row = {"input_text": "Is it so?", "output_text": "yes", "rationale": "It is so: yes."}
  path.write_text(json.dumps(row) + "\n")
  options = [[], ["--vocabulary", "bytes"], ["--json"]]
  for modules in modules_after(*(["validate", str(path), *each] for each in options)):
    assert "dss_jax" in modules
    assert not modules & HEAVY


def test_the_registry_imports_nothing_heavy(tmp_path):
  for modules in modules_after(["models", "list", "--registry", str(tmp_path)]):
    assert not modules & (HEAVY | {"numpy"})


def test_the_classes_import_nothing_heavy():
  program = (
    "import sys, dss_jax\n"
    "assert not [name for name in sys.modules if name.startswith('dss_jax.')]\n"
    "from dss_jax import TextGenerationModel\n"
    "TextGenerationModel.from_pretrained('small')\n"
    "print(*{name.split('.')[0] for name in sys.modules})\n"
  )
  result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
  assert (result.returncode, result.stderr) == (0, "")
  assert not set(result.stdout.split()) & HEAVY
