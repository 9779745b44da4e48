"""The hosted service's API over a student that writes at once."""

import json

import pytest

from dss_jax.config.schema import DecodingConfig

PLACE = "/v1/projects/p/locations/l"
ENDPOINT = f"{PLACE}/endpoints/mine"


@pytest.mark.parametrize(
  "target", [ENDPOINT, f"{PLACE}/publishers/google/models/mine", ENDPOINT.replace("v1", "v1beta1")]
)
def test_predict(target, serve):
  body = {
    "instances": [{"content": "one"}, {"prompt": "two words"}],
    "parameters": {"temperature": 0, "maxOutputTokens": 16, "topK": 40, "topP": 0.95},
  }
  answer = serve().post(f"{target}:predict", json=body).json()
  assert [one["content"] for one in answer["predictions"]] == ["label of one", "label of two words"]
  assert answer["predictions"][0]["safetyAttributes"]["blocked"] is False
  counts = answer["metadata"]["tokenMetadata"]
  assert counts["inputTokenCount"] == {"totalTokens": 3, "totalBillableCharacters": 12}
  assert counts["outputTokenCount"]["totalTokens"] == 7
  assert (answer["modelDisplayName"], answer["modelVersionId"]) == ("mine", "3")


def test_parameters_in_the_clients_forms(serve, student):
  """maxDecodeSteps is the client's name; whole numbers come as texts, floats without a point."""
  parameters = {
    "maxDecodeSteps": "2", "temperature": 1, "topK": 5.0, "candidateCount": 2, "seed": "7",
    "stopSequences": ["x"], "logprobs": 0, "explain": True, "presencePenalty": 0.0,
    "groundingConfig": None,
  }  # fmt: skip
  body = {"instances": [{"content": "one"}], "parameters": parameters}
  answer = serve().post(f"{ENDPOINT}:predict", json=body).json()
  assert len(answer["predictions"]) == 2
  prediction = answer["predictions"][0]
  assert (prediction["content"], prediction["rationale"]) == ("label of", "rationale of")
  assert prediction["logprobs"] == {"tokens": ["<7>", "<8>"], "tokenLogProbs": [-0.5, -0.5]}
  question = student.questions[0]
  assert question.max_tokens == 2
  assert question.decoding == DecodingConfig(
    temperature=1.0, top_k=5, seed=7, stop=("x",), num_candidates=2, log_probabilities=True
  )


def test_likely_tokens(serve):
  body = {"instances": [{"content": "one"}], "parameters": {"logprobs": 2}}
  (prediction,) = serve().post(f"{ENDPOINT}:predict", json=body).json()["predictions"]
  logs = prediction["logprobs"]
  assert logs["topLogProbs"][0] == {"<8>": -0.25, "<7>": -0.5}
  assert len(logs["topLogProbs"]) == len(logs["tokens"]) == 3


def test_a_stream_is_an_array_of_tensors(serve):
  body = {
    "inputs": [{"structVal": {"content": {"stringVal": ["one"]}}}],
    "parameters": {"structVal": {"temperature": {"floatVal": [0.0]},
                                 "maxDecodeSteps": {"intVal": [9]}}},
  }  # fmt: skip
  response = serve().post(f"{ENDPOINT}:serverStreamingPredict", json=body)
  assert response.text.startswith("[")
  assert response.text.endswith("]")
  contents = [
    message["outputs"][0]["structVal"]["content"]["stringVal"][0]
    for message in json.loads(response.text)
  ]
  assert contents == ["label", " of", " one"]


def test_count_tokens(serve):
  body = {"instances": [{"content": "one two"}, {"content": "three"}]}
  response = serve().post(f"{ENDPOINT}:countTokens", json=body)
  assert response.json() == {"totalTokens": 3, "totalBillableCharacters": 12}


MESSAGES = [
  {"author": "user", "content": "hello"},
  {"author": "bot", "content": "hi"},
  {"author": "user", "content": "one two"},
]


