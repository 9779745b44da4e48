"""generateContent over a student that writes at once."""

import json

import pytest

from tests.jobs.api_server import PARENT

MODEL = PARENT.removeprefix("/v1/") + "/models/sign"


@pytest.fixture
def endpoint(server):
  """The path of an endpoint, and the server."""
  server.register("sign")
  operation = server.call("POST", "/endpoints", {})
  path = f"/v1beta1/{operation['response']['name']}"
  server.wait(server.call("POST", f"{path}:deployModel", {"deployedModel": {"model": MODEL}}))
  return path


def contents(*texts):
  return [{"role": "user", "parts": [{"text": text}]} for text in texts]


def test_the_last_message_is_answered(endpoint, server):
  config = {"temperature": 0, "maxOutputTokens": 2, "topK": 40.0, "candidateCount": 2}
  body = {"contents": contents("first", "a row"), "generationConfig": config, "labels": {}}
  answer = server.call("POST", f"{endpoint}:generateContent", body)
  assert [each["content"] for each in answer["candidates"]] == [
    {"role": "model", "parts": [{"text": "label of"}]}
  ] * 2
  assert answer["candidates"][0]["finishReason"] == "MAX_TOKENS"
  assert answer["usageMetadata"] == {
    "promptTokenCount": 2, "candidatesTokenCount": 4, "totalTokenCount": 6
  }  # fmt: skip
  assert answer["modelVersion"] == "sign@1"
  assert server.call("POST", f"{endpoint}:countTokens", body)["totalTokens"] == 2


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_rationale_is_a_thought(is_streamed, endpoint, server):
  config = {"thinkingConfig": {"includeThoughts": True}}
  body = {"contents": contents("x"), "generationConfig": config}
  if is_streamed:
    text = server.client.post(f"{endpoint}:streamGenerateContent?alt=sse", json=body).text
    events = [json.loads(line.removeprefix("data: ")) for line in text.split("\n\n")[:-1]]
    assert events == server.client.post(f"{endpoint}:streamGenerateContent", json=body).json()
    assert events[-1]["candidates"][0]["finishReason"] == "STOP"
  else:
    events = [server.call("POST", f"{endpoint}:generateContent", body)]
  parts = [each for event in events for each in event["candidates"][0]["content"]["parts"]]
  assert "".join(each["text"] for each in parts if "thought" in each) == "rationale of x"
  assert "".join(each["text"] for each in parts if "thought" not in each) == "label of x"


@pytest.mark.parametrize(
  ("body", "message"),
  [
    ({}, "contents: field required"),
    ({"contents": []}, "contents: list should have at least 1"),
    ({"contents": "x"}, "contents: input should be a valid list"),
    ({"contents": [{"parts": []}]}, "contents.0.parts: list should have at least 1"),
    ({"contents": [{"parts": [{"fileData": {}}]}]}, "contents.0.parts.0.text: field required"),
    ({"contents": contents(" ")}, "a prompt is empty"),
    ({"contents": contents("x"), "tools": [{}]}, "tools: a student does not take this"),
    ({"contents": contents("x"), "generationConfig": {"topP": 2}}, "generationConfig.topP"),
    ({"contents": contents("x"), "generationConfig": {"candidateCount": 99}}, "candidateCount"),
    ([], "the body must be a JSON object"),
  ],
)
def test_refusals(body, message, endpoint, server):
  error = server.call("POST", f"{endpoint}:generateContent", body, status=400)["error"]
  assert message in error["message"]
