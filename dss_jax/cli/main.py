"""The `dss` command: parses, then calls one function. Imports nothing heavy at the top."""

import json
import os
import sys
from typing import Any

import click

from dss_jax import __version__
from dss_jax.cli.annotate import DISTILL_OPTIONS, DISTILL_SETTINGS, annotate, annotate_report
from dss_jax.cli.distributed import in_processes, process_options
from dss_jax.cli.errors import report_error
from dss_jax.cli.plan import plan
from dss_jax.config.mesh_presets import mesh_choice
from dss_jax.config.schema import student_file
from dss_jax.errors import UserError

_FOLDER = click.Path(file_okay=True, dir_okay=True)


def main() -> None:
  """Runs the command; a user's mistake is one sentence and exit code 2."""
  # XLA, TensorFlow and absl write their own chatter to the terminal unless told not to.
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  try:
    dss(prog_name="dss", standalone_mode=False)
  except BaseException as error:
    code = report_error(error)
    if code is None:
      raise
    sys.exit(code)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="dss")
def dss() -> None:
  """Distil a large teacher language model, step by step, into a small T5 student."""


def _options(*decorators):
  """Several click options as one decorator."""

  def decorate(function):
    for decorator in reversed(decorators):
      function = decorator(function)
    return function

  return decorate


# What each flag of `distill` and `tune` is called in gin; the flag's default lies there.
_MACROS = {
  "model_dir": "MODEL_DIR",
  "dataset": "DATASET",
  "task": "MIXTURE_OR_TASK_NAME",
  "data_dir": "DATA_DIR",
  "labels": "LABELS",
  "eval_dataset": "EVAL_DATASET",
  "vocabulary": "VOCABULARY",
  "initial_checkpoint": "INITIAL_CHECKPOINT_PATH",
  "initial_optimizer_state": "RunConfig.initial_optimizer_state",
  "train_steps": "TRAIN_STEPS",
  "batch_size": "BATCH_SIZE",
  "learning_rate_multiplier": "LEARNING_RATE_MULTIPLIER",
  "alpha": "ALPHA",
  "evaluation_interval": "EVAL_PERIOD",
  "early_stopping": "EvaluationConfig.early_stopping",
  "checkpoint_selection": "EvaluationConfig.checkpoint_selection",
  "seed": "SEED",
  **DISTILL_SETTINGS,
}

_TASK = _options(
  click.option("--task", metavar="NAME|FILE.py", help="A shipped task, or your own task file."),
  click.option("--data-dir", metavar="DIR", help="The folder of the task's files."),
)

_MESH = click.option(
  "--mesh",
  metavar="data=N,model=M|NAME",
  help="Devices along each axis, or a file of gin_configs/meshes, or a TPU slice such as v5e-16.  "
  "[default: all on data, as far as the batch divides]",
)

_GIN = _options(
  click.option("--gin-file", "--gin_file", "gin_files", multiple=True, metavar="FILE",
               help="A gin file read after the flags' defaults; may be repeated."),
  click.option("--gin", "gin", multiple=True, metavar="NAME=VALUE",
               help="One gin binding or macro; may be repeated, and wins over all else."),
)  # fmt: skip

