"""Calls of unmodified clients to `dss serve`; prints what came back as JSON.

Run by the Python of an environment with openai and google-cloud-aiplatform: clients_test.py.
"""

import json
import sys

import openai
import vertexai
from google.api_core.client_options import ClientOptions
from google.api_core.exceptions import NotFound
from google.auth.credentials import AnonymousCredentials
from google.cloud import aiplatform_v1, aiplatform_v1beta1
from google.protobuf import json_format, struct_pb2
from vertexai.preview.language_models import TextGenerationModel

ADDRESS, NAME, TEXT = sys.argv[1:]
ENDPOINT = f"projects/p/locations/us-central1/endpoints/{NAME}"
found = {}

client = openai.OpenAI(base_url=f"{ADDRESS}/v1", api_key="none", max_retries=0)
messages = [{"role": "user", "content": TEXT}]
found["models"] = [model.id for model in client.models.list()]
chat = client.chat.completions.create(model=NAME, messages=messages, logprobs=True, top_logprobs=2)
found["chat"] = chat.choices[0].message.content
found["logprobs"] = [len(one.top_logprobs) for one in chat.choices[0].logprobs.content]
events = client.chat.completions.create(model=NAME, messages=messages, stream=True)
found["chat_stream"] = "".join(event.choices[0].delta.content or "" for event in events)
completion = client.completions.create(
  model=NAME,
  prompt=[TEXT, TEXT],
  n=2,
  temperature=1.0,
  seed=3,
  logprobs=1,
  extra_body={"explain": True},
)
found["completions"] = [choice.text for choice in completion.choices]
found["top_logprobs"] = [len(one) for one in completion.choices[0].logprobs.top_logprobs]
events = client.completions.create(model=NAME, prompt=TEXT, stream=True)
found["completion_stream"] = "".join(event.choices[0].text for event in events)
for error, change in (("NotFoundError", {"model": "none"}), ("BadRequestError", {"n": 99})):
  try:
    client.chat.completions.create(**{"model": NAME, "messages": messages, **change})
  except openai.APIStatusError as caught:
    found[error] = type(caught).__name__ == error

options = {
  "credentials": AnonymousCredentials(),
  "client_options": ClientOptions(api_endpoint=ADDRESS),
  "transport": "rest",
}
service = aiplatform_v1.PredictionServiceClient(**options)
instance = json_format.ParseDict({"content": TEXT}, struct_pb2.Value())
parameters = json_format.ParseDict({"maxOutputTokens": 64, "explain": True}, struct_pb2.Value())
response = service.predict(endpoint=ENDPOINT, instances=[instance], parameters=parameters)
found["predict"] = dict(response.predictions[0])["content"]
found["rationale"] = dict(response.predictions[0])["rationale"]
tensor = aiplatform_v1.Tensor(struct_val={"content": aiplatform_v1.Tensor(string_val=[TEXT])})
request = aiplatform_v1.StreamingPredictRequest(endpoint=ENDPOINT, inputs=[tensor])
found["stream"] = "".join(
  output.struct_val["content"].string_val[0]
  for message in service.server_streaming_predict(request)
  for output in message.outputs
)
try:
  service.predict(endpoint=f"{ENDPOINT}-none", instances=[instance])
except NotFound as caught:
  found["NotFound"] = "is not served" in str(caught)
beta = aiplatform_v1beta1.PredictionServiceClient(**options)
found["tokens"] = beta.count_tokens(endpoint=ENDPOINT, instances=[instance]).total_tokens

vertexai.init(
  project="p", location="us-central1", api_endpoint=ADDRESS, api_transport="rest",
  credentials=AnonymousCredentials(), staging_bucket="gs://none",
)  # fmt: skip
model = TextGenerationModel.from_pretrained(NAME)
found["vertexai"] = model.predict(TEXT, temperature=0.0).text
found["vertexai_stream"] = "".join(part.text for part in model.predict_streaming(TEXT))
found["vertexai_tokens"] = model.count_tokens([TEXT]).total_tokens
print(json.dumps(found))
