"""The JSON of models: what a client may send, and how a registered version is shown."""

import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import pydantic
from pydantic.alias_generators import to_camel

from dss_jax.jobs.bodies.pipeline_body import EncryptionSpec, Labels
from dss_jax.student.registry import Version

# By this label clients find the tuned students of a model, and its name with '@' for the last '-'.
BASE_MODEL_LABEL = "google-vertex-llm-tuning-base-model-id"
INSTANCE_SCHEMA = "gs://google-cloud-aiplatform/schema/predict/instance/{}_generation_1.0.0.yaml"
# As `dss export` has them, and the student's own folder.
EXPORT_FORMATS = ("hf", "t5x", "t5x-orbax", "custom-trained")
_PUBLISHER = "publishers/google/models/"
DisplayName = Annotated[str, pydantic.Field(max_length=128)]
Description = Annotated[str, pydantic.Field(max_length=2048)]

# With one letter more for "-ALIAS"; the registry checks the rest.
Aliases = Annotated[
  list[Annotated[str, pydantic.Field(max_length=129)]], pydantic.Field(max_length=16)
]


class Sent(pydantic.BaseModel):
  """A part of a resource that a client sends.

  The clients' own messages have fields that mean nothing here, such as machine types: they are
  passed over.
  """

  model_config = pydantic.ConfigDict(
    extra="ignore", alias_generator=to_camel, populate_by_name=True, frozen=True
  )


class ModelDetails(Sent):
  """What a client may say of a version."""

  display_name: DisplayName | None = None
  description: Description | None = None
  version_description: Description | None = None
  labels: Labels | None = None


class SentModel(ModelDetails):
  """A model to upload."""

  artifact_uri: Annotated[str, pydantic.Field(max_length=1024)] = ""
  version_aliases: Aliases = pydantic.Field(default_factory=list)
  encryption_spec: EncryptionSpec = EncryptionSpec()


class SentAliases(Sent):
  """Aliases that a version gets, or with "-" before them loses."""

  version_aliases: Annotated[Aliases, pydantic.Field(min_length=1)]


class Upload(Sent):
  model: SentModel
  parent_model: str = ""
  model_id: str = ""


def base_model_of(version: Version) -> str:
  """Returns the id of the model that a student began as, without '@': text-bison-002, t5-small."""
  student = str(version.record.get("student", "")).lower().replace("_", "-").replace("@", "-")
  return student if "-" in student else f"t5-{student or 'custom'}"


def labels_of(version: Version) -> dict[str, str]:
  """Returns a version's labels, with the one that tuned models have."""
  return {BASE_MODEL_LABEL: base_model_of(version), **version.details.get("labels", {})}


def schema_of(model: str) -> str:
  """Returns the URI by which clients choose their class for a model of this name."""
  kind = next(
    (each for each in ("chat", "codechat", "code") if model.startswith(f"{each}-")), "text"
  )
  return INSTANCE_SCHEMA.format(kind)


def model_json(
  version: Version, project: str, location: str, deployed: Sequence[Mapping[str, str]]
) -> dict[str, Any]:
  """Returns a registered version as a Model.

  Args:
    deployed: where it is deployed, from Endpoints.deployments.
  """
  record, details = version.record, version.details
  created = _time(record["created"])
  labels = labels_of(version)
  base, _, number = labels[BASE_MODEL_LABEL].rpartition("-")
  content = {
    "name": f"projects/{project}/locations/{location}/models/{version.name}",
    "displayName": details.get("display_name") or version.name,
    "description": details.get("description"),
    "versionId": str(version.number),
    "versionAliases": [alias for alias in version.aliases if alias != "latest"],
    "versionCreateTime": created,
    "versionUpdateTime": details.get("update_time") or created,
    "versionDescription": details.get("version_description"),
    "createTime": created,
    "updateTime": details.get("update_time") or created,
    "labels": labels,
    "deployedModels": list(deployed),
    "supportedDeploymentResourcesTypes": ["AUTOMATIC_RESOURCES", "DEDICATED_RESOURCES"],
    "supportedExportFormats": [
      {"id": form, "exportableContents": ["ARTIFACT"]} for form in EXPORT_FORMATS
    ],
    "supportedInputStorageFormats": ["jsonl"],
    "supportedOutputStorageFormats": ["jsonl"],
    "predictSchemata": {"instanceSchemaUri": schema_of(base)},
    "baseModelSource": {"genieSource": {"baseModelUri": f"{_PUBLISHER}{base}@{number}"}},
    "modelSourceInfo": {"sourceType": "GENIE", **({"copy": True} if "copy" in record else {})},
    "pipelineJob": details.get("pipeline_job"),
    "encryptionSpec": record.get("encryption_spec"),
    "metadata": {
      key: record[key] for key in ("student", "parameters", "step", "metrics") if key in record
    },
  }
  shown = {key: value for key, value in content.items() if value not in (None, [])}
  return {**shown, "etag": etag(shown)}


def etag(content: Mapping[str, Any]) -> str:
  """Returns a short text that changes when a resource does."""
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _time(text: str) -> str:
  """Returns a time of the registry as the API writes it."""
  time = datetime.datetime.fromisoformat(text).astimezone(datetime.UTC)
  return time.isoformat().replace("+00:00", "Z")
