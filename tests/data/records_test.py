"""Streamed reading of rows, messages for bad lines, and atomic writing."""

import gzip
import json
import os

import fsspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dss_jax.data import records
from dss_jax.data.records import RowProblem, check_rows, read_rows, scan_rows, write_rows
from dss_jax.errors import UserError
from dss_jax.storage.files import open_text

GOOD = b'{"input_text": "a"}\n'


@pytest.fixture
def path(tmp_path):
  return tmp_path / "train.jsonl"


def problem_of(path, line):
  path.write_bytes(GOOD + line + b"\n" + GOOD)
  items = list(scan_rows(path))
  assert items[0] == (1, {"input_text": "a"})
  assert items[2] == (3, {"input_text": "a"})
  assert isinstance(items[1], RowProblem)
  assert str(items[1]).startswith(f"{path}:2: ")
  return items[1].what


@pytest.mark.parametrize(
  ("line", "words"),
  [
    (b"", "blank"),
    (b" \t\r", "blank"),
    (b"\xff{}", "not UTF-8 (byte 0xff at 0)"),
    (b'{"input_text": "a",}', "not JSON"),
    (b"{} {}", "not JSON (Extra data at character 4"),
    (b"[1]", "an array, not a JSON object"),
    (b"null", "null, not a JSON object"),
    (b"3", "a number, not a JSON object"),
    (b"NaN", "NaN is not JSON"),
    (b'{"input_text": "a", "x": -Infinity}', "-Infinity is not JSON"),
    (b'{"input_text": "a", "x": 1e999}', "too large"),
    (b'{"input_text": "a", "x": ' + b"9" * 5000 + b"}", "too many digits"),
    (b"[" * 200_000, "nested too deeply"),
    (b'{"input_text": "a", "input_text": "b"}', 'the key "input_text" appears twice'),
    (b'{"input_text": "a", "x": {"y": 1, "y": 2}}', 'the key "y" appears twice'),
    (b'{"prompt": "a"}', '"input_text" is missing (found "prompt")'),
    (b"{}", '"input_text" is missing (found no keys)'),
    (b'{"input_text": ""}', '"input_text" is empty'),
    (b'{"input_text": " \\n"}', '"input_text" is empty'),
    (b'{"input_text": null}', '"input_text" is null, not a string'),
    (b'{"input_text": "a", "output_text": true}', '"output_text" is a boolean, not a string'),
    (b'{"input_text": "a", "output_text": 1}', "a string; write it in quotes, or give --labels-as"),
    (b'{"input_text": 1.5}', '"input_text" is a number, not a string; write it in quotes'),
    (b'{"input_text": "\\u200b\\ufeff "}', '"input_text" is empty (it has only invisible char'),
    (b'{"input_text": "a", "output_text": "\\u3164"}', '"output_text" is empty'),
    (b'{"input_text": "a", "rationale": "\\u00ad\\u2060\\u200e"}', '"rationale" is empty'),
    (b'{"input_text": "a", "output_text": ["b"]}', '"output_text" is an array, not a string'),
    (b'{"input_text": "a", "rationale": ""}', '"rationale" is empty'),
    (b'{"input_text": "a", "rationale": {}}', '"rationale" is an object, not a string'),
    (b'{"input_text": "a \\ud83d"}', "\\ud83d is half of a character"),
    (b'{"input_text": "a", "x": ["\\udc00"]}', "\\udc00 is half of a character"),
  ],
)
def test_a_bad_line_is_named_and_the_next_one_read(path, line, words):
  what = problem_of(path, line)
  assert words in what
  assert "\n" not in what
  assert len(what) < 300


def test_the_message_for_an_empty_label_has_a_fix(path):
  what = problem_of(path, b'{"input_text": "a", "output_text": ""}')
  assert what == (
    '"output_text" is empty; give a label, or drop the key to let the teacher label it'
  )


