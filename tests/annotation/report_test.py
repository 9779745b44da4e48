"""The report: figures worked out by hand, reasons with lines, and the HTML page."""

import base64
import hashlib
import html.parser
import json
import re

import pytest

from dss_jax.annotation.html_page import write_page
from dss_jax.annotation.journal import Entry
from dss_jax.annotation.outcome import AnnotationConfig, Failure, Outcomes
from dss_jax.annotation.prompts import Prompt
from dss_jax.annotation.report import report_on, to_text
from dss_jax.data.records import write_rows
from dss_jax.errors import UserError
from dss_jax.storage.atomic import write_bytes
from dss_jax.storage.files import read_bytes
from dss_jax.teachers.base import TeacherResponse

EVIL = "</td><script>alert(1)</script><img src=x onerror='alert(2)'>\"&"


@pytest.fixture
def annotated(tmp_path):
  """A file with one row of each kind that a report distinguishes."""
  config = AnnotationConfig(show_labels=False)
  outcomes = Outcomes("openai:m", Prompt(instruction="Say."), config)

  def entry(text):
    return Entry(TeacherResponse(text, "stop", 100, 10), "2030-01-01T00:00:00Z")

  given = [
    ({"input_text": "one", "output_text": "yes"}, entry("It is yes, so yes.\nAnswer: yes")),
    ({"input_text": "two", "output_text": "no"}, entry("It is yes, so yes.\nAnswer: yes")),
    ({"input_text": EVIL}, entry(f"{EVIL} it is.\nAnswer: {EVIL}")),
    ({"input_text": "four", "output_text": "no"}, entry("No idea.")),
    ({"input_text": "five"}, Failure("failed", "HTTP 500: out of order")),
    ({"input_text": "six"}, entry("It is open.\nAnswer: ...")),
  ]
  rows = [outcomes.row(row, "both", [answer]) for row, answer in given]
  rows.append(outcomes.untouched({"input_text": "7", "output_text": "no", "rationale": "It is."}))
  write_rows(tmp_path / "o.jsonl", rows)
  return tmp_path / "o.jsonl"


def test_figures(annotated):
  report = report_on(annotated)
  assert report["statuses"] == {
    "failed": 1, "unasked": 0, "unparsable": 1, "undecided": 1, "answered": 3, "untouched": 1,
  }  # fmt: skip
  assert (report["rows"], report["labelled"], report["with_rationale"]) == (7, 5, 5)
  assert (report["parsed"], report["parsed_percent"]) == (4, 80.0)
  assert (report["agreeing"], report["compared_with_gold"]) == (1, 3)
  assert (report["prompt_tokens"], report["completion_tokens"]) == (500, 50)
  assert {k: v for k, v in report["concerns"].items() if v} == {
    "agreement": 1,
    "gold": 1,
    "echo": 1,
  }
  assert [(one["reason"], one["rows"], one["lines"]) for one in report["reasons"]] == [
    ('no "Answer:" in the answer', 1, [4]),
    ("HTTP 500", 1, [5]),
    ("the label '...' has no letter and no digit", 1, [6]),
  ]
  assert json.loads(json.dumps(report)) == report
  text = to_text(report)
  assert "parsed answers: 4 (80.00 %)" in text
  assert "1 of 3 (33.33 %)" in text
  assert "warning: most of this teacher's labels are wrong" in text
  assert "warning" not in to_text({**report, "agreeing_percent": 50.0})
  assert "warning" not in to_text({**report, "compared_with_gold": 0})
  assert "1  failed: HTTP 500 (line 5)" in text


class _PageParser(html.parser.HTMLParser):
  def __init__(self, text):
    super().__init__()
    self.tags, self.attributes, self.cells, self.texts = [], [], [], []
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    self.tags.append(tag)
    self.attributes += attributes
    if tag == "tr":
      self.cells.append([])
    elif tag == "td":
      self.cells[-1].append("")

  def handle_data(self, data):
    if self.cells and self.cells[-1]:
      self.cells[-1][-1] += data


