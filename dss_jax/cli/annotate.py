"""The teacher's commands: `dss annotate` and `dss annotate report`. Imports nothing heavy."""

import itertools
import json
from typing import Any

import click

from dss_jax.cli import options
from dss_jax.cli.annotate_logits import annotate_logits
from dss_jax.cli.options import option
from dss_jax.errors import UserError
from dss_jax.terminal import echo


class _AnnotateCommand(click.Command):
  """Runs `annotate report ...` as its own command; a data file named report is ./report.

  So it does `annotate --signal logits ...`, which has other flags.
  """

  def make_context(self, info_name, args, parent=None, **extra):
    if args[:1] == ["report"]:
      return annotate_report.make_context("annotate report", args[1:], parent=parent, **extra)
    if "--signal=logits" in args or ("--signal", "logits") in itertools.pairwise(args):
      return annotate_logits.make_context(info_name, args, parent=parent, **extra)
    return super().make_context(info_name, args, parent=parent, **extra)


@click.command(
  cls=_AnnotateCommand,
  short_help="Ask a teacher for labels and rationales; `annotate report` on its answers.",
)
@click.argument("data", metavar="DATA.jsonl")
@option("--signal", type=click.Choice(["text", "logits"]), default="text", show_default=True,
        help="What the teacher gives: text, or next tokens (dss annotate --signal logits "
        "--help).")  # fmt: skip
@options.teacher("The teacher.", required=True)
@options.output("Where the annotated rows go.", required=False)
@options.LABELS_AS_TEXT
@options.TASK_NAME
@option(
  "--show-labels/--hide-labels",
  field="TeacherConfig.show_labels",
  help="Show the teacher a row's own label, to explain it; hidden, its agreement with the "
  "label is measured.",
)
@option(
  "--filter",
  "filters",
  multiple=True,
  field="TeacherConfig.filters",
  help="Drop rationales with this concern; may be repeated.",
)
@option(
  "--min-agreement",
  field="TeacherConfig.min_agreement",
  help="The least share of samples with the winning label.",
)
@option(
  "--rationale-words",
  nargs=2,
  field="TeacherConfig.rationale_words",
  metavar="FEWEST MOST",
  help="The length of a rationale, in words.",
)
@option(
  "--max-requests-in-flight",
  field="TeacherConfig.max_requests_in_flight",
  help="Requests at a time.",
)
@option(
  "--timeout-seconds", field="TeacherConfig.timeout_seconds", help="For one attempt of one request."
)
@option(
  "--attempts",
  field="TeacherConfig.attempts",
  help="Attempts of one request before its row is given up.",
)
@option(
  "--prices",
  type=click.FloatRange(min=0),
  nargs=2,
  metavar="PROMPT COMPLETION",
  help="Price of a million tokens of each, to estimate the cost.",
)
@option(
  "--runner",
  type=click.Choice(["DirectRunner", "DataflowRunner"]),
  help="Annotate as an Apache Beam pipeline.",
  default_text="in this process",
)
@option(
  "--runner-option",
  "runner_options",
  multiple=True,
  metavar="NAME=VALUE",
  help="An option of Beam or its runner; may be repeated.",
)
@option("--dry-run", is_flag=True, help="Print three prompts and the expected cost.")  # fmt: skip
def annotate(**flags: Any) -> None:
  """Ask a teacher for the labels and rationales that rows lack; resumable.

  With --task, DATA.jsonl is a published file of that task.
  `dss annotate report OUT.jsonl` reports on the answers.
  """
  from dss_jax.annotation.annotate_file import annotate_file, dry_run_file
  from dss_jax.annotation.teacher_settings import annotation_settings
  from dss_jax.annotation.usage import Prices
  from dss_jax.config.gin_loader import load_config
  from dss_jax.config.schema import TeacherConfig

  if not flags["dry_run"] and flags["output"] is None:
    raise UserError("dss annotate: give --output OUT.jsonl, or --dry-run to see what it would ask")
  bindings = [
    binding for binding in options.gin_bindings(flags) if binding.name.startswith("TeacherConfig.")
  ]
  teacher = load_config(TeacherConfig, [], bindings)
  settings = annotation_settings(teacher, Prices(*(flags["prices"] or ())))
  task, prompt = flags["task"], flags["prompt"]
  if not flags["dry_run"]:
    report = annotate_file(
      flags["data"],
      flags["output"],
      *settings,
      task=task,
      labels_as_text=bool(flags["labels_as_text"]),
      prompt=prompt,
      runner=flags["runner"],
      runner_options=flags["runner_options"],
    )
    echo(json.dumps(report))
    return
  labels_as_text = bool(flags["labels_as_text"])
  report = dry_run_file(
    flags["data"], *settings, task=task, labels_as_text=labels_as_text, prompt=prompt
  )
  for number, prompt in enumerate(report.pop("prompts"), start=1):
    echo(f"----- prompt {number} -----\n{prompt}\n")
  echo(json.dumps(report))


@click.command()
@click.argument("file", metavar="OUT.jsonl")
@options.json_output("report")
@option("--html", metavar="PAGE.html", help="Write one page to read the rationales in.")
@option("--html-rows", type=click.IntRange(min=1), metavar="N", default=2000, show_default=True,
        help="The most rows of the page; failures come first.")  # fmt: skip
def annotate_report(file: str, as_json: bool, html: str | None, html_rows: int) -> None:
  """Report how many of a teacher's answers parse and agree, and how they read."""
  from dss_jax.annotation.html_page import write_page
  from dss_jax.annotation.report import report_on, to_text

  report = report_on(file)
  if html is not None:
    write_page(file, html, report, max_rows=html_rows)
  echo(json.dumps(report, indent=2) if as_json else to_text(report))
