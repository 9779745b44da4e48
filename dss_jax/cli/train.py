"""The commands that train: `dss distill`, `tune`, `train` and `sweep`. Imports nothing heavy."""

import json
from typing import Any

import click

from dss_jax.cli import kinds, options
from dss_jax.cli.distributed import in_processes, process_options
from dss_jax.cli.options import option
from dss_jax.config.mesh_presets import mesh_choice
from dss_jax.config.schema import DEFAULT_STUDENT, EvaluationConfig, student_file
from dss_jax.errors import UserError
from dss_jax.terminal import echo

_TRAINING = options.options(
  options.model_dir(required=True),
  options.dataset("JSONL rows to train on."),
  options.TASK,
  option("--label-source", field="DataConfig.label_source", macro="LABEL_SOURCE",
         help="Whose labels a task trains on: its own, or the teacher's recorded ones."),
  options.eval_dataset("a task's validation rows, else none"),
  options.LABELS_AS_TEXT,
  options.student(f"the initial checkpoint's, else {DEFAULT_STUDENT}"),
  options.vocabulary("T5's published one"),
  option("--initial-checkpoint", field="RunConfig.initial_checkpoint",
         macro="INITIAL_CHECKPOINT_PATH", metavar="PATH", default_text="random weights",
         help="Weights to start from: a trained student, or a T5X or Hugging Face T5 checkpoint."),
  option("--initial-layers", field="RunConfig.initial_layers", metavar="uniform|first|last|0,2,5",
         default_text="all, which the student must have, too",
         help="Which of its layers a student with fewer starts from; for each stack by "
         "encoder=...;decoder=..."),
  option("--initial-optimizer-state/--no-initial-optimizer-state",
         field="RunConfig.initial_optimizer_state",
         help="Start Adafactor from the moments in a T5X checkpoint."),
  option("--agreement-weights/--no-agreement-weights", field="LossConfig.agreement_weights",
         help="Weight each row by the share of the teacher's answers to it that agree."),
  options.lengths(),
  options.TRAIN_STEPS,
  options.batch_size(),
  option("--learning-rate-multiplier", field="OptimizerConfig.learning_rate_multiplier",
         macro="LEARNING_RATE_MULTIPLIER", help="Times the base rate, which is printed."),
  option("--evaluation-interval", field="EvaluationConfig.interval_steps", macro="EVAL_PERIOD",
         help="Steps between evaluations, and between checkpoints."),
  option("--early-stopping/--no-early-stopping", field="EvaluationConfig.early_stopping",
         help=f"Stop after {EvaluationConfig.patience} evaluations in a row without an "
         "improvement."),
  option("--checkpoint-selection/--no-checkpoint-selection",
         field="EvaluationConfig.checkpoint_selection",
         help="Take the best checkpoint as the student, not the last."),
  options.MESH,
  options.seed("Of the weights, the order of rows and dropout."),
  options.GIN_FILE,
  options.GIN,
)  # fmt: skip
_NAME = options.options(
  option("--display-name", field="RunConfig.display_name", metavar="NAME",
         help="Register the student under this name when the run ends, as its next version.",
         default_text="it is not registered"),
  options.REGISTRY,
)  # fmt: skip
_STEP_BY_STEP = options.options(
  option("--alpha", field="LossConfig.alpha", macro="ALPHA",
         help="Weight of the label's loss; the rationale's is the rest."),
  options.SHARED_ENCODER,
)  # fmt: skip


@click.command()
@_TRAINING
@_STEP_BY_STEP
@kinds.OPTIONS
@options.teacher("Add missing labels and rationales by this teacher before training, as "
                 "dss annotate does; its answers are kept in --model-dir.",
                 default_text="none")  # fmt: skip
@_NAME
@process_options
def distill(**flags: Any) -> None:
  """Train a student on labels and rationales, step by step."""
  _train("runs/distill.gin", flags)


@click.command(short_help="Train a student on labels alone.")
@_TRAINING
@_NAME
@process_options
def tune(**flags: Any) -> None:
  """Train a student on labels alone (plain supervised tuning)."""
  _train("runs/tune.gin", flags)


@click.command(
  context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
  short_help="Train as gin files say, as T5X does.",
)
@options.GIN_FILE
@options.GIN
@_NAME
@process_options
@click.pass_context
def train(
  context: click.Context, gin_files: tuple[str, ...], gin: tuple[str, ...], **flags: Any
) -> None:
  """Train with T5X's command line: --gin_file=FILE ... --gin.NAME=VALUE ..."""
  from dss_jax.config.gin_loader import parse_binding

  if not gin_files:
    raise UserError("dss train: give --gin_file=gin_configs/runs/distill.gin, or a file of yours")
  bindings = [parse_binding(text, f"--gin {text}") for text in gin]
  for argument in context.args:
    if not argument.startswith("--gin.") or "=" not in argument:
      raise UserError(f"dss train: {argument!r} is not an option; write --gin.NAME=VALUE")
    name = argument.split("=", 1)[0]
    bindings.append(parse_binding(argument.removeprefix("--gin."), name))
  bindings += options.gin_bindings(flags)
  with in_processes(flags):
    _run(list(gin_files), bindings)


