"""The page: failures first, every text escaped, a chart for what the run has recorded."""

import io
import re

import pytest

from dss_jax.evaluation.evaluate import compare_students
from dss_jax.evaluation.html_report import write_report

EVIL = '<img src="x" onerror=alert(1)>\n  & "quoted"'


def page_of(*judgements, max_rows=100):
  result = compare_students(judgements) if len(judgements) > 1 else judgements[0].report
  file = io.BytesIO()
  write_report(file, judgements, result, max_rows=max_rows)
  return file.getvalue().decode()


def numbers_of(page):
  return [int(number) for number in re.findall(r'<tr class="\w+"><td data-key="(\d+)">', page)]


ROWS = [
  ("one", "yes", "yes", 0.9), ("two", "no", "yes", 0.3), ("three", "yes", "yes", 0.2),
  ("four", "no", "yes", 0.8), ("five", "no", "no", 0.5),
]  # fmt: skip


def test_failures_come_first_the_surest_at_the_top(make_judgement):
  judgement = make_judgement(ROWS)
  page = page_of(judgement)
  assert numbers_of(page) == [4, 2, 1, 3, 5]
  assert re.findall(r'<tr class="(\w+)">', page) == ["wrong"] * 2 + ["right"] * 3
  page = page_of(judgement, max_rows=3)
  assert numbers_of(page) == [4, 2, 1]
  assert "3</span> of 3 rows (2 more rows are not shown)" in page


def test_two_students_share_the_table(make_judgement):
  one = make_judgement(ROWS, name="one")
  two = make_judgement([(*row[:2], "yes", 0.5) for row in ROWS], name="two")
  page = page_of(one, two)
  # Wrong by both, the surest first; then by one.
  assert numbers_of(page) == [4, 2, 5, 1, 3]
  assert "1 of 2 right" in page
  for head in ("answer of one", "probability of one", "answer of two", "probability of two"):
    assert f"<button>{head}</button>" in page
  assert page.count("<svg") == 8


def test_every_text_is_escaped(make_judgement):
  rows = [(EVIL, EVIL, f"{EVIL}{n}", 0.5) for n in range(5)]
  page = page_of(make_judgement(rows, name="<b>", rationale=EVIL))
  assert "<img" not in page
  assert "<b>" not in page
  assert page.count("&lt;img src=") >= 4 * 5
  tags = re.findall(r"<[a-z][^>]*>", page)
  assert not [tag for tag in tags if re.search(r"\s(src|href|style|on\w+)=", tag)]
  assert '<th scope="row">&lt;img' in page


def test_the_rationale_has_a_column_if_it_was_asked_for(make_judgement):
  assert "<button>rationale</button>" not in page_of(make_judgement(ROWS))
  page = page_of(make_judgement(ROWS, name="explained", rationale="Because yes."))
  assert "<button>rationale</button>" in page
  assert page.count('<td class="text">Because yes.</td>') == 5


@pytest.mark.parametrize(
  ("metrics", "charts"),
  [
    (None, 1),  # the reliability alone
    ("not JSON\n", 1),
    ('{"step": 1}\n', 1),
    ('{"step": 1, "train_total_loss": 2.0}\n{"step": 2, "train_to', 2),
    ('[1]\n', 1),
  ],
)  # fmt: skip
def test_a_folder_without_readable_metrics_has_fewer_charts(make_judgement, metrics, charts):
  judgement = make_judgement(ROWS)
  path = judgement.directory / "metrics.jsonl"
  if metrics is None:
    path.unlink()
  else:
    path.write_text(metrics)
  assert page_of(judgement).count("<svg") == charts


def test_the_confusion(make_judgement):
  rows = [("q", "yes", "yes", 0.5)] * 5 + [("q", "no", "maybe", 0.5)] * 5
  page = page_of(make_judgement(rows))
  assert '<tr><th scope="row">yes</th><td class="none">0</td>' in page
  assert (
    '<tr><th scope="row">no</th><td class="none">0</td><td class="none">0</td>'
    '<td class="wrong">5</td></tr>'
  ) in page
