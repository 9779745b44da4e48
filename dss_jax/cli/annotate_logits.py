"""`dss annotate --signal logits`. Imports nothing heavy."""

import json
from typing import Any

import click

from dss_jax.cli import kinds, options
from dss_jax.cli.options import option
from dss_jax.cli.train import files_and_bindings
from dss_jax.errors import UserError
from dss_jax.terminal import echo

_MOST_DRAWS = 2**16 - 1


@click.command()
@option("--signal", type=click.Choice(["logits"]), required=True,
        help="A T5-family teacher's next tokens, for dss distill --teacher-logits.")  # fmt: skip
@kinds.TEACHER_MODEL
@options.dataset("JSONL rows that the student will be trained on.")
@options.TASK
@option(
  "--label-source",
  field="DataConfig.label_source",
  macro="LABEL_SOURCE",
  help="Whose labels a task trains on: its own, or the teacher's recorded ones.",
)
@options.LABELS_AS_TEXT
@options.SHARED_ENCODER
@options.vocabulary("T5's published one")
@options.lengths()
@option(
  "--top-k",
  type=click.IntRange(min=1),
  metavar="K",
  help="Keep the K likeliest next tokens of each position.",
)
@option(
  "--draws",
  type=click.IntRange(1, _MOST_DRAWS),
  metavar="K",
  help="Keep K next tokens that are drawn from each distribution: an unbiased gradient.",
)
@option(
  "--temperature",
  type=click.FloatRange(0.01, 100),
  default=1.0,
  show_default=True,
  metavar="X",
  help="The teacher's logits are divided by it.",
)
@option(
  "--teacher-max-input-tokens",
  type=click.IntRange(2),
  metavar="N",
  help="In the vocabulary of a teacher with another one.",
  default_text="the student's",
)
@option(
  "--teacher-max-output-tokens",
  type=click.IntRange(2),
  metavar="N",
  help="As --teacher-max-input-tokens.",
  default_text="the student's",
)
@options.output("The folder of the next tokens.", metavar="DIR")
@options.MESH
@options.batch_size()
@options.seed("Of the draws.")
@options.REGISTRY
@options.GIN_FILE
@options.GIN
def annotate_logits(**flags: Any) -> None:
  """Write a T5-family teacher's next tokens for the rows of a run; resumable.

  The rows' flags are those of the `dss distill --teacher-logits DIR` that will read them.
  """
  from dss_jax.config.gin_loader import Binding, load_config
  from dss_jax.config.schema import RunConfig

  if flags["teacher_model"] is None:
    raise UserError(
      "dss annotate --signal logits: give --teacher-model with a T5-family teacher, since other "
      "teachers do not tell their next tokens"
    )
  no_student = {"student": None, "initial_checkpoint": None}
  files, bindings = files_and_bindings("runs/distill.gin", {**flags, **no_student})
  folder = Binding("MODEL_DIR", flags["output"], "--output")
  config = load_config(RunConfig, files, [folder, *bindings])
  from dss_jax.pipelines.annotate_logits import Kept, run
  from dss_jax.storage.cache import keep_compiled_programs

  keep_compiled_programs()
  lengths = (flags["teacher_max_input_tokens"], flags["teacher_max_output_tokens"])
  kept = Kept(flags["top_k"], flags["draws"], flags["temperature"], lengths)
  echo(json.dumps(run(config, flags["output"], kept)))
