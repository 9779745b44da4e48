"""`dss plan`. Imports nothing heavy."""

import json
from typing import Any

import click

from dss_jax.cli import options
from dss_jax.cli.options import option
from dss_jax.config.mesh_presets import mesh_choice
from dss_jax.terminal import echo


@click.command(short_help="Compile a run's step for TPUs that this machine lacks.")
@options.student()
@options.mesh(default="v3-64", show_default=True)
@options.batch_size()
@option(
  "--input-tokens",
  type=click.IntRange(min=8),
  default=1024,
  show_default=True,
  metavar="N",
  help="Input tokens per row of the batch: one example, both its sequences.",
)
@option(
  "--output-tokens",
  type=click.IntRange(min=8),
  default=256,
  show_default=True,
  metavar="N",
  help="Target tokens per row: one example, label and rationale.",
)
@option(
  "--teacher-size",
  metavar="SIZE",
  default_text="none",
  help="A teacher model, as a file of gin_configs/models, whose next tokens the run trains "
  "on (--kind response).",
)
@option(
  "--teacher-weights", field="SignalConfig.weights", help="How the teacher model is kept in memory."
)
@options.TRAIN_STEPS
@options.vocabulary("T5's published one")
@option(
  "--candidates/--no-candidates",
  default=False,
  show_default=True,
  help="Compile for the slice's other meshes, too; a minute or more each.",
)
@options.json_output("plan")
@options.GIN  # fmt: skip
def plan(**flags: Any) -> None:
  """Compile a run's step for a TPU slice: does it fit, and how fast can it be?

  Needs `pip install 'dss-jax[tpu]'`, but no TPU.
  """
  choice = mesh_choice(flags["mesh"])
  from dss_jax.plan.slices import check_slice, prepare_compiler

  tpu_slice = check_slice(choice.slice, flags["mesh"])
  from dss_jax.config.gin_loader import Binding, load_config, parse_binding
  from dss_jax.config.schema import RunConfig, student_file

  bindings = [
    # A plan writes no files.
    Binding("MODEL_DIR", "", "dss plan"),
    *options.gin_bindings(flags),
    *(Binding(f"MeshConfig.{axis}", size, "--mesh") for axis, size in choice.axes.items()),
    *(parse_binding(text, f"--gin {text}") for text in flags["gin"]),
  ]
  student = [] if flags["student"] is None else [student_file(flags["student"], "--student")]
  config = load_config(RunConfig, ["runs/distill.gin", *student, *choice.files], bindings)
  teacher = None
  if flags["teacher_size"] is not None:
    from dss_jax.student.teacher_model import as_teacher

    of_teacher = [*student, student_file(flags["teacher_size"], "--teacher-size"), *choice.files]
    bindings.append(Binding("LossConfig.extra_terms", {"response": 1.0}, "--teacher-size"))
    config = load_config(RunConfig, ["runs/distill.gin", *student, *choice.files], bindings)
    model = load_config(RunConfig, ["runs/distill.gin", *of_teacher], bindings).model
    teacher = as_teacher(model, config.model)
  prepare_compiler()
  from dss_jax.plan import command, report
  from dss_jax.plan.child_process import run_in_child_process

  planned = run_in_child_process(
    command.plan,
    config,
    tpu_slice,
    input_tokens=flags["input_tokens"],
    target_tokens=flags["output_tokens"],
    candidates=flags["candidates"],
    teacher=teacher,
  )
  echo(
    json.dumps(report.to_json(planned), indent=2) if flags["as_json"] else report.to_text(planned)
  )
