"""Calls of unmodified clients to `dss jobs serve`; prints what came back as JSON.

Run by the Python of an environment with google-cloud-aiplatform and google-genai: clients_test.py.
"""

import json
import sys
import time

import google.oauth2.credentials
import vertexai
from google import genai
from google.api_core import exceptions
from google.api_core.client_options import ClientOptions
from google.auth.credentials import AnonymousCredentials
from google.cloud import aiplatform, aiplatform_v1, aiplatform_v1beta1
from google.cloud.aiplatform.utils import yaml_utils
from google.genai import types
from google.protobuf import field_mask_pb2, json_format, struct_pb2
from vertexai.preview.language_models import TextGenerationModel, TuningEvaluationSpec

ADDRESS, TEXT = sys.argv[1:]
PROJECT, LOCATION = "sums", "us-central1"
PARENT = f"projects/{PROJECT}/locations/{LOCATION}"
LABEL = "google-vertex-llm-tuning-base-model-id"
TEMPLATE = "https://us-kfp.pkg.dev/ml-pipeline/distillation/distillation/v1.0.0"
found = {}
options = {
  "credentials": AnonymousCredentials(),
  "client_options": ClientOptions(api_endpoint=ADDRESS),
  "transport": "rest",
}

# The names and types of the template, which the SDK downloads from a server that has gone.
TYPES = {
  "project": "STRING", "location": "STRING", "dataset_uri": "STRING",
  "teacher_model_reference": "STRING", "student_model_reference": "STRING",
  "model_display_name": "STRING", "train_steps": "NUMBER_INTEGER",
  "learning_rate_multiplier": "NUMBER_DOUBLE", "evaluation_data_uri": "STRING",
  "evaluation_interval": "NUMBER_INTEGER", "enable_early_stopping": "BOOLEAN",
  "enable_checkpoint_selection": "STRING", "tensorboard_resource_id": "STRING",
  "accelerator_type": "STRING", "max_context_length": "STRING", "temperature": "NUMBER_DOUBLE",
  "evaluation_output_root_dir": "STRING", "encryption_spec_key_name": "STRING",
  "api_endpoint": "STRING", "version": "STRING", "tpu_training_skip_cmek": "BOOLEAN",
}  # fmt: skip
SPEC = {
  "pipelineInfo": {"name": "distillation"},
  "schemaVersion": "2.1.0",
  "sdkVersion": "kfp-2.4.0",
  "deploymentSpec": {"executors": {}},
  "root": {
    "dag": {"tasks": {}},
    "inputDefinitions": {
      "parameters": {
        name: {"parameterType": kind, "isOptional": name not in ("project", "dataset_uri")}
        for name, kind in TYPES.items()
      }
    },
  },
}
# The one shim.
yaml_utils._load_yaml_from_https_uri = lambda uri, credentials=None: SPEC


def value_of(message):
  return json_format.ParseDict(message, struct_pb2.Value())


def refusal(call, *arguments, **keywords):
  """Returns the name of the client's exception."""
  try:
    call(*arguments, **keywords)
  except exceptions.GoogleAPICallError as error:
    return type(error).__name__
  raise AssertionError("nothing was refused")


def wait(read):
  """Reads until a job has ended; returns its state's name without the prefix."""
  while True:
    name = read().state.name
    state = name.partition("_STATE_")[2]
    if state in ("SUCCEEDED", "FAILED", "CANCELLED"):
      return state
    time.sleep(0.5)


# vertexai: a distillation as the old notebook has it.
vertexai.init(
  project=PROJECT, location=LOCATION, api_endpoint=ADDRESS, api_transport="rest",
  credentials=AnonymousCredentials(), staging_bucket="gs://data",
)  # fmt: skip
student = TextGenerationModel.from_pretrained("text-bison@002")
job = student.distill_from(
  dataset="gs://data/train.jsonl",
  teacher_model=TextGenerationModel.from_pretrained("text-unicorn@001"),
  train_steps=2,
  learning_rate_multiplier=0.5,
  evaluation_spec=TuningEvaluationSpec(
    evaluation_data="gs://data/eval.jsonl", evaluation_interval=2, enable_early_stopping=False,
    enable_checkpoint_selection=False,
  ),
  accelerator_type="TPU",
  model_display_name="My sums",
)  # fmt: skip
tuned = job.get_tuned_model()
found["distill_from"] = job._status.name
model_name = job._get_tuned_model_name()
found["model"] = model_name
found["list_tuned_model_names"] = student.list_tuned_model_names()
found["predict"] = type(tuned.predict(TEXT, max_output_tokens=4, temperature=0.0).text).__name__
found["predict_streaming"] = len(list(tuned.predict_streaming(TEXT, max_output_tokens=4))) > 0
found["count_tokens"] = tuned.count_tokens([TEXT]).total_tokens
again = TextGenerationModel.get_tuned_model(model_name)
found["get_tuned_model"] = again._endpoint_name == tuned._endpoint_name
batch = tuned.batch_predict(
  dataset="gs://data/prompts.jsonl", destination_uri_prefix="gs://data/answers",
  model_parameters={"maxOutputTokens": 4},
)  # fmt: skip
batch.wait()
found["batch_predict"] = batch.state.name
found["batch_list"] = len(aiplatform.BatchPredictionJob.list())