def test_page(annotated, tmp_path):
  write_page(annotated, tmp_path / "p.html", report_on(annotated), max_rows=100)
  text = (tmp_path / "p.html").read_text()
  page = _PageParser(text)
  lines = [cells[0] for cells in page.cells if cells]
  # Failed, unparsable, undecided, disagreeing, with concerns; then the rest.
  assert lines == ["5", "4", "6", "2", "3", "1", "7"]
  evil = next(cells for cells in page.cells if cells and cells[0] == "3")
  assert evil[2] == evil[4] == EVIL
  assert page.tags.count("script") == 1
  assert "img" not in page.tags
  names = {name for name, _ in page.attributes}
  assert not {name for name in names if name.startswith("on") or name in ("src", "href")}
  assert not re.search(r"https?://|url\(|@import", text)
  policy = next(value for name, value in page.attributes if name == "content")
  hashes = [
    base64.b64encode(hashlib.sha256(re.search(f"<{tag}>(.*?)</{tag}>", text, re.S)[1].encode())
                     .digest()).decode()
    for tag in ("script", "style")
  ]  # fmt: skip
  assert policy == (
    f"default-src 'none'; script-src 'sha256-{hashes[0]}'; style-src 'sha256-{hashes[1]}'"
  )


def test_page_cells(annotated, tmp_path):
  """The rationale, or the reason why there is none; agreement, concerns, and raw answers."""
  write_page(annotated, tmp_path / "p.html", report_on(annotated), max_rows=100)
  page = _PageParser((tmp_path / "p.html").read_text())
  rows = {cells[0]: [cell.strip() for cell in cells[5:]] for cells in page.cells if cells}
  assert rows["5"] == ["0.00", "HTTP 500: out of order", "", ""]
  assert rows["7"][:3] == ["", "It is.", ""]
  answer = "It is yes, so yes."
  assert rows["2"] == ["1.00", answer, "gold", f"1{answer}\nAnswer: yes"]


def test_page_shows_all_rationales(tmp_path):
  provenance = {"status": "answered", "dropped_for": ["length", "echo"]}
  row = {"input_text": "x", "rationale": "a", "rationales": ["a", "b"], "provenance": provenance}
  write_rows(tmp_path / "o.jsonl", [row])
  write_page(tmp_path / "o.jsonl", tmp_path / "p.html", report_on(tmp_path / "o.jsonl"), max_rows=9)
  cells = _PageParser((tmp_path / "p.html").read_text()).cells[-1]
  assert cells[6:8] == ["a\n\nb", "dropped for length, dropped for echo"]


def test_page_shows_gold_and_teacher_labels(tmp_path):
  outcomes = Outcomes("t", Prompt(instruction="Say."), AnnotationConfig(teacher_labels="teacher"))
  answer = Entry(TeacherResponse("It is yes, so yes.\nAnswer: yes"), "2030-01-01T00:00:00Z")
  row = outcomes.row({"input_text": "x", "output_text": "no"}, "both", [answer])
  write_rows(tmp_path / "o.jsonl", [row])
  write_page(tmp_path / "o.jsonl", tmp_path / "p.html", report_on(tmp_path / "o.jsonl"), max_rows=9)
  cells = _PageParser((tmp_path / "p.html").read_text()).cells[-1]
  assert (row["output_text"], cells[3], cells[4]) == ("yes", "no", "yes")


def test_page_with_fewer_rows_shows_the_worst(annotated, tmp_path):
  write_page(annotated, tmp_path / "p.html", report_on(annotated), max_rows=3)
  text = (tmp_path / "p.html").read_text()
  assert [cells[0] for cells in _PageParser(text).cells if cells] == ["5", "4", "6"]
  assert "3 rows (4 more rows are in the file)" in text


