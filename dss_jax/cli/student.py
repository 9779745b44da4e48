"""The commands that use a trained student: `dss predict`, `evaluate` and `export`."""

import contextlib
import json
from typing import Any

import click

from dss_jax.cli import options
from dss_jax.cli.options import option
from dss_jax.terminal import echo


@click.command()
@options.MODEL
@options.dataset("JSONL rows to answer; - is standard input.", required=True)
@options.LABELS_AS_TEXT
@options.output("Where the answered rows go; - is standard output.")
@option("--explain", is_flag=True, help="Write the student's rationale, too.")
@options.batch_size(default_text="the student's in training", uses_gin=False)
@option("--max-output-tokens", type=click.IntRange(min=1), metavar="N",
        help="The longest answer.",
        default_text="the longest target that the student was trained on")  # fmt: skip
@option("--num-candidates", field="DecodingConfig.num_candidates", use_default=True,
        help="Answers of each row: sampled, or the best of a search.")  # fmt: skip
@option("--temperature", field="DecodingConfig.temperature", use_default=True,
        help="Above 0: draws tokens, else takes the most likely one.")  # fmt: skip
@option("--top-k", field="DecodingConfig.top_k", use_default=True,
        help="Draws from the N most likely tokens.", default_text="all")  # fmt: skip
@option("--top-p", field="DecodingConfig.top_p", use_default=True,
        help="Draws from the most likely tokens that make up this probability.")  # fmt: skip
@option("--beams", field="DecodingConfig.beams", use_default=True,
        help="Above 1: searches with so many beams.")  # fmt: skip
@options.seed("Of the drawn tokens.", use_default=True)
@option("--log-probabilities", field="DecodingConfig.log_probabilities", use_default=True,
        is_flag=True, help="Write each token's, too.")  # fmt: skip
@option("--stop", field="DecodingConfig.stop", use_default=True, multiple=True, metavar="TEXT",
        help="An answer ends before this text; may be given several times.")  # fmt: skip
@options.WEIGHTS
@options.MESH
def predict(
  model: str,
  registry: str | None,
  dataset: str,
  labels_as_text: bool | None,
  output: str,
  explain: bool,
  batch_size: int | None,
  max_output_tokens: int | None,
  mesh: str | None,
  **decoding: Any,
) -> None:
  """Answer rows with a student."""
  from dss_jax.config.schema import DecodingConfig, check_decoding
  from dss_jax.data.records import check_rows

  decoding_config = DecodingConfig(**decoding)
  check_decoding(decoding_config)
  check_rows(dataset, bool(labels_as_text))
  from dss_jax.config.mesh_presets import mesh_config
  from dss_jax.parallel.mesh import make_mesh
  from dss_jax.storage.atomic import is_standard_output
  from dss_jax.storage.cache import keep_compiled_programs
  from dss_jax.student.predictor import Predictor, predict_file
  from dss_jax.student.student import Student

  keep_compiled_programs()
  student = Student.open(model, registry)
  batch_size = batch_size or student.config.batch_size
  device_mesh = make_mesh(mesh_config(mesh), batch_size)
  predictor = Predictor(student, device_mesh, batch_size=batch_size, decoding=decoding_config)
  rows = predict_file(
    predictor,
    dataset,
    output,
    explain=explain,
    max_output_tokens=max_output_tokens,
    labels_as_text=bool(labels_as_text),
  )
  # Rows on standard output are followed by nothing else.
  if not is_standard_output(output):
    echo(json.dumps({"output": output, "rows": rows}))


@click.command()
@option(
  "--model",
  "models",
  required=True,
  multiple=True,
  metavar="DIR",
  help="A trained student; several are compared with the first, row by row.",
)
@options.dataset("JSONL rows to evaluate on.")
@options.LABELS_AS_TEXT
@options.TASK
@option(
  "--split",
  type=click.Choice(["train", "validation", "test"]),
  default_text="test",
  help="Which rows of the task.",
)
@option("--explain", is_flag=True, help="Write and judge the student's rationales, too.")
@option("--text", "as_text", is_flag=True, help="Print a short report instead of JSON.")
@option(
  "--html",
  metavar="PAGE.html",
  help="Write one page with curves, confusion, reliability and the rows.",
)
@option(
  "--html-rows",
  type=click.IntRange(min=1),
  metavar="N",
  default=2000,
  show_default=True,
  help="The most rows of the page, failures first.",
)
@options.WEIGHTS
@options.REGISTRY
@options.MESH
def evaluate(
  models: tuple[str, ...],
  registry: str | None,
  dataset: str | None,
  labels_as_text: bool | None,
  task: str | None,
  data_dir: str | None,
  split: str | None,
  weights: Any,
  explain: bool,
  as_text: bool,
  html: str | None,
  html_rows: int,
  mesh: str | None,
) -> None:
  """Evaluate students on labelled rows; prints JSON."""
  from dss_jax.config.mesh_presets import mesh_config
  from dss_jax.evaluation.evaluate import compare_students, evaluate_student, source_for
  from dss_jax.evaluation.html_report import write_report
  from dss_jax.evaluation.text_report import to_text
  from dss_jax.storage.atomic import atomic_target
  from dss_jax.storage.cache import keep_compiled_programs
  from dss_jax.student.student import Student

  keep_compiled_programs()
  # All are opened before the first one is evaluated, which takes long; so is the page.
  students = [Student.open(model, registry) for model in models]
  source = source_for(students[0], dataset, task, data_dir, split, bool(labels_as_text))
  with contextlib.ExitStack() as stack:
    page = None if html is None else stack.enter_context(atomic_target(html))
    judgements = [
      evaluate_student(student, source, mesh_config(mesh), explain=explain, weights=weights)
      for student in students
    ]
    result = compare_students(judgements) if len(judgements) > 1 else judgements[0].report
    if page is not None:
      write_report(page, judgements, result, max_rows=html_rows)
  echo(to_text(result) if as_text else json.dumps(result, indent=2))


@click.command(short_help="Write a student for other programs.")
@options.MODEL
@option(
  "--format",
  "kind",
  required=True,
  type=click.Choice(["t5x", "t5x-orbax", "hf"]),
  help="T5X's native checkpoint, T5X's Orbax checkpoint, or a Hugging Face folder.",
)
@options.output("A new or empty folder.", metavar="DIR")
@option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32",
        show_default=True, help="Of the weights in the files.")  # fmt: skip
def export(model: str, registry: str | None, kind: Any, output: str, dtype: Any) -> None:
  """Write a student's best weights for T5X or Hugging Face transformers."""
  from dss_jax.student.export import export_student

  echo(json.dumps(export_student(model, output, kind, dtype=dtype, registry=registry)))
