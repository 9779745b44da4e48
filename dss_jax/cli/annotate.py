"""The teacher's commands: `dss annotate` and `dss annotate report`. Imports nothing heavy."""

import json
from typing import Any

import click

from dss_jax.errors import UserError

# The names of teacher/filters.py, which is not imported for a --help.
CONCERN_NAMES = ("agreement", "gold", "length", "unmentioned", "cut-off", "echo")


# The teacher's flags of `distill`, by name and what each is called in gin.
DISTILL_SETTINGS = {
  "teacher": "TeacherConfig.name",
  "teacher_url": "TeacherConfig.url",
  "teacher_key_env": "TeacherConfig.key_env",
  "teacher_labels": "TeacherConfig.labels",
  "prompt": "TeacherConfig.prompt",
  "samples": "TeacherConfig.samples",
  "temperature": "TeacherConfig.temperature",
  "rationales_per_row": "TeacherConfig.rationales_per_row",
  "budget_tokens": "TeacherConfig.budget_tokens",
}

DISTILL_OPTIONS = (
  click.option("--teacher", metavar="openai:MODEL|recorded:FILE|t5:MODEL_DIR",
               help="Ask this teacher for what rows lack, before training, as "
               "dss annotate does; the answers are kept in --model-dir.  [default: nobody]"),
  click.option("--teacher-url", metavar="URL", help="The server of openai:MODEL."),
  click.option("--teacher-key-env", metavar="NAME",
               help="The variable that holds its key.  [default: OPENAI_API_KEY]"),
  click.option("--teacher-labels", type=click.Choice(["keep", "missing", "teacher"]),
               help="Which rows get the teacher's label.  [default: missing]"),
  click.option("--prompt", metavar="NAME|FILE.yaml",
               help="[default: the task's, else one made from the rows]"),
  click.option("--samples", type=int, help="Answers a row, voted on.  [default: 1]"),
  click.option("--temperature", type=float, help="Of the teacher.  [default: 0]"),
  click.option("--rationales-per-row", type=int,
               help="Rationales a row to train on, at most.  [default: 1]"),
  click.option("--budget-tokens", type=int, help="Ask no more beyond.  [default: no limit]"),
)  # fmt: skip


class _AnnotateCommand(click.Command):
  """`annotate report ...` is a command of its own; a data file of this name is ./report."""

  def make_context(self, info_name, args, parent=None, **extra):
    if args[:1] == ["report"]:
      return annotate_report.make_context("annotate report", args[1:], parent=parent, **extra)
    return super().make_context(info_name, args, parent=parent, **extra)


_ANNOTATE = (
  click.argument("data", metavar="DATA.jsonl"),
  click.option("--teacher", required=True, metavar="openai:MODEL|recorded:FILE|t5:MODEL_DIR",
               help="Who is asked."),
  click.option("--teacher-url", metavar="URL",
               help="The server of openai:MODEL, like http://HOST:PORT/v1.  [default: OpenAI's]"),
  click.option("--teacher-key-env", metavar="NAME", default="OPENAI_API_KEY", show_default=True,
               help="The environment variable that holds the key."),
  click.option("--output", metavar="FILE", help="Where the annotated rows go."),
  click.option("--task", metavar="NAME|FILE.py",
               help="DATA is a published file of this task, read and judged as the task does."),
  click.option("--prompt", metavar="NAME|FILE.yaml",
               help="[default: the task's, else one made from the rows]"),
  click.option("--labels", type=click.Choice(["keep", "missing", "teacher"]), default="missing",
               show_default=True,
               help="keep: rows gain no label; missing: rows without one gain the teacher's; "
               "teacher: every row has the teacher's."),
  click.option("--show-labels/--hide-labels", default=True, show_default=True,
               help="Show the teacher a label that is kept, to be explained; hidden, its agreement "
               "with the label is measured."),
  click.option("--samples", type=click.IntRange(1, 1000), default=1, show_default=True,
               help="Answers a row; the label of most of them wins."),
  click.option("--temperature", type=click.FloatRange(0, 2), default=0.0, show_default=True),
  click.option("--rationales-per-row", type=click.IntRange(1, 1000), default=1, show_default=True,
               help="The most rationales that a row keeps; all are trained on."),
  click.option("--filter", "filters", multiple=True, type=click.Choice(CONCERN_NAMES),
               help="Drop rationales with this concern; may be repeated."),
  click.option("--min-agreement", type=click.FloatRange(0, 1), default=0.5, show_default=True,
               help="The least share of samples with the winning label."),
  click.option("--rationale-words", type=click.IntRange(min=0), nargs=2, default=(3, 300),
               show_default=True, metavar="FEWEST MOST"),
  click.option("--max-requests-in-flight", type=click.IntRange(1, 4096), default=32,
               show_default=True),
  click.option("--timeout-seconds", type=click.FloatRange(min=0, min_open=True), default=120.0,
               show_default=True, help="For one attempt of one request."),
  click.option("--attempts", type=click.IntRange(1, 100), default=6, show_default=True,
               help="Attempts of one request before its row is set aside."),
  click.option("--form", type=click.Choice(["chat", "completion"]), default="chat",
               show_default=True, help="Chat messages, or plain text to be continued."),
  click.option("--budget-tokens", type=click.IntRange(min=1), metavar="N",
               help="Ask no more once so many tokens are spent, earlier runs' included."),
  click.option("--prices", type=click.FloatRange(min=0), nargs=2, metavar="PROMPT COMPLETION",
               help="Money for a million tokens each, for the cost."),
  click.option("--runner", type=click.Choice(["DirectRunner", "DataflowRunner"]),
               help="Annotate in parts as an Apache Beam pipeline.  [default: in this process]"),
  click.option("--runner-option", "runner_options", multiple=True, metavar="NAME=VALUE",
               help="An option of Beam or its runner; may be repeated."),
  click.option("--dry-run", is_flag=True, help="Print three prompts and what all would cost."),
)  # fmt: skip


