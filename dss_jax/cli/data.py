"""The commands for rows: `dss validate`. Imports nothing heavy."""

import json

import click

from dss_jax.cli import options
from dss_jax.terminal import echo


@click.command(short_help="Check rows and report on them.")
@click.argument("file", metavar="FILE")
@options.eval_dataset()
@options.LABELS_AS_TEXT
@options.vocabulary("tokens are not counted")
@options.lengths(use_default=True)
@options.json_output("report")
def validate(
  file: str,
  eval_dataset: str | None,
  labels_as_text: bool | None,
  vocabulary: str | None,
  max_input_tokens: int,
  max_output_tokens: int,
  as_json: bool,
) -> None:
  """Check rows and report on them; names every bad row by its line."""
  from dss_jax.data.report.build import dataset_report
  from dss_jax.data.report.text import to_text
  from dss_jax.data.vocabularies import load_vocabulary

  report = dataset_report(
    file,
    eval_path=eval_dataset,
    labels_as_text=bool(labels_as_text),
    vocabulary=None if vocabulary is None else load_vocabulary(vocabulary),
    max_input_tokens=max_input_tokens,
    max_output_tokens=max_output_tokens,
  )
  echo(json.dumps(report.to_json(), indent=2) if as_json else to_text(report))
