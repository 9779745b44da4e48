"""The report's figures, the lines that it names, and its warnings."""

import json
import subprocess
import sys

import pytest

from dss_jax.data.records import write_rows
from dss_jax.data.report.build import dataset_report, report_on_rows
from dss_jax.data.report.counters import excerpts
from dss_jax.data.report.text import to_text
from dss_jax.data.vocabularies import load_vocabulary
from dss_jax.errors import UserError

LENGTHS = {"max_input_tokens": 512, "max_output_tokens": 128}


def row(text, label=None, rationale=None):
  fields = {"input_text": text, "output_text": label, "rationale": rationale}
  return {key: value for key, value in fields.items() if value is not None}


def report_of(rows, evaluation=None, **options):
  numbered = None if evaluation is None else enumerate(evaluation, start=1)
  return report_on_rows(
    enumerate(rows, start=1),
    name="train",
    eval_rows=numbered,
    eval_name="eval",
    **{**LENGTHS, **options},
  )


def plain_rows(count, start=0):
  """Returns rows without a problem."""
  return [
    row(f"Is it odd? Number {n}", "yes" if n % 2 else "no", f"{'yes' if n % 2 else 'no'}: {n}.")
    for n in range(start, start + count)
  ]


def warning_with(report, words):
  """Returns the one warning that contains the words."""
  found = [warning for warning in report.warnings if words in warning]
  assert len(found) == 1, report.warnings
  return found[0]


def test_good_data_has_no_warnings():
  report = report_of(plain_rows(200), plain_rows(20, start=200))
  assert report.warnings == []
  assert report.train.rows == report.train.labelled == report.train.with_rationale == 200
  assert report.train.labels.most_common == (("no", 100), ("yes", 100))
  assert report.train.instruction.words == "Is it odd?"
  assert report.train.instruction.missing.count == 0
  assert report.evaluation.rows == 20
  assert report.overlap.count == report.conflicts.count == 0


def test_every_problem_is_counted_named_and_warned_of():
  rows = plain_rows(200)
  rows[9] = rows[4]
  rows[19] = row(rows[14]["input_text"], "yes", "yes: so it is.")
  rows[29] = row("What about 29?", "no", "no: 29.")
  rows[39] = row("Is it odd? 39", "no", "I am silent.")
  rows[49] = row("Is it odd? 49", "no", "no, it breaks off at the")
  rows[59] = row("Is it odd? 59", None, "A reason for nothing.")
  rows[69] = row("Is it odd? 69")
  evaluation = plain_rows(20, start=300)
  evaluation[3] = rows[99]
  report = report_of(rows, evaluation)
  train = report.train
  assert (train.rows, train.labelled, train.with_rationale) == (200, 198, 199)
  assert train.duplicates.lines == ((10, 5),)
  assert report.conflicts.lines == ((20, 15),)
  assert train.instruction.missing.lines == (30,)
  assert train.label_not_mentioned.lines == (40,)
  assert train.mid_sentence.lines == (50,)
  assert train.rationale_without_label.lines == (60,)
  assert report.overlap.lines == ((4, 100),)
  assert train.mention_checked == 198
  for words, line in {
    "equal to an earlier one": 10,
    "more than one label": 20,
    "without the instruction": 30,
    "never mentions the label": 40,
    "ends mid-sentence": 50,
    "rationale and no label": 60,
    "also in the training data": 4,
  }.items():
    assert f"(line {line})" in warning_with(report, words)
  assert "2 rows" in warning_with(report, "without a label")
  assert len(report.warnings) == 8
  text = to_text(report)
  for words in ("line 10 repeats line 5", "line 20 contradicts line 15", "line 4 is training"):
    assert words in text
  for warning in report.warnings:
    assert warning in text


@pytest.mark.parametrize(
  ("train", "evaluation", "words"),
  [
    (99, 20, "99 rows to train on: 100 or more"),
    (100, 20, None),
    (10_000, 20, None),
    (10_001, 20, "10,001 training rows: the hosted service took at most 10,000"),
    (100, 9, "9 rows to evaluate on: the hosted service took 10 to 250"),
    (100, 10, None),
    (100, 250, None),
    (100, 251, "251 rows to evaluate on"),
  ],
)
def test_the_hosted_services_limits(train, evaluation, words):
  report = report_of(plain_rows(train), plain_rows(evaluation, start=20_000))
  if words is None:
    assert report.warnings == []
  else:
    assert warning_with(report, words) == report.warnings[0]


@pytest.mark.parametrize(("count", "advised"), [(1, True), (1000, True), (1001, False)])
def test_more_than_1000_rows_are_advised_where_labels_are_missing(count, advised):
  report = report_of([row(f"Is it odd? {n}") for n in range(count)])
  assert any("more than 1,000 are advised" in warning for warning in report.warnings) == advised