_TRAINING = _options(
  click.option("--model-dir", required=True, metavar="DIR", help="Where the student is kept."),
  click.option("--dataset", metavar="FILE", help="JSONL rows to train on."),
  _TASK,
  click.option("--eval-dataset", metavar="FILE", help="JSONL rows to evaluate on.  [default: a "
               "task's validation rows, none of a file]"),
  click.option("--student", metavar="SIZE", help="tiny, mini, small, base, large, xl, xxl, or "
               "another file of gin_configs/models.  [default: the initial checkpoint's, else "
               "small]"),
  click.option("--vocabulary", metavar="bytes|FILE", help="bytes, or a SentencePiece model.  "
               "[default: T5's published one]"),
  click.option("--initial-checkpoint", metavar="PATH", help="Weights to start from: an earlier "
               "--model-dir, or a T5X or Hugging Face T5 checkpoint.  [default: fresh ones]"),
  click.option("--initial-optimizer-state/--no-initial-optimizer-state", default=None,
               help="Adafactor goes on from the moments in a T5X checkpoint.  [default: off]"),
  click.option("--labels", type=click.Choice(["gold", "teacher"]),
               help="Whose labels a task trains on.  [default: gold]"),
  click.option("--max-input-tokens", type=click.IntRange(min=2), help="Longer inputs are cut, "
               "end mark included.  [default: 7168]"),
  click.option("--max-output-tokens", type=click.IntRange(min=2), help="Longer labels and "
               "rationales are cut.  [default: 1024]"),
  click.option("--train-steps", type=int, help="Steps in all, resumed ones included.  "
               "[default: 300]"),
  click.option("--batch-size", type=int, help="Examples a step.  [default: 24]"),
  click.option("--learning-rate-multiplier", type=float, help="Times the base rate, which is "
               "printed.  [default: 1.0]"),
  click.option("--evaluation-interval", type=int, help="Steps from one evaluation and checkpoint "
               "to the next.  [default: 20]"),
  click.option("--early-stopping/--no-early-stopping", default=None,
               help="End when 5 evaluations in a row bring nothing.  [default: on]"),
  click.option("--checkpoint-selection/--no-checkpoint-selection", default=None,
               help="Hand on the best checkpoint, not the last.  [default: on]"),
  _MESH,
  click.option("--seed", type=int, help="Of the weights, the order and dropout.  [default: 0]"),
  _GIN,
)  # fmt: skip

_ALPHA = click.option("--alpha", type=float, help="Weight of the label's loss; the rationale's is "
                      "the rest.  [default: 0.5]")  # fmt: skip


@dss.command()
@_TRAINING
@_ALPHA
@_options(*DISTILL_OPTIONS)
@process_options
def distill(**flags: Any) -> None:
  """Train a student on labels and rationales, step by step."""
  _train(["runs/distill.gin"], flags)


@dss.command(short_help="Train a student on labels alone.")
@_TRAINING
@process_options
def tune(**flags: Any) -> None:
  """Train a student on labels alone (plain supervised tuning)."""
  _train(["runs/tune.gin"], flags)


@dss.command(
  context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
  short_help="Train as a gin file says, T5X's way.",
)
@_GIN
@process_options
@click.pass_context
def train(
  context: click.Context, gin_files: tuple[str, ...], gin: tuple[str, ...], **flags: Any
) -> None:
  """The same run, T5X's way: --gin_file=FILE ... --gin.NAME=VALUE ..."""
  from dss_jax.config.gin_loader import parse_setting

  if not gin_files:
    raise UserError("dss train: give --gin_file=gin_configs/runs/distill.gin, or a file of yours")
  settings = [parse_setting(text, f"--gin {text}") for text in gin]
  for argument in context.args:
    if not argument.startswith("--gin.") or "=" not in argument:
      raise UserError(f"dss train: {argument!r} is no option; write --gin.NAME=VALUE")
    name = argument.split("=", 1)[0]
    settings.append(parse_setting(argument.removeprefix("--gin."), name))
  with in_processes(flags):
    _run(list(gin_files), settings)


def _train(files: list[str], flags: dict[str, Any]) -> None:
  with in_processes(flags):
    _run(*_settings(files, flags))


def _settings(files: list[str], flags: dict[str, Any]) -> tuple[list[str], list[Any]]:
  """Turns flags into gin files and settings: the same door that `dss train` uses."""
  from dss_jax.config.gin_loader import Setting, parse_setting, value_in

  given = {name: value for name, value in flags.items() if value is not None}
  student = given.get("student")
  if student is None and "initial_checkpoint" in given and not given["gin_files"]:
    from dss_jax.student.initialise import student_of

    student = student_of(given["initial_checkpoint"], given.get("model_dir"))
  if student is not None:
    files = [*files, student_file(student, "--student")]
  mesh = mesh_choice(given.get("mesh"))
  files = [*files, *mesh.files, *given["gin_files"]]
  if student is not None and (named := value_in(files, "RunConfig.student")) != student:
    raise UserError(
      f"--student {student}: has no effect, since a --gin-file chooses {named!r}; leave out one "
      "of the two"
    )
  settings = [
    Setting(_MACROS[name], value, f"--{name.replace('_', '-')}")
    for name, value in given.items()
    if name in _MACROS
  ]
  lengths = {
    feature: given[flag]
    for flag, feature in (("max_input_tokens", "inputs"), ("max_output_tokens", "targets"))
    if flag in given
  }
  if lengths:
    # One of the two leaves the other as the gin files have it.
    all_lengths = {**value_in(files, "TASK_FEATURE_LENGTHS"), **lengths}
    settings.append(
      Setting("TASK_FEATURE_LENGTHS", all_lengths, "--max-input-tokens, --max-output-tokens")
    )
  for axis, size in mesh.axes.items():
    settings.append(Setting(f"MeshConfig.{axis}", size, "--mesh"))
  return files, settings + [parse_setting(text, f"--gin {text}") for text in given["gin"]]


