"""OpenAI's API over a student that writes at once: forms, streams, and refusals."""

import json

import pytest

from dss_jax.config.schema import DecodingConfig

URL, CHAT_URL = "/v1/completions", "/v1/chat/completions"
CHAT = {"model": "mine", "messages": [{"role": "user", "content": "a row"}]}


def _events(response):
  lines = [line for line in response.text.split("\n\n") if line]
  assert lines[-1] == "data: [DONE]"
  return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_models(serve):
  client = serve()
  listed = client.get("/v1/models").json()
  assert [one["id"] for one in listed["data"]] == ["mine", "mine:explain"]
  assert client.get("/v1/models/mine").json()["object"] == "model"
  missing = client.get("/v1/models/mime")
  assert missing.status_code == 404
  assert missing.json()["error"]["message"] == "the model 'mime' is not served; did you mean mine?"


def test_a_completion(serve):
  body = {"model": "mine", "prompt": ["one", "two"], "n": 2, "logprobs": 0, "temperature": 0}
  answer = serve().post(URL, json=body).json()
  assert answer["object"] == "text_completion"
  texts = [choice["text"] for choice in answer["choices"]]
  assert texts == ["label of one"] * 2 + ["label of two"] * 2
  assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
  assert {choice["finish_reason"] for choice in answer["choices"]} == {"stop"}
  logs = answer["choices"][0]["logprobs"]
  assert logs["tokens"] == ["<7>", "<8>", "<9>"]
  assert logs["token_logprobs"] == [-0.5] * 3
  assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 12, "total_tokens": 14}


def test_a_chat(serve):
  answer = serve().post(CHAT_URL, json={**CHAT, "logprobs": True}).json()
  choice = answer["choices"][0]
  assert choice["message"] == {"role": "assistant", "content": "label of a row", "refusal": None}
  assert choice["logprobs"]["content"][0] == {
    "token": "<7>", "logprob": -0.5, "bytes": list(b"<7>"), "top_logprobs": []
  }  # fmt: skip


def test_a_completion_lists_likely_tokens(serve):
  """The chosen one is among them, as one more if need be."""
  body = {"model": "mine", "prompt": "one", "logprobs": 1}
  client = serve()
  logs = client.post(URL, json=body).json()["choices"][0]["logprobs"]
  assert logs["top_logprobs"] == [
    {"<8>": -0.25, "<7>": -0.5}, {"<9>": -0.25, "<8>": -0.5}, {"<10>": -0.25, "<9>": -0.5}
  ]  # fmt: skip
  assert logs["text_offset"] == [0, 3, 6]
  logs = client.post(URL, json={**body, "logprobs": 2}).json()["choices"][0]["logprobs"]
  assert logs["top_logprobs"][0] == {"<8>": -0.25, "<7>": -0.5}
  logs = client.post(URL, json={**body, "logprobs": 0}).json()["choices"][0]["logprobs"]
  assert logs["top_logprobs"][0] == {"<7>": -0.5}


def test_a_chat_lists_likely_tokens(serve):
  body = {**CHAT, "logprobs": True, "top_logprobs": 3}
  (first, *_) = serve().post(CHAT_URL, json=body).json()["choices"][0]["logprobs"]["content"]
  assert (first["token"], first["logprob"]) == ("<7>", -0.5)
  assert first["top_logprobs"] == [
    {"token": token, "logprob": log, "bytes": list(token.encode())}
    for token, log in (("<8>", -0.25), ("<7>", -0.5), ("<6>", -0.75))
  ]


@pytest.mark.parametrize("explain", [False, True])
def test_log_probabilities_of_a_stream_are_those_of_the_answer(explain, serve):
  client = serve()
  body = {"model": "mine", "prompt": "one", "logprobs": 1, "explain": explain}
  whole = client.post(URL, json=body).json()["choices"][0]["logprobs"]
  streamed = {name: [] for name in whole}
  for event in _events(client.post(URL, json={**body, "stream": True})):
    for name, values in (event["choices"][0]["logprobs"] or {}).items():
      streamed[name] += values
  assert streamed == whole
  assert len(whole["tokens"]) == 3


def test_only_the_last_message_is_the_input(serve, student):
  messages = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "first"},
    {"role": "assistant", "content": "x"},
    {"role": "user", "content": [{"type": "text", "text": "sec"}, {"type": "text", "text": "ond"}]},
  ]
  serve().post(CHAT_URL, json={"model": "mine", "messages": messages})
  assert [question.text for question in student.questions] == ["second"]


@pytest.mark.parametrize("form", [{"explain": True}, {"model": "mine:explain"}])
def test_explain_adds_the_rationale(form, serve):
  choice = serve().post(CHAT_URL, json={**CHAT, **form}).json()["choices"][0]
  message = choice["message"]
  assert message["content"] == "rationale of a row\nAnswer: label of a row"
  assert (message["rationale"], message["label"]) == ("rationale of a row", "label of a row")