def test_label_warnings():
  rows = [row(f"Is it odd? {n}", "Yes" if n else "yes") for n in range(100)]
  report = report_of(rows, [row(f"Is it odd? {n}", "maybe") for n in range(100, 120)])
  warning_with(report, '"Yes" and "yes" differ only in case, spaces or invisible')
  warning_with(report, '99.0% of the labels are "Yes"')
  warning_with(report, 'evaluation labels that no training row has: "maybe"')
  warning_with(report, 'all labels are "maybe"')
  bare = report_of([row(f"{n} is {n}", "ab"[n % 2]) for n in range(100)])
  assert "the possible labels" in warning_with(bare, "no instruction is shared")


def test_a_style_of_most_rows_is_not_warned_of():
  rows = [row(f"Is it odd? {n}", "ab"[n % 2], "for reasons unsaid") for n in range(100)]
  report = report_of(rows)
  assert report.train.label_not_mentioned.count == report.train.mid_sentence.count == 100
  assert report.warnings == []


def test_tokens_include_the_prefix_and_the_end_mark():
  vocabulary = load_vocabulary("bytes")
  rows = [row("ä" * 10, "b" * 7, "c" * 8), row("a" * 21, "b" * 8, "c")]
  # "predict: " is 9 bytes, the end mark one token more: 30 and 31 in all.
  report = report_of(rows, vocabulary=vocabulary, max_input_tokens=30, max_output_tokens=8)
  lengths = report.train.lengths
  assert (lengths["input"].tokens.p50, lengths["input"].tokens.longest) == (30, 31)
  assert lengths["input"].characters.longest == 21
  assert lengths["input"].cut.lines == (2,)
  assert lengths["label"].cut.lines == (2,)
  assert lengths["rationale"].cut.lines == (1,)
  assert report.vocabulary == "bytes"
  assert "--max-input-tokens" in warning_with(
    report, "whose input is longer than 30 tokens (line 2)"
  )
  assert "--max-output-tokens" in warning_with(
    report, "whose label is longer than 8 tokens (line 2)"
  )
  without = report_of(rows)
  assert without.train.lengths["input"].tokens is without.train.lengths["input"].cut is None


def test_texts_that_the_vocabulary_rewrites_are_counted_and_shown(small_vocabulary):
  labels = ["red ", "red  box", "red\tbox", "box 12", "box １２", "{red}", "red "]
  rows = [row(f"Which one? {n}", label) for n, label in enumerate(labels)]
  rows.append(row("Which one?", "red", "the red\nbox"))
  report = report_of(rows, vocabulary=small_vocabulary)
  found = report.train.rewritten["label"]
  assert (found.rows.count, found.rows.lines) == (6, (1, 2, 3, 5, 6))
  assert (found.spaces, found.unknown, found.normalised) == (4, 1, 1)
  # One of each cause.
  assert [(one.line, one.text, one.written) for one in found.examples] == [
    (1, "red ", "red"),
    (5, "box １２", "box 12"),
    (6, "{red}", " ⁇ red ⁇ "),
  ]
  assert report.train.rewritten["rationale"].spaces == 1
  warning = warning_with(report, "6 rows whose label cannot be written with the vocabulary")
  assert '"red " becomes "red"; "box １２" becomes "box 12"; "{red}" becomes " ⁇ red ⁇ "' in warning
  assert "lines 1, 2, 3, 5, 6, ...; 4 with other spaces, tabs or line breaks, 1 with" in warning
  warning_with(report, "1 row whose rationale cannot be written")
  assert "labels rewritten     6 (lines 1, 2" in to_text(report)
  assert r'"the red\nbox" becomes "the red box"' in to_text(report)
  in_bytes = report_of(rows, vocabulary=load_vocabulary("bytes"))
  assert in_bytes.train.rewritten["label"].rows.count == 0
  assert report_of(rows).train.rewritten == {}


def test_labels_that_the_vocabulary_writes_alike_are_named(small_vocabulary):
  rows = [row(f"{n}?", label) for n, label in enumerate(["{", "}", "red", "red "])]
  report = report_of(rows, vocabulary=small_vocabulary)
  # Spaces alone are said of the labels already.
  assert report.train.labels.same_written == (("{", "}"),)
  warning_with(report, 'the labels "{" and "}" alike')