@dss.command(short_help="Train every point of a grid.")
@click.argument("file", metavar="SWEEP.gin")
@_TRAINING
@_ALPHA
def sweep(file: str, **flags: Any) -> None:
  """Train every point of a grid, one MODEL_DIR each under --model-dir; resumable."""
  from dss_jax.config.gin_loader import Setting, load_config
  from dss_jax.config.schema import RunConfig

  files, settings = _settings(["runs/distill.gin"], flags)
  from dss_jax.pipelines import sweep as sweeping

  def config_of(point, model_dir):
    values = [Setting(name, value, file) for name, value in point.items() if name != "STUDENT"]
    values.append(Setting("MODEL_DIR", model_dir, "--model-dir"))
    # A student is a file of settings, not a value.
    student = [student_file(point["STUDENT"], file)] if "STUDENT" in point else []
    return load_config(RunConfig, [*files, *student], settings + values)

  from dss_jax.storage.cache import keep_compiled_programs

  keep_compiled_programs()
  results = sweeping.run(sweeping.load_grid(file), flags["model_dir"], config_of)
  sweeping.print_table(results)


def _run(files: list[str], settings: list[Any]) -> None:
  from dss_jax.config.gin_loader import load_config
  from dss_jax.config.schema import RunConfig

  config = load_config(RunConfig, files, settings)
  from dss_jax.parallel import processes
  from dss_jax.pipelines import distill as distilling
  from dss_jax.storage.cache import keep_compiled_programs

  keep_compiled_programs()
  card = distilling.run(config)
  if not processes.is_first():
    return
  summary = {key: card[key] for key in ("student", "steps", "best_step", "stopped_early")}
  click.echo(json.dumps({"model_dir": config.model_dir, **summary, "metrics": card["metrics"]}))


@dss.command()
@click.option("--model", required=True, metavar="DIR", type=_FOLDER, help="A trained student.")
@click.option("--dataset", required=True, metavar="FILE", help="JSONL rows to answer.")
@click.option("--output", required=True, metavar="FILE", help="Where the answered rows go.")
@click.option("--explain", is_flag=True, help="Write the student's rationale, too.")
@click.option("--batch-size", type=click.IntRange(min=1), help="[default: the training batch]")
@click.option("--max-output-tokens", type=click.IntRange(min=1),
              help="[default: the longest the student was trained on]")  # fmt: skip
@_MESH
def predict(
  model: str,
  dataset: str,
  output: str,
  explain: bool,
  batch_size: int | None,
  max_output_tokens: int | None,
  mesh: str | None,
) -> None:
  """Answer rows with a student."""
  from dss_jax.data.records import check_rows

  check_rows(dataset)
  from dss_jax.config.mesh_presets import mesh_config
  from dss_jax.parallel.mesh import make_mesh
  from dss_jax.storage.cache import keep_compiled_programs
  from dss_jax.student.predictor import Predictor, predict_file
  from dss_jax.student.student import Student

  keep_compiled_programs()
  student = Student.open(model)
  batch_size = batch_size or student.config.batch_size
  predictor = Predictor(student, make_mesh(mesh_config(mesh), batch_size), batch_size=batch_size)
  rows = predict_file(
    predictor, dataset, output, explain=explain, max_output_tokens=max_output_tokens
  )
  click.echo(json.dumps({"output": output, "rows": rows}))