def test_conversations(serve):
  """The last message is answered; an instance has one prediction, with all candidates."""
  body = {
    "instances": [
      {"messages": MESSAGES, "context": "Be brief.", "examples": []},
      {"messages": [{"content": "three"}]},
    ],
    "parameters": {"candidateCount": 2, "temperature": 0.5, "explain": True, "logprobs": 1},
  }
  one, other = serve().post(f"{ENDPOINT}:predict", json=body).json()["predictions"]
  assert [each["author"] for each in one["candidates"]] == ["bot", "bot"]
  assert [each["content"] for each in one["candidates"]] == ["label of one two"] * 2
  assert [each["content"] for each in other["candidates"]] == ["label of three"] * 2
  assert one["candidates"][0]["rationale"] == "rationale of one two"
  assert one["candidates"][0]["logprobs"]
  assert [each["blocked"] for each in one["safetyAttributes"]] == [False, False]
  assert len(one["citationMetadata"]) == 2
  counted = serve().post(f"{ENDPOINT}:countTokens", json={"instances": [{"messages": MESSAGES}]})
  assert counted.json() == {"totalTokens": 2, "totalBillableCharacters": 7}


def test_a_conversation_as_a_stream(serve):
  message = {"structVal": {"author": {"stringVal": ["user"]}, "content": {"stringVal": ["one"]}}}
  body = {"inputs": [{"structVal": {"messages": {"listVal": [message]}}}]}
  parts = [
    message["outputs"][0]["structVal"]
    for message in serve().post(f"{ENDPOINT}:serverStreamingPredict", json=body).json()
  ]
  candidates = [part["candidates"]["listVal"][0]["structVal"] for part in parts]
  assert [each["content"]["stringVal"][0] for each in candidates] == ["label", " of", " one"]
  assert candidates[0]["author"] == {"stringVal": ["bot"]}
  safety = parts[0]["safetyAttributes"]["listVal"][0]["structVal"]
  assert safety == {"blocked": {"boolVal": [False]}}


def test_a_publishers_model_can_be_asked_for(serve):
  model = serve().get("/v1/publishers/google/models/mine").json()
  assert model["name"] == "publishers/google/models/mine"
  assert model["predictSchemata"]["instanceSchemaUri"].endswith("text_generation_1.0.0.yaml")
  assert model["publisherModelTemplate"].endswith("publishers/google/models/mine")


@pytest.mark.parametrize(
  ("path", "body", "status", "message"),
  [
    (":predict", {}, 400, "instances: field required"),
    (":predict", {"instances": []}, 400, "instances: list should have at least 1"),
    (":predict", {"instances": [{"content": 7}]}, 400, "instances.0.content"),
    (":predict", {"instances": [{"content": "x"}] * 129}, 400, "instances: list should have at m"),
    (":predict", {"instances": [{}]}, 400, "instances.0: give one of content and messages"),
    (":predict", {"instances": [{"content": "x", "messages": MESSAGES}]}, 400,
     "instances.0: give one of content and messages"),
    (":predict", {"instances": [{"messages": []}]}, 400, "instances.0.messages: list should have"),
    (":predict", {"instances": [{"messages": [{"content": 7}]}]}, 400, "0.messages.0.content: inp"),
    (":predict", {"instances": [{"content": "x"}, {"messages": MESSAGES}]}, 400,
     "instances: some have content and some messages"),
    (":predict", [], 400, "the body must be a JSON object"),
    (":predict", {"instances": [{"content": "x"}], "parameters": {"topP": 2}}, 400, "topP: input"),
    (":predict", {"instances": [{"content": "x"}], "parameters": {"topX": 2}}, 400, "topX: no suc"),
    (":predict", {"instances": [{"content": "x"}], "parameters": {"logitBias": {"1": 2}}}, 400,
     "logitBias: a student does not take this parameter"),
    (":serverStreamingPredict", {"inputs": []}, 400, "inputs: one tensor"),
    (":serverStreamingPredict", {"inputs": [{"structVal": {"content": 7}}]}, 400, "a tensor must"),
    (":explain", {}, 404, "the path must end in the name of a student and one of :predict"),
    ("", {}, 404, "the path must end"),
    ("2:predict", {"instances": [{"content": "x"}]}, 404, "the model 'mine2' is not served"),
  ],
)  # fmt: skip
def test_refusals(path, body, status, message, serve):
  response = serve().post(f"{ENDPOINT}{path}", json=body)
  assert response.status_code == status
  error = response.json()["error"]
  assert error["code"] == status
  assert error["status"] == {400: "INVALID_ARGUMENT", 404: "NOT_FOUND"}[status]
  assert message in error["message"]