@pytest.mark.parametrize("explain", [False, True])
def test_a_stream_adds_up_to_the_answer(explain, serve):
  client = serve()
  body = {"model": "mine", "prompt": ["one", "two"], "n": 2, "explain": explain}
  whole = [choice["text"] for choice in client.post(URL, json=body).json()["choices"]]
  options = {"stream": True, "stream_options": {"include_usage": True}}
  response = client.post(URL, json={**body, **options})
  assert response.headers["content-type"].startswith("text/event-stream")
  *events, last = _events(response)
  assert last["choices"] == []
  assert last["usage"]["completion_tokens"] == (24 if explain else 12)
  texts, finished = [""] * 4, []
  for event in events:
    (choice,) = event["choices"]
    assert choice["index"] not in finished
    texts[choice["index"]] += choice["text"]
    finished += [choice["index"]] if choice["finish_reason"] else []
  assert texts == whole
  assert sorted(finished) == [0, 1, 2, 3]


def test_a_chat_stream_begins_with_the_role(serve):
  events = _events(serve().post(CHAT_URL, json={**CHAT, "stream": True}))
  assert {event["object"] for event in events} == {"chat.completion.chunk"}
  deltas = [event["choices"][0]["delta"] for event in events]
  assert deltas[0] == {"role": "assistant", "content": ""}
  assert "".join(delta["content"] for delta in deltas) == "label of a row"
  assert events[-1]["choices"][0]["finish_reason"] == "stop"


def test_parameters_reach_the_student(serve, student):
  body = {
    **CHAT, "max_completion_tokens": 2, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "stop": "x",
    "seed": -1, "user": "someone", "frequency_penalty": 0, "tools": [], "response_format": None,
    "repetition_penalty": 1.0,
  }  # fmt: skip
  choice = serve().post(CHAT_URL, json=body).json()["choices"][0]
  assert (choice["message"]["content"], choice["finish_reason"]) == ("label of", "length")
  (question,) = student.questions
  assert question.max_tokens == 2
  assert question.decoding == DecodingConfig(
    temperature=0.5, top_k=5, top_p=0.9, stop=("x",), seed=2**32 - 1
  )


def test_more_tokens_than_the_student_can_write_are_as_many_as_it_can(serve, student):
  assert serve().post(CHAT_URL, json={**CHAT, "max_tokens": 4096}).status_code == 200
  assert student.questions[0].max_tokens == 16


def test_a_seed_is_drawn_unless_given(serve, student):
  client = serve()
  for _ in range(3):
    client.post(CHAT_URL, json=CHAT)
  assert len({question.decoding.seed for question in student.questions}) == 3


@pytest.mark.parametrize(
  ("change", "status", "message"),
  [
    ({"messages": []}, 400, "messages: list should have at least 1 item"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "the role user"),
    ({"messages": [{"role": "user", "content": " "}]}, 400, "a prompt is empty"),
    ({"messages": [{"role": "robot", "content": "x"}]}, 400, "messages.0.role: input should be"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages.0.co"),
    ({"temperature": 3}, 400, "temperature: input should be less than or equal to 2"),
    ({"temperature": "hot"}, 400, "temperature: input should be a valid number"),
    ({"temperature": True}, 400, "temperature"),
    ({"max_tokens": 0}, 400, "max_tokens: input should be greater"),
    ({"n": 99}, 400, "n: input should be less than or equal to 8"),
    ({"frobnicate": 1}, 400, "frobnicate: no such parameter"),
    ({"tools": [{"type": "function"}]}, 400, "tools: a student does not take this parameter"),
    ({"presence_penalty": 1.5}, 400, "presence_penalty: a student does not"),
    ({"model": "other"}, 404, "the model 'other' is not served"),
    ({"model": None}, 400, "model: input should be a valid string"),
    ({"top_logprobs": 2}, 400, "top_logprobs: needs logprobs to be true"),
    ({"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs: input should be less than"),
    ({"seed": 1.5}, 400, "seed: input should be a valid integer"),
    ({"stop": ["x"] * 17}, 400, "stop"),
  ],
)
def test_refused_parameters(change, status, message, serve):
  response = serve().post(CHAT_URL, json={**CHAT, **change})
  assert response.status_code == status
  error = response.json()["error"]
  assert message in error["message"]
  assert error["type"] == "invalid_request_error"
  assert "\n" not in error["message"]


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_failed_student_is_a_server_error(is_stream, serve, caplog):
  client = serve()
  body = {"model": "mine", "prompt": "break", "stream": is_stream}
  response = client.post(URL, json=body)
  if is_stream:
    assert response.status_code == 200
    error = json.loads(response.text.removeprefix("data: "))["error"]
  else:
    assert response.status_code == 500
    error = response.json()["error"]
  assert error["message"] == "the student failed to write the answer; the server's log says why"
  assert "ZeroDivisionError" in caplog.text
  # The next request is answered.
  assert client.post(URL, json={"model": "mine", "prompt": "one"}).status_code == 200