@dss.command()
@click.option("--model", required=True, metavar="DIR", type=_FOLDER, help="A trained student.")
@click.option("--dataset", metavar="FILE", help="JSONL rows to judge on.")
@_TASK
@click.option("--split", type=click.Choice(["train", "validation", "test"]),
              help="Which rows of the task.  [default: test]")  # fmt: skip
@_MESH
def evaluate(
  model: str,
  dataset: str | None,
  task: str | None,
  data_dir: str | None,
  split: str | None,
  mesh: str | None,
) -> None:
  """Judge a student on labelled rows; prints JSON."""
  from dss_jax.config.mesh_presets import mesh_config
  from dss_jax.evaluation.evaluate import evaluate_student, source_for
  from dss_jax.storage.cache import keep_compiled_programs
  from dss_jax.student.student import Student

  keep_compiled_programs()
  student = Student.open(model)
  source = source_for(student, dataset, task, data_dir, split)
  click.echo(json.dumps(evaluate_student(student, source, mesh_config(mesh)), indent=2))


@dss.command(name="export", short_help="Write a student for other programs.")
@click.option("--model", required=True, metavar="DIR", type=_FOLDER, help="A trained student.")
@click.option(
  "--format",
  "kind",
  required=True,
  type=click.Choice(["t5x", "t5x-orbax", "hf"]),
  help="T5X's native checkpoint, T5X's Orbax one, or Hugging Face's folder.",
)
@click.option("--output", required=True, metavar="DIR", help="A new or empty folder.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32",
              show_default=True, help="Of the numbers written.")  # fmt: skip
def export_command(model: str, kind: Any, output: str, dtype: Any) -> None:
  """Write a student's best weights for T5X or Hugging Face transformers to load."""
  from dss_jax.student.export import export_student

  click.echo(json.dumps(export_student(model, output, kind, dtype=dtype)))


@dss.command(short_help="Make data, train two students, compare.")
@click.option("--model-dir", default="runs/quickstart", show_default=True, metavar="DIR",
              help="Where data and students go.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Of the data and of the students.")
@click.option("--gin", "gin", multiple=True, metavar="NAME=VALUE",
              help="One gin binding or macro for both runs; may be repeated.")  # fmt: skip
def quickstart(model_dir: str, seed: int, gin: tuple[str, ...]) -> None:
  """Make data, train a student on labels alone and one step by step, and compare them."""
  from dss_jax.config.gin_loader import parse_setting

  settings = [parse_setting(text, f"--gin {text}") for text in gin]
  from dss_jax.pipelines import quickstart as quickstarts
  from dss_jax.storage.cache import keep_compiled_programs

  keep_compiled_programs()
  results = quickstarts.run(model_dir, seed, settings)
  quickstarts.show(results, model_dir)


@dss.command(short_help="Check rows and report on them.")
@click.argument("file", metavar="FILE")
@click.option("--eval-dataset", metavar="FILE", help="Evaluation rows, to be checked beside them.")
@click.option("--vocabulary", metavar="bytes|FILE", help="Count tokens with this vocabulary.")
@click.option("--max-input-tokens", type=click.IntRange(min=2), default=7168, show_default=True)
@click.option("--max-output-tokens", type=click.IntRange(min=2), default=1024, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def validate(
  file: str,
  eval_dataset: str | None,
  vocabulary: str | None,
  max_input_tokens: int,
  max_output_tokens: int,
  as_json: bool,
) -> None:
  """Check rows and report on them; every bad row is named by its line."""
  from dss_jax.data.report.build import dataset_report
  from dss_jax.data.report.text import to_text
  from dss_jax.data.vocabularies import load_vocabulary

  report = dataset_report(
    file,
    eval_path=eval_dataset,
    vocabulary=None if vocabulary is None else load_vocabulary(vocabulary),
    max_input_tokens=max_input_tokens,
    max_output_tokens=max_output_tokens,
  )
  click.echo(json.dumps(report.to_json(), indent=2) if as_json else to_text(report))


dss.add_command(annotate)
dss.add_command(annotate_report)
dss.add_command(plan)


if __name__ == "__main__":
  main()