@pytest.mark.parametrize(
  "provenance",
  [
    None,
    "answered",
    {"status": "perfect"},
    {"status": "answered", "samples": [3]},
    {"status": "answered", "samples": [{"prompt_tokens": "<b>"}]},
    {"status": "answered", "agreement": "high"},
    {"status": "answered", "concerns": [1]},
  ],
)
def test_rows_without_valid_provenance_are_errors(provenance, tmp_path):
  row = {"input_text": "x"} if provenance is None else {"input_text": "x", "provenance": provenance}
  write_rows(tmp_path / "o.jsonl", [row])
  with pytest.raises(UserError, match=r'o.jsonl:1: the row has no "provenance" of dss annotate'):
    report_on(tmp_path / "o.jsonl")


def test_rows_with_the_same_reason_are_counted_together(tmp_path):
  outcomes = Outcomes("t", Prompt(instruction="Say."), AnnotationConfig())
  rows = [
    outcomes.row({"input_text": f"{n}"}, "both", [Failure("failed", f"HTTP 400: row {n}")])
    for n in range(2000)
  ]
  write_rows(tmp_path / "o.jsonl", rows)
  reasons = report_on(tmp_path / "o.jsonl")["reasons"]
  assert [(one["reason"], one["rows"], one["lines"]) for one in reasons] == [
    ("HTTP 400", 2000, [1, 2, 3, 4, 5])
  ]


def test_the_report_of_a_url_goes_to_a_url(annotated, tmp_path):
  url = f"memory:/{tmp_path}"
  write_bytes(f"{url}/o.jsonl", annotated.read_bytes())
  report = report_on(f"{url}/o.jsonl")
  assert report == {**report_on(annotated), "file": f"{url}/o.jsonl"}
  write_page(f"{url}/o.jsonl", f"{url}/p.html", report_on(annotated), max_rows=3)
  write_page(annotated, tmp_path / "p.html", report_on(annotated), max_rows=3)
  assert read_bytes(f"{url}/p.html") == (tmp_path / "p.html").read_bytes()


def test_lines_of_the_text(annotated, tmp_path):
  text = to_text(report_on(annotated))
  assert re.search(r"^  failed +1  no request succeeded", text, re.M)
  assert "unasked" not in text
  assert "mean share" not in text
  assert "to train on: 5 labels, 5 rationales (0 dropped" in text
  assert "tokens: 500 in prompts, 50 in answers" in text
  assert re.search(r"--filter NAME\):\n  agreement +1 .*\n  gold +1 .*\n  echo +1 ", text)
  rows = [
    {"input_text": "x", "provenance": {"status": "failed", "reason": "HTTP 400: busy"}}
    for _ in range(6)
  ]
  write_rows(tmp_path / "six.jsonl", rows)
  text = to_text(report_on(tmp_path / "six.jsonl"))
  assert text.endswith("6  failed: HTTP 400 (line 1, 2, 3, 4, 5, ...)")
  assert "tokens" not in text
  assert "--filter" not in text


def test_mean_agreement_of_several_samples(tmp_path):
  config = AnnotationConfig(samples=2, temperature=1.0)
  outcomes = Outcomes("t", Prompt(instruction="Say."), config)
  answers = [
    [Entry(TeacherResponse(f"It is {label}.\nAnswer: {label}"), "") for label in labels]
    for labels in (("yes", "no"), ("yes", "yes"))
  ]
  rows = [outcomes.row({"input_text": "x"}, "both", samples) for samples in answers]
  write_rows(tmp_path / "o.jsonl", rows)
  text = to_text(report_on(tmp_path / "o.jsonl"))
  assert "mean share of samples that agree: 0.750" in text


def test_rows_of_the_page_are_marked(annotated, tmp_path):
  """The style colours rows by status, and those that disagree with gold or have concerns."""
  write_page(annotated, tmp_path / "p.html", report_on(annotated), max_rows=100)
  classes = re.findall(r'<tr class="([^"]*)">', (tmp_path / "p.html").read_text())
  assert classes == [
    "failed", "unparsable doubtful", "undecided doubtful", "answered doubtful",
    "answered doubtful", "answered", "untouched",
  ]  # fmt: skip