# PipelineServiceClient.
pipelines = aiplatform_v1.PipelineServiceClient(**options)
listed = list(pipelines.list_pipeline_jobs(parent=PARENT))
found["list_pipeline_jobs"] = [each.state.name for each in listed]
detail = pipelines.get_pipeline_job(name=listed[0].name).job_detail.task_details
found["tasks"] = {task.task_name: task.state.name for task in detail}
parameters = {
  "project": PROJECT, "dataset_uri": "gs://data/train.jsonl", "train_steps": 3,
  "student_model_reference": "text-bison@002", "accelerator_type": "TPU",
}  # fmt: skip
request = aiplatform_v1.PipelineJob(
  display_name="raw",
  template_uri=TEMPLATE,
  labels={"team": "x"},
  runtime_config=aiplatform_v1.PipelineJob.RuntimeConfig(
    gcs_output_directory="gs://data/out",
    parameter_values={name: value_of(value) for name, value in parameters.items()},
  ),
)
created = pipelines.create_pipeline_job(
  parent=PARENT, pipeline_job=request, pipeline_job_id="raw-1"
)
found["create_pipeline_job"] = created.name
found["create twice"] = refusal(
  pipelines.create_pipeline_job, parent=PARENT, pipeline_job=request, pipeline_job_id="raw-1"
)
pipelines.cancel_pipeline_job(name=created.name)
found["cancel_pipeline_job"] = wait(lambda: pipelines.get_pipeline_job(name=created.name))
by_label = pipelines.list_pipeline_jobs(
  request={"parent": PARENT, "filter": 'labels.team="x"', "order_by": "create_time"}
)
found["filter"] = [each.display_name for each in by_label]
pipelines.delete_pipeline_job(name=created.name).result(timeout=60)
found["delete_pipeline_job"] = refusal(pipelines.get_pipeline_job, name=created.name)
wrong = aiplatform_v1.PipelineJob(template_uri=TEMPLATE)
found["wrong pipeline"] = refusal(pipelines.create_pipeline_job, parent=PARENT, pipeline_job=wrong)

# ModelServiceClient.
models = aiplatform_v1.ModelServiceClient(**options)
plain = model_name.partition("@")[0]
model = models.get_model(name=model_name)
found["get_model"] = [model.display_name, model.labels[LABEL], model.version_id]
changed = models.update_model(
  model=aiplatform_v1.Model(name=plain, description="of sums", labels=dict(model.labels)),
  update_mask=field_mask_pb2.FieldMask(paths=["description"]),
)
found["update_model"] = changed.description
aliased = models.merge_version_aliases(name=f"{plain}@1", version_aliases=["stable"])
found["merge_version_aliases"] = sorted(aliased.version_aliases)
found["list_model_versions"] = [each.version_id for each in models.list_model_versions(name=plain)]
uploaded = models.upload_model(
  parent=PARENT,
  model=aiplatform_v1.Model(display_name="uploaded", artifact_uri="gs://data/student"),
).result(timeout=600)
found["upload_model"] = [uploaded.model.rpartition("/")[2], uploaded.model_version_id]
found["list_models"] = sorted(each.display_name for each in models.list_models(parent=PARENT))
found["delete used"] = refusal(models.delete_model, name=plain)
formats = aiplatform.Model(plain).supported_export_formats
found["supported_export_formats"] = sorted(formats)
exported = aiplatform.Model(plain).export_model("hf", artifact_destination="gs://data/exports")
found["export_model"] = exported["artifactOutputUri"].rpartition("/")[2]
copied = models.copy_model(
  request={"parent": PARENT, "source_model": f"{plain}@1", "model_id": "copied"}
).result(timeout=60)
found["copy_model"] = [copied.model.rpartition("/")[2], copied.model_version_id]
models.delete_model(name=copied.model).result(timeout=60)