def test_a_line_may_have_10_mib_and_no_more(path, monkeypatch):
  monkeypatch.setattr(records, "MAX_LINE_BYTES", 1000)
  frame = len(b'{"input_text": ""}')
  longest = b'{"input_text": "' + b"x" * (1000 - frame) + b'"}'
  for ending in (b"\n", b"\r\n"):
    path.write_bytes(longest + ending + longest.replace(b"xx", b"xxx", 1) + ending + GOOD)
    first, second, third = scan_rows(path)
    assert first[0] == 1
    assert isinstance(second, RowProblem)
    assert third == (3, {"input_text": "a"})
  path.write_bytes(longest)
  assert len(list(read_rows(path))) == 1
  path.write_bytes(b"z" * 5_000_000)
  assert [item.line for item in scan_rows(path)] == [1]


def test_byte_order_mark_line_endings_and_unknown_keys(path):
  row = {"input_text": "zwölf \u2028 \U0001f600", "id": 7, "meta": {"a": [None, 1.5]}}
  text = json.dumps(row, ensure_ascii=False)
  escaped = json.dumps(row)
  path.write_bytes(b"\xef\xbb\xbf" + f"{text}\r\n{escaped}\n{text}".encode())
  assert list(read_rows(path)) == [row, row, row]


def test_blank_lines_are_allowed_only_at_the_end(path):
  path.write_bytes(GOOD + b"\n \r\n\n")
  assert list(scan_rows(path)) == [(1, {"input_text": "a"})]
  path.write_bytes(GOOD + b"\n\n" + GOOD)
  assert [item[0] if item[0] in (1, 4) else item.line for item in scan_rows(path)] == [1, 2, 3, 4]


def test_blank_lines_before_a_break_are_not_trailing(tmp_path):
  path = tmp_path / "x.jsonl.gz"
  path.write_bytes(gzip.compress(GOOD + b"\n")[:-8])
  assert [str(item).split(":")[1] for item in list(scan_rows(path))[1:]] == ["2", "3"]


def test_another_format_is_a_problem_of_the_first_line(path):
  path.write_bytes('{"input_text": "a"}\n'.encode("utf-16") * 2)
  assert list(scan_rows(path)) == [
    RowProblem(str(path), 1, "text in UTF-16; save the file as UTF-8")
  ]


def test_gzip_needs_no_suffix(path):
  path.write_bytes(gzip.compress(GOOD))
  assert list(scan_rows(path)) == [(1, {"input_text": "a"})]


@pytest.mark.parametrize(
  ("value", "text"),
  [("0", "0"), ("-1", "-1"), ("0.50", "0.5"), ("true", "true"), ('"1"', "1"), ("1e3", "1000.0")],
)
def test_labels_are_taken_as_text_when_asked(path, value, text):
  path.write_text(f'{{"input_text": "a", "output_text": {value}}}\n')
  assert list(read_rows(path, labels_as_text=True)) == [{"input_text": "a", "output_text": text}]
  assert check_rows(path, labels_as_text=True) == 1


def test_only_labels_are_taken_as_text(path):
  for key, value in (("input_text", 1), ("rationale", True), ("output_text", None)):
    path.write_text(json.dumps({"input_text": "a", key: value}) + "\n")
    with pytest.raises(UserError, match="not a string"):
      check_rows(path, labels_as_text=True)


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz"])
@settings(
  deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
  data=st.one_of(
    st.binary(max_size=200),
    st.lists(
      st.sampled_from(
        [bytes([byte]) for byte in b"{}[],\n\r \x00\xff"]
        + [b'{"input_text":', b'"a"', b'"\\ud800"', b"1e9999", b'"rationale":', b"null", b"NaN"]
      )
    ).map(b"".join),
    st.recursive(
      st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
      lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ).map(lambda value: json.dumps({"input_text": value}).encode() + b"\n"),
  ),
  cut=st.integers(0, 60),
)
def test_no_bytes_raise(tmp_path, name, data, cut):
  path = tmp_path / name
  if name.endswith(".gz") and cut < 50:
    data = gzip.compress(data)[: cut or None]
  path.write_bytes(data)
  last = 0
  for item in scan_rows(path):
    line = item.line if isinstance(item, RowProblem) else item[0]
    assert line == last + 1
    last = line
    if not isinstance(item, RowProblem):
      json.dumps(item[1], ensure_ascii=False, allow_nan=False).encode("utf-8")


