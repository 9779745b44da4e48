"""`dss plan`. Imports nothing heavy at the top."""

import json
from typing import Any

import click

from dss_jax.config.mesh_presets import mesh_choice

# What each flag is called in gin.
_MACROS = {"batch_size": "BATCH_SIZE", "train_steps": "TRAIN_STEPS", "vocabulary": "VOCABULARY"}

_OPTIONS = (
  click.option("--student", metavar="SIZE", default="small", show_default=True,
               help="A file of gin_configs/models."),
  click.option("--mesh", metavar="NAME", default="v3-64", show_default=True,
               help="A TPU slice by Cloud's name, such as v3-64 or v5e-16."),
  click.option("--batch-size", type=click.IntRange(min=1), help="Examples a step.  [default: 24]"),
  click.option("--input-tokens", type=click.IntRange(min=8), default=1024, show_default=True,
               help="Of an example, both of its sequences together."),
  click.option("--output-tokens", type=click.IntRange(min=8), default=256, show_default=True,
               help="Likewise, label and rationale together."),
  click.option("--train-steps", type=click.IntRange(min=1), help="For the cost.  [default: 300]"),
  click.option("--vocabulary", metavar="bytes|FILE", help="[default: the size of T5's]"),
  click.option("--candidates/--no-candidates", default=False, show_default=True,
               help="Compile for the other meshes of the slice, too; a minute or more each."),
  click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON."),
  click.option("--gin", "gin", multiple=True, metavar="NAME=VALUE",
               help="One gin binding or macro; may be repeated, and wins over all else."),
)  # fmt: skip


def _with_options(function):
  for decorator in reversed(_OPTIONS):
    function = decorator(function)
  return function


@click.command(short_help="Compile a run's step for TPUs that are not here.")
@_with_options
def plan(**flags: Any) -> None:
  """Compile a run's step for TPUs that are not here: does it fit, and how fast can it be?

  It takes the extra `pip install 'dss-jax[tpu]'` and no TPU.
  """
  choice = mesh_choice(flags["mesh"])
  from dss_jax.plan.slices import check_slice, prepare_compiler

  tpu_slice = check_slice(choice.slice, flags["mesh"])
  from dss_jax.config.gin_loader import Setting, load_config, parse_setting
  from dss_jax.config.schema import RunConfig, student_file

  settings = [
    # A plan writes nothing.
    Setting("MODEL_DIR", "", "dss plan"),
    *(
      Setting(macro, flags[name], f"--{name.replace('_', '-')}")
      for name, macro in _MACROS.items()
      if flags[name] is not None
    ),
    *(Setting(f"MeshConfig.{axis}", size, "--mesh") for axis, size in choice.axes.items()),
    *(parse_setting(text, f"--gin {text}") for text in flags["gin"]),
  ]
  files = ["runs/distill.gin", student_file(flags["student"], "--student"), *choice.files]
  config = load_config(RunConfig, files, settings)
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
  )
  click.echo(
    json.dumps(report.to_json(planned), indent=2) if flags["as_json"] else report.to_text(planned)
  )
