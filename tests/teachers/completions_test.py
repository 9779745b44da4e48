"""Bodies of completions as servers write them, then arbitrary JSON."""

import json
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dss_jax.teachers.base import Billed, RequestFailed, TeacherResponse
from dss_jax.teachers.completions import ErrorWithin200, billed_of, read_completion


def _body(message=None, usage=None, **choice):
  choice = {"message": message if message is not None else {"content": "a"}, **choice}
  body = {"choices": [choice], "model": "m"}
  return json.dumps(body | ({} if usage is None else {"usage": usage})).encode()


def _usage(prompt, completion, total):
  return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}


PARTS = [
  {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
  {"type": "text", "text": "It is so.\n"},
  {"type": "text", "text": "Answer: yes"},
  {"type": "image_url", "image_url": "x"},
]


@pytest.mark.parametrize(
  ("message", "text", "remark"),
  [
    ({"content": "yes", "reasoning_content": "hm"}, "yes", None),
    ({"content": PARTS}, "It is so.\nAnswer: yes", None),
    ({"content": ["yes", " it is"]}, "yes it is", None),
    ({"content": "a\ud800b"}, "a?b", None),
    ({"content": None}, "", None),
    ({"content": None, "refusal": "I can't\nhelp."}, "", "the model refused: I can't help."),
    ({"content": "", "reasoning_content": "hm"}, "", "the answer is empty after the model's "
     "thoughts"),
    ({"content": None, "tool_calls": [{}]}, "", "the answer is a call of a tool"),
  ],
)  # fmt: skip
def test_messages(message, text, remark):
  response = read_completion(_body(message, finish_reason="stop"), "chat")
  assert response == TeacherResponse(text, "stop", model="m", remark=remark)


@pytest.mark.parametrize(
  ("usage", "prompt", "completion"),
  [
    (_usage(10, 5, 15), 10, 5),
    # Thoughts that only the total counts are billed as the answer's.
    (_usage(10, 5, 40), 10, 30),
    (_usage(10, None, 40), 10, 30),
    (_usage(None, 5, 40), 35, 5),
    (_usage(10, 5, 0), 10, 5),
    (_usage(10, 5, None), 10, 5),
    (_usage(-1, 2.5, "x"), None, None),
    ([], None, None),
  ],
)
def test_billed_tokens(usage, prompt, completion):
  response = read_completion(_body(usage=usage), "chat")
  assert (response.prompt_tokens, response.completion_tokens) == (prompt, completion)


def test_a_paid_answer_that_cannot_be_read_is_kept():
  """It would cost the same again; an unpaid one may be asked again."""
  body = _body({"content": 7}, _usage(100, 50, 150))
  assert read_completion(body, "chat") == TeacherResponse(
    "", None, 100, 50, "m", "the response's content is not text"
  )
  with pytest.raises(RequestFailed, match="content is not text") as error:
    read_completion(_body({"content": 7}), "chat")
  assert error.value.may_pass


@pytest.mark.parametrize(
  ("body", "status"),
  [
    ({"error": {"message": "x", "code": 429}}, 429),
    ({"error": {"message": "x", "code": "402"}}, 402),
    ({"error": {"message": "x", "code": "quota"}}, 500),
    ({"error": "x"}, 500),
    ([{"error": {"code": 400}}], 400),
    ({"choices": [], "error": {"status": 503}}, 503),
    ({"choices": [{"error": {"code": 502}, "finish_reason": "error", "text": "half"}]}, 502),
  ],
)
def test_errors_within_a_success(body, status):
  with pytest.raises(ErrorWithin200) as error:
    read_completion(json.dumps(body).encode(), "completion")
  assert error.value.status == status


def test_a_body_that_is_no_completion_is_billed_as_it_says():
  body = json.dumps({"usage": _usage(3, 4, 7)}).encode()
  with pytest.raises(RequestFailed, match="not a completion") as error:
    read_completion(body, "chat")
  assert error.value.billed == billed_of(body) == Billed(3, 4)
  assert billed_of(b"{") is None


@pytest.mark.parametrize(
  ("finish", "was_cut_off"),
  [
    ("stop", False), ("STOP", False), ("end_turn", False), ("eos", False), (None, False),
    ("length", True), ("content_filter", True), ("MAX_TOKENS", True), ("tool_calls", True),
    ("some new word", True),
  ],
)  # fmt: skip
def test_only_a_natural_stop_ends_an_answer(finish, was_cut_off):
  response = read_completion(_body(finish_reason=finish), "chat")
  assert response.was_cut_off == was_cut_off


JSON = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
  lambda inner: st.lists(inner, max_size=3)
  | st.dictionaries(
    st.sampled_from(
      ["choices", "message", "content", "text", "type", "usage", "prompt_tokens", "error", "code",
       "completion_tokens", "total_tokens", "finish_reason", "model", "refusal"]
    ),
    inner,
    max_size=5,
  ),
  max_leaves=20,
)  # fmt: skip


@settings(deadline=None)
@given(body=JSON, api=st.sampled_from(["chat", "completion"]))
def test_any_body_is_an_answer_or_a_failure(body, api):
  try:
    response = read_completion(json.dumps(body).encode(), api)
  except (RequestFailed, ErrorWithin200):
    return
  response.text.encode()
  for name in (response.finish, response.model, response.remark):
    assert name is None or all(unicodedata.category(c)[0] != "C" for c in name)