@click.command(short_help="Train every point of a grid.")
@click.argument("file", metavar="SWEEP.gin")
@_TRAINING
@_STEP_BY_STEP
@kinds.OPTIONS
def sweep(file: str, **flags: Any) -> None:
  """Train every point of a grid, each in its own folder under --model-dir; resumable."""
  from dss_jax.config.gin_loader import Binding, load_config
  from dss_jax.config.schema import RunConfig
  from dss_jax.losses.kinds import without_unused_teacher
  from dss_jax.pipelines import sweep as sweeping

  def config_of(point, model_dir):
    # A kind and a student are gin files, not values.
    values = [
      Binding(name, value, file) for name, value in point.items() if name not in ("KIND", "STUDENT")
    ]
    values.append(Binding("MODEL_DIR", model_dir, "--model-dir"))
    chosen = {**flags, "kind": point.get("KIND", flags["kind"])}
    files, bindings = files_and_bindings("runs/distill.gin", chosen)
    student = [student_file(point["STUDENT"], file)] if "STUDENT" in point else []
    config = load_config(RunConfig, [*files, *student], bindings + values)
    # One teacher is given for all kinds, and some need none.
    return without_unused_teacher(config) if "KIND" in point else config

  from dss_jax.storage.cache import keep_compiled_programs

  keep_compiled_programs()
  results = sweeping.run(sweeping.load_grid(file), flags["model_dir"], config_of)
  sweeping.print_table(results)


def _train(base: str, flags: dict[str, Any]) -> None:
  with in_processes(flags):
    _run(*files_and_bindings(base, flags))


def files_and_bindings(base: str, flags: dict[str, Any]) -> tuple[list[str], list[Any]]:
  """Returns the gin files and bindings of a command line, as `dss train` takes them.

  Args:
    base: the gin file of a run without --kind.
  """
  from dss_jax.config.gin_loader import Binding, parse_binding, value_in

  files, of_kinds = kinds.compose(base, flags.get("kind"), flags.get("kind_weights", ()))
  student = flags["student"]
  architecture: list[Binding] = []
  if student is None and flags["initial_checkpoint"] is not None and not flags["gin_files"]:
    from dss_jax.student.initialise import student_of

    student, architecture = student_of(flags["initial_checkpoint"], flags["model_dir"])
  if student is not None and not architecture:
    files = [*files, student_file(student, "--student")]
  mesh = mesh_choice(flags["mesh"])
  files = [*files, *mesh.files, *flags["gin_files"]]
  named = value_in(files, "RunConfig.student")
  if student is not None and not architecture and named != student:
    raise UserError(
      f"--student {student}: has no effect, since a --gin-file chooses {named!r}; leave out one "
      "of the two"
    )
  bindings = architecture + of_kinds + options.gin_bindings(flags)
  lengths = [(found, value) for found, value in options.given_options(flags) if found.key]
  if lengths:
    # One flag leaves the other length as the gin files have it.
    given = {found.key: value for found, value in lengths}
    all_lengths = {**value_in(files, "TASK_FEATURE_LENGTHS"), **given}
    place = ", ".join(found.flag for found, _ in lengths)
    bindings.append(Binding("TASK_FEATURE_LENGTHS", all_lengths, place))
  for axis, size in mesh.axes.items():
    bindings.append(Binding(f"MeshConfig.{axis}", size, "--mesh"))
  return files, bindings + [parse_binding(text, f"--gin {text}") for text in flags["gin"]]


def _run(files: list[str], bindings: list[Any]) -> None:
  from dss_jax.config.gin_loader import load_config
  from dss_jax.config.schema import RunConfig

  config = load_config(RunConfig, files, bindings)
  from dss_jax.parallel import processes
  from dss_jax.pipelines import distill as distilling
  from dss_jax.storage.cache import keep_compiled_programs

  keep_compiled_programs()
  card = distilling.run(config)
  if not processes.is_first():
    return
  summary = {key: card[key] for key in ("student", "steps", "best_step", "stopped_early")}
  summary = {"model_dir": config.model_dir, **summary, "metrics": card["metrics"]}
  if "registered" in card:
    summary["registered"] = card["registered"]
  echo(json.dumps(summary))