def _with_options(function):
  for decorator in reversed(_ANNOTATE):
    function = decorator(function)
  return function


@click.command(cls=_AnnotateCommand, short_help="Ask a teacher for labels and rationales.")
@_with_options
def annotate(**flags: Any) -> None:
  """Ask a teacher for the labels and rationales that rows lack; resumable.

  `dss annotate report OUT.jsonl` tells how well it went.
  """
  from dss_jax.annotation.annotate_file import TeacherOptions, annotate_file, expect_file
  from dss_jax.annotation.filters import Limits
  from dss_jax.annotation.outcome import AnnotationConfig
  from dss_jax.annotation.run import RequestConfig
  from dss_jax.annotation.usage import Prices

  if not flags["dry_run"] and flags["output"] is None:
    raise UserError("dss annotate: give --output OUT.jsonl, or --dry-run to see what it would ask")
  options = TeacherOptions(
    teacher=flags["teacher"],
    url=flags["teacher_url"],
    key_env=flags["teacher_key_env"],
    timeout_seconds=flags["timeout_seconds"],
    attempts=flags["attempts"],
  )
  choices = AnnotationConfig(
    labels=flags["labels"],
    show_labels=flags["show_labels"],
    samples=flags["samples"],
    temperature=flags["temperature"],
    rationales_per_row=flags["rationales_per_row"],
    filters=frozenset(flags["filters"]),
    limits=Limits(
      min_agreement=flags["min_agreement"], rationale_words=tuple(flags["rationale_words"])
    ),
  )
  settings = RequestConfig(
    form=flags["form"],
    max_requests_in_flight=flags["max_requests_in_flight"],
    budget_tokens=flags["budget_tokens"],
    prices=Prices(*(flags["prices"] or ())),
  )
  rest = {"task": flags["task"], "prompt": flags["prompt"]}
  if not flags["dry_run"]:
    beam = {"runner": flags["runner"], "runner_options": flags["runner_options"]}
    report = annotate_file(
      flags["data"], flags["output"], options, choices, settings, **rest, **beam
    )
    click.echo(json.dumps(report))
    return
  report = expect_file(flags["data"], options, choices, settings, **rest)
  for number, prompt in enumerate(report.pop("prompts"), start=1):
    click.echo(f"----- prompt {number} -----\n{prompt}\n")
  click.echo(json.dumps(report))


@click.command("annotate-report")
@click.argument("file", metavar="OUT.jsonl")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--html", metavar="PAGE.html", help="Write one page to read the rationales in.")
@click.option(
  "--html-rows",
  type=click.IntRange(min=1),
  default=2000,
  show_default=True,
  help="The most rows of the page; failures come first.",
)
def annotate_report(file: str, as_json: bool, html: str | None, html_rows: int) -> None:
  """Tell how well a teacher's answers parse, agree and read."""
  from dss_jax.annotation.html_page import write_page
  from dss_jax.annotation.report import report_on, to_text

  report = report_on(file)
  if html is not None:
    write_page(file, html, report, max_rows=html_rows)
  click.echo(json.dumps(report, indent=2) if as_json else to_text(report))