# EndpointServiceClient and PredictionServiceClient.
endpoints = aiplatform_v1.EndpointServiceClient(**options)
endpoint = endpoints.create_endpoint(
  parent=PARENT, endpoint=aiplatform_v1.Endpoint(display_name="hotline")
).result(timeout=60)
found["create_endpoint"] = endpoint.display_name
deployed = endpoints.deploy_model(
  endpoint=endpoint.name,
  deployed_model=aiplatform_v1.DeployedModel(
    model=uploaded.model,
    dedicated_resources=aiplatform_v1.DedicatedResources(min_replica_count=1),
  ),
  traffic_split={"0": 100},
).result(timeout=600)
found["deploy_model"] = deployed.deployed_model.model_version_id
predictor = aiplatform_v1.PredictionServiceClient(**options)
answer = predictor.predict(
  endpoint=endpoint.name,
  instances=[value_of({"content": TEXT})],
  parameters=value_of({"maxOutputTokens": 4}),
)
found["predict over REST"] = [
  len(answer.predictions), answer.deployed_model_id == deployed.deployed_model.id
]  # fmt: skip
conversation = {"messages": [{"author": "user", "content": TEXT}], "context": "Be brief."}
answer = predictor.predict(endpoint=endpoint.name, instances=[value_of(conversation)])
(prediction,) = answer.predictions
found["predict in the chat form"] = [each["author"] for each in prediction["candidates"]]
beta = aiplatform_v1beta1.PredictionServiceClient(**options)
counted = beta.count_tokens(endpoint=endpoint.name, instances=[value_of({"content": TEXT})])
found["count_tokens in v1beta1"] = counted.total_tokens
changed = endpoints.update_endpoint(
  endpoint=aiplatform_v1.Endpoint(name=endpoint.name, display_name="line"),
  update_mask=field_mask_pb2.FieldMask(paths=["display_name"]),
)
found["update_endpoint"] = changed.display_name
listed = endpoints.list_endpoints(request={"parent": PARENT, "filter": 'display_name="line"'})
found["list_endpoints"] = [each.name == endpoint.name for each in listed]
found["delete deployed"] = refusal(endpoints.delete_endpoint, name=endpoint.name)
endpoints.undeploy_model(
  endpoint=endpoint.name, deployed_model_id=deployed.deployed_model.id
).result(timeout=60)
endpoints.delete_endpoint(name=endpoint.name).result(timeout=60)
found["get deleted"] = refusal(endpoints.get_endpoint, name=endpoint.name)
models.delete_model(name=uploaded.model).result(timeout=60)
found["delete_model"] = refusal(models.get_model, name=uploaded.model)

# The SDK's own classes over the same.
of_sdk = aiplatform.Endpoint.create(display_name="of the SDK")
aiplatform.Model(plain).deploy(endpoint=of_sdk, machine_type="n1-standard-4")
found["Endpoint.predict"] = len(of_sdk.predict(instances=[{"content": TEXT}]).predictions)
of_sdk.delete(force=True)

# google-genai.
client = genai.Client(
  vertexai=True, project=PROJECT, location=LOCATION,
  credentials=google.oauth2.credentials.Credentials(token="none"),
  http_options=types.HttpOptions(base_url=ADDRESS),
)  # fmt: skip
tuning = client.tunings.tune(
  base_model="text-bison@002",
  training_dataset=types.TuningDataset(gcs_uri="gs://data/train.jsonl"),
  config=types.CreateTuningJobConfig(
    method="DISTILLATION",
    base_teacher_model="text-unicorn@001",
    epoch_count=1,
    learning_rate_multiplier=1.0,
    batch_size=8,
    validation_dataset=types.TuningValidationDataset(gcs_uri="gs://data/eval.jsonl"),
    tuned_model_display_name="genai sums",
  ),
)
found["tune"] = wait(lambda: client.tunings.get(name=tuning.name))
tuning = client.tunings.get(name=tuning.name)
found["tuned_model"] = tuning.tuned_model.model
found["tunings.list"] = [each.name == tuning.name for each in client.tunings.list()]
second = client.tunings.tune(
  base_model="text-bison@002",
  training_dataset=types.TuningDataset(gcs_uri="gs://data/train.jsonl"),
  config=types.CreateTuningJobConfig(
    method="DISTILLATION", base_teacher_model="text-unicorn@001", epoch_count=1
  ),
)
client.tunings.cancel(name=second.name)
found["tunings.cancel"] = wait(lambda: client.tunings.get(name=second.name))
generated = client.models.generate_content(
  model=tuning.tuned_model.endpoint, contents=TEXT,
  config=types.GenerateContentConfig(max_output_tokens=4),
)  # fmt: skip
found["generate_content"] = type(generated.text).__name__
print(json.dumps(found))