def test_all_problems_come_in_one_error_after_the_good_rows(path):
  path.write_bytes(GOOD + b"x\n" * 30 + GOOD)
  rows = read_rows(path)
  assert [next(rows), next(rows)] == [{"input_text": "a"}] * 2
  with pytest.raises(UserError) as caught:
    next(rows)
  lines = str(caught.value).split("\n")
  assert [line.split(":")[1] for line in lines[:20]] == [str(n) for n in range(2, 22)]
  assert lines[20:] == ["and 10 more bad lines"]


def test_the_number_of_further_problems(path):
  path.write_bytes(b"x\n" * 20)
  with pytest.raises(UserError) as caught:
    check_rows(path)
  assert len(str(caught.value).split("\n")) == 20
  path.write_bytes(b"x\n" * 21)
  with pytest.raises(UserError, match=r"and 1 more bad line$"):
    check_rows(path)


@pytest.mark.parametrize("data", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_a_file_without_rows_is_an_error(path, data):
  path.write_bytes(data)
  with pytest.raises(UserError, match="no rows"):
    check_rows(path)


def test_a_cut_gzip_stream_is_the_problem_of_its_line(tmp_path):
  path = tmp_path / "x.jsonl.gz"
  whole = b"".join(b'{"input_text": "%d"}\n' % (n * 7919 % 100_003) for n in range(100_000))
  zipped = gzip.compress(whole)
  path.write_bytes(zipped[: len(zipped) // 2])
  *rows, problem = scan_rows(path)
  assert len(rows) > 30_000
  assert isinstance(problem, RowProblem)
  assert problem.line == len(rows) + 1
  assert "gzip stream is damaged or cut off" in problem.what
  with pytest.raises(UserError, match=r"x\.jsonl\.gz: the gzip stream is damaged"):
    open_text(path).read()


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "memory://rows/x.jsonl.gz"])
def test_written_rows_read_back(tmp_path, name):
  path = name if "://" in name else str(tmp_path / name)
  rows = [{"input_text": "zwölf \u2028 \U0001f600 \r\n", "n": None}, {"input_text": "b"}]
  assert write_rows(path, iter(rows)) == 2
  assert list(read_rows(path)) == rows
  with fsspec.open(path, "rb") as file:
    first = file.read()
  assert (first[:2] == b"\x1f\x8b") == name.endswith(".gz")
  write_rows(path, rows)
  with fsspec.open(path, "rb") as file:
    assert file.read() == first


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "memory://broken/x.jsonl"])
@pytest.mark.parametrize(
  ("bad", "error"),
  [
    ({"input_text": "\ud800"}, UserError),
    ({"input_text": float("nan")}, UserError),
    (OSError("raised by the rows, not by the file"), OSError),
    (KeyboardInterrupt(), KeyboardInterrupt),
  ],
)
def test_a_failure_leaves_the_old_file(tmp_path, name, bad, error):
  path = name if "://" in name else str(tmp_path / name)
  write_rows(path, [{"input_text": "old"}])

  def rows():
    yield {"input_text": "x" * 3_000_000}
    if isinstance(bad, BaseException):
      raise bad
    yield bad

  with pytest.raises(error):
    write_rows(path, rows())
  assert list(read_rows(path)) == [{"input_text": "old"}]
  if "://" not in name:
    assert os.listdir(tmp_path) == [name]


def test_the_message_for_a_target_that_cannot_be_written(tmp_path):
  for name, words in ((tmp_path / "no" / "x.jsonl", "cannot be written"), (tmp_path, "directory")):
    with pytest.raises(UserError, match=words) as caught:
      write_rows(name, [{"input_text": "a"}])
    assert str(name) in str(caught.value)
  assert os.listdir(tmp_path) == []