def test_the_shown_parts_of_long_texts_have_the_first_difference():
  text = "a" * 100 + "{" + "b" * 100
  shown, written = excerpts(text, text.replace("{", " ⁇ "))
  assert shown == f"...{'a' * 30}{{{'b' * 29}..."
  assert written == f"...{'a' * 30} ⁇ {'b' * 27}..."
  assert excerpts(text + " ", text)[1] == "..." + "b" * 30
  assert excerpts("a ", "a") == ("a ", "a")


def test_tokens_of_many_rows_are_all_counted():
  rows = [row("a" * (n % 5 + 1)) for n in range(5000)]
  report = report_of(rows, vocabulary=load_vocabulary("bytes"), max_input_tokens=14)
  assert report.train.lengths["input"].tokens.count == 5000
  assert report.train.lengths["input"].cut.count == 1000


def test_files_give_the_same_report_as_their_rows(tmp_path):
  train, evaluation = tmp_path / "train.jsonl.gz", tmp_path / "eval.jsonl"
  write_rows(train, plain_rows(50))
  write_rows(evaluation, plain_rows(5, start=48))
  report = dataset_report(
    train, eval_path=evaluation, vocabulary=load_vocabulary("bytes"), **LENGTHS
  )
  rows = report_on_rows(
    enumerate(plain_rows(50), start=1),
    name=str(train),
    eval_rows=enumerate(plain_rows(5, start=48), start=1),
    eval_name=str(evaluation),
    vocabulary=load_vocabulary("bytes"),
    **LENGTHS,
  )
  assert report == rows
  assert report.overlap.count == 2
  shown = json.loads(json.dumps(report.to_json(), allow_nan=False))
  assert shown["train"]["rows"] == 50
  assert shown["train"]["lengths"]["input"]["cut"] == {"count": 0, "lines": []}
  assert shown["overlap"] == {"count": 2, "lines": [[1, 49], [2, 50]]}
  assert dataset_report(train, **LENGTHS).to_json()["evaluation"] is None


def test_bad_lines_of_both_files_come_in_one_error(tmp_path):
  train, evaluation = tmp_path / "train.jsonl", tmp_path / "eval.jsonl"
  train.write_text('x\n{"input_text": "a"}\n' + "y\n" * 11)
  evaluation.write_text("z\n" * 10)
  with pytest.raises(UserError) as caught:
    dataset_report(train, eval_path=evaluation, **LENGTHS)
  lines = str(caught.value).split("\n")
  assert lines[0].startswith(f"{train}:1: ")
  assert lines[12].startswith(f"{evaluation}:1: ")
  assert lines[20:] == ["and 2 more bad lines"]


def test_an_empty_file_is_named(tmp_path):
  train, evaluation = tmp_path / "train.jsonl", tmp_path / "eval.jsonl"
  write_rows(train, plain_rows(5))
  evaluation.touch()
  with pytest.raises(UserError, match=r"eval\.jsonl: no rows"):
    dataset_report(train, eval_path=evaluation, **LENGTHS)


def test_memory_does_not_grow_with_the_file(tmp_path):
  path = tmp_path / "many.jsonl"
  write_rows(path, (row(f"Is it odd? {n}" + "x" * 150, "no") for n in range(150_000)))
  code = (
    "import resource, sys; from dss_jax.data.report.build import dataset_report\n"
    "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
    "before = peak()\n"
    "rows = dataset_report(\n"
    "  sys.argv[1], max_input_tokens=512, max_output_tokens=128).train.rows\n"
    "print(rows, peak() - before)"
  )
  shown = subprocess.run(
    [sys.executable, "-c", code, path], capture_output=True, text=True, check=True
  )
  rows, grown = map(int, shown.stdout.split())
  assert rows == 150_000
  # The file has 29 MB, its rows as Python objects about 80 MB; buffers take less than 45 MB.
  assert grown < 45e6


def test_real_rows(shared, tmp_path):
  names = ("entailment", "neutral", "contradiction")
  with open(shared / "data/esnli/valid.jsonl", encoding="utf-8") as lines:
    published = [json.loads(line) for line in lines]
  rows = [
    row(f"{one['premise']} {one['hypothesis']}", names[one["label"]], one["explanation_1"])
    for one in published
  ]
  vocabulary = load_vocabulary(str(shared / "data/vocab/t5_spiece.model"))
  report = report_of(rows, vocabulary=vocabulary)
  labels = [one["label"] for one in published]
  assert dict(report.train.labels.most_common) == {
    name: labels.count(number) for number, name in enumerate(names)
  }
  theirs = sorted(len(vocabulary.encode("predict: " + one["input_text"])) + 1 for one in rows)
  assert report.train.lengths["input"].tokens.longest == theirs[-1]
  assert report.train.lengths["input"].tokens.p50 == theirs[(len(theirs) - 1) // 2]
