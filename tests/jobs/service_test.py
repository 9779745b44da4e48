"""What a request becomes: a RunConfig, and the devices that it needs."""

import io
import pathlib

import pytest

from dss_jax.config.gin_loader import load_config
from dss_jax.config.schema import RunConfig
from dss_jax.errors import UserError
from dss_jax.jobs.api_error import ApiError
from dss_jax.jobs.bodies.job_config import model_id
from dss_jax.jobs.settings import Settings, read_settings
from tests.jobs.workplace import TINY, pipeline

PROJECT, LOCATION = "my-project", "europe-west4"
# A server with the service's machines.
MACHINES = [
  {"name": "tpu", "accelerators": ["TPU"], "platform": "tpu", "devices": 64},
  {"name": "gpu", "accelerators": ["GPU"], "platform": "gpu", "devices": 8},
]


@pytest.fixture
def create(tmp_path):
  """Creates a pipeline and returns its job and RunConfig."""

  def create(service, parameters=None, **fields):
    body = pipeline(parameters, **fields)
    job = service.create("pipelineJobs", PROJECT, LOCATION, body)
    path = tmp_path / "config.gin"
    path.write_text(job.config)
    return job, load_config(RunConfig, [str(path)])

  return create


def test_a_request_becomes_a_run(service, workplace, create):
  job, config = create(
    service,
    {
      "evaluation_data_uri": "gs://my-bucket/eval.jsonl",
      "train_steps": 7.0,
      "learning_rate_multiplier": 0.5,
      "evaluation_interval": 3,
      "enable_early_stopping": False,
      "enable_checkpoint_selection": "false",
      "model_display_name": "My Model!",
      "temperature": 0.5,
    },
  )
  assert config.data.dataset == str(workplace.bucket / "train.jsonl")
  assert config.data.eval_dataset == str(workplace.bucket / "eval.jsonl")
  assert config.teacher.name == f"recorded:{workplace.teacher}"
  assert config.teacher.temperature == 0.5
  assert config.train_steps == 7
  assert config.optimizer.learning_rate_multiplier == 0.5
  assert config.evaluation.interval_steps == 3
  assert not config.evaluation.early_stopping
  assert not config.evaluation.checkpoint_selection
  assert (config.student, config.model.num_encoder_layers) == ("tiny", 1)
  assert config.display_name == "my-model"
  assert pathlib.Path(config.registry) == service.root / "registry" / PROJECT
  assert pathlib.Path(config.model_dir) == service.folder(job) / "model"
  assert (job.state, job.accelerator) == ("QUEUED", "TPU")
  assert job.plan["student"] == "text-bison@002"
  assert job.plan["location"] == LOCATION


@pytest.mark.parametrize(
  ("parameters", "batch_size", "mesh", "inputs"),
  [
    ({"accelerator_type": "TPU"}, 24, (8, 8, "tpu"), 7168),
    ({"accelerator_type": "GPU"}, 8, (8, 1, "gpu"), 7168),
    ({"accelerator_type": "TPU", "max_context_length": "32k"}, 8, (8, 8, "tpu"), 31744),
    ({"accelerator_type": "GPU", "max_context_length": "32k"}, 8, (8, 1, "gpu"), 31744),
  ],
)
def test_the_services_machines(workplace, create, parameters, batch_size, mesh, inputs):
  service = workplace.open(device_sets=MACHINES, accelerators={})
  _, config = create(service, {"student_model_reference": "t5-base", **parameters})
  assert config.batch_size == batch_size
  assert (config.mesh.data, config.mesh.model, config.mesh.platform) == mesh
  assert config.data.max_input_tokens == inputs
  assert config.student == "base"


def test_a_mesh_that_is_not_there_is_an_error(service, create):
  with pytest.raises(ApiError, match="GPU in europe-west4 needs 8 devices of GPU") as error:
    create(service, {"accelerator_type": "GPU"})
  assert error.value.kind == "FAILED_PRECONDITION"
  assert "a: 1 of CPU" in str(error.value)
  assert not service.store.newest()


def test_a_region_without_devices_is_an_error(workplace, create):
  sets = [{**workplace.settings["device_sets"][0], "regions": ["us-east1"]}]
  with pytest.raises(ApiError, match="TPU in europe-west4 needs 1 devices of CPU"):
    create(workplace.open(device_sets=sets))


def test_everything_wrong_is_in_one_error(service, workplace):
  body = pipeline(
    {
      "project": "other",
      "train_stepz": 3,
      "train_steps": 0,
      "dataset_uri": "gs://my-bucket/none.jsonl",
      "evaluation_data_uri": "/etc/passwd",
      "teacher_model_reference": "gpt",
      "student_model_reference": "bert",
      "evaluation_output_root_dir": "gs://their-bucket/x",
    },
    serviceAccount="root@my-project",
    runtimeConfig={"gcsOutputDirectory": "gs://their-bucket/out"},
  )
  with pytest.raises(ApiError) as error:
    service.create("pipelineJobs", PROJECT, LOCATION, body)
  message = str(error.value)
  assert message.startswith("runtimeConfig.parameterValues: ")
  for part in (
    "'train_stepz' is no parameter, did you mean train_steps?",
    "train_steps is 0",
    "project is 'other', but the path says 'my-project'",
    "dataset_uri is 'gs://my-bucket/none.jsonl', where there is no file",
    "evaluation_data_uri: is outside the folders",
    "teacher_model_reference is 'gpt', which the operator has not configured (there are text-un",
    "student_model_reference is 'bert', which the operator has not configured (there are t5-11b",
    "evaluation_output_root_dir: the bucket 'their-bucket' is not configured",
    "gcsOutputDirectory: the bucket 'their-bucket' is not configured",
    "serviceAccount is 'root@my-project', which the operator has not configured",
  ):
    assert part in message
  assert "\n" not in message
  assert str(workplace.folder) not in message


def test_a_registered_student_may_teach(service, create):
  registry = service.registry(PROJECT)
  registry.register("teacher", {}, lambda folder: (folder / "weights").write_text("1"))
  name = f"projects/{PROJECT}/locations/us-east1/models/teacher@1"
  _, config = create(service, {"teacher_model_reference": name})
  assert config.teacher.name == f"t5:{registry.root / 'teacher' / '1'}"
  other = name.replace(PROJECT, "other-project")
  with pytest.raises(ApiError, match="has not configured"):
    create(service, {"teacher_model_reference": other})


def test_what_is_of_other_projects_cannot_be_named(workplace, create):
  settings = workplace.settings
  teacher, bucket = settings["teachers"]["text-unicorn@001"], settings["buckets"]["my-bucket"]
  theirs = {"projects": ["other-project"]}
  for changes, says in (
    ({"teachers": {"text-unicorn@001": {**teacher, **theirs}}}, "(there are none)"),
    ({"buckets": {"my-bucket": {"path": bucket, **theirs}}}, "is not configured here for my-proj"),
    ({"service_accounts": {"me@x": theirs}}, "serviceAccount is 'me@x', which the operator has"),
  ):
    with pytest.raises(ApiError) as error:
      create(workplace.open(**changes), serviceAccount="me@x")
    assert says in str(error.value)


def test_a_tuning_job_becomes_a_run(service, tmp_path):
  path = tmp_path / "config.gin"
  body = {
    "baseModel": "publishers/google/models/t5-small",
    "distillationSpec": {
      "promptDatasetUri": "gs://my-bucket/train.jsonl",
      "baseTeacherModel": "publishers/google/models/text-unicorn@001",
      "hyperParameters": {"epochCount": "2", "learningRateMultiplier": 0.5, "batchSize": 16},
      "sftLossWeightMultiplier": 0.25,
    },
  }
  job = service.create("tuningJobs", PROJECT, LOCATION, body)
  path.write_text(job.config)
  config = load_config(RunConfig, [str(path)])
  # The student's own batch size wins over the request's: 2 epochs of 40 rows, 4 a step.
  assert (config.batch_size, config.train_steps) == (4, 20)
  assert config.loss.alpha == 0.2
  assert config.optimizer.learning_rate_multiplier == 0.5
  assert config.display_name == "tuned-t5-small"
  assert config.teacher.name.startswith("recorded:")
  supervised = {
    "baseModel": "t5-small",
    "tunedModelDisplayName": "Mine",
    "supervisedTuningSpec": {"trainingDatasetUri": "gs://my-bucket/labelled.jsonl"},
  }
  job = service.create("tuningJobs", PROJECT, LOCATION, supervised)
  path.write_text(job.config)
  config = load_config(RunConfig, [str(path)])
  assert (config.loss.alpha, config.teacher.name, config.train_steps) == (1.0, None, 30)


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("distilled-student-model", "distilled-student-model"),
    ("My Model (2)", "my-model-2"),
    ("../../etc", "etc"),
    ("a@1", "a-1"),
    ("日本", "model"),
    ("x" * 128, "x" * 63),
    ("--", "model"),
  ],
)
def test_display_names_become_ids(name, expected):
  assert model_id(name) == expected


@pytest.mark.parametrize(
  ("settings", "says"),
  [
    ({"bucket": {}}, "bucket: Extra inputs"),
    ({"device_sets": []}, "device_sets: give at least one"),
    ({"device_sets": [{"name": "a b"}]}, "device_sets.0.name"),
    ({"accelerators": {"CPU": {"mesh": "cpu"}}}, "accelerators.CPU"),
    ({"accelerators": {"TPU": {"mesh": "v9"}}}, ": --mesh v9: 'v9' is neither axes nor a mesh"),
    ({"students": {"x": {"student": "huge"}}}, "students: x: model: there is no student 'huge'"),
    (
      {"students": {"x": {**TINY, "settings": {"RunConfig.train_steps": 3}}}},
      "students: x: train_steps: has no effect",
    ),
    ({"students": {"x": {**TINY, "settings": {"Foo.bar": 3}}}}, "there is no 'Foo.bar'"),
    ({"restarts": 0}, "restarts"),
  ],
)
def test_wrong_settings_are_found_at_the_start(workplace, settings, says):
  with pytest.raises(UserError) as error:
    workplace.open(**settings)
  assert says in str(error.value)
  assert "\n" not in str(error.value)


def test_settings_that_are_no_yaml(tmp_path):
  assert read_settings(tmp_path) == Settings()
  (tmp_path / "jobs.yaml").write_text("a: [")
  with pytest.raises(UserError, match="is not YAML"):
    read_settings(tmp_path)
  (tmp_path / "jobs.yaml").write_text("- 1")
  with pytest.raises(UserError, match=r"jobs\.yaml"):
    read_settings(tmp_path)
  (tmp_path / "jobs.yaml").write_text(
    "buckets: {a-b: data}\nteachers: {t: {name: 'recorded:a.jsonl'}}\n"
    "students: {s: {student: tiny, initial_checkpoint: w}}\nregistry: r\nfolders: [f]\n"
  )
  settings = read_settings(tmp_path)
  assert settings.buckets["a-b"].path == f"{tmp_path}/data"
  assert settings.teachers["t"].name == f"recorded:{tmp_path}/a.jsonl"
  assert settings.students["s"].initial_checkpoint == f"{tmp_path}/w"
  assert (settings.registry, settings.folders[0].path) == (f"{tmp_path}/r", f"{tmp_path}/f")


def test_a_prepared_job_is_not_in_the_queue(service):
  job = service.prepare("pipelineJobs", "my-project", "europe-west4", pipeline())
  assert (job.state, service.store.newest()) == ("QUEUED", [])
  with pytest.raises(ApiError) as error:
    service.prepare(
      "pipelineJobs", "my-project", "europe-west4", pipeline({"train_steps": 0, "temperature": 9})
    )
  assert [each.split()[0] for each in error.value.problems] == ["train_steps", "temperature"]


def test_a_request_may_leave_its_results_with_the_job(service):
  body = pipeline(runtimeConfig={"gcsOutputDirectory": None})
  job = service.create("pipelineJobs", "my-project", "europe-west4", body)
  assert job.plan["output"] is None


def test_an_upload_is_a_project_s_own_data(service):
  upload = service.uploads.add("my-project", "x.jsonl", io.BytesIO(b'{"input_text": "x"}\n'), "me")
  body = pipeline({"dataset_uri": upload.uri})
  job = service.create("pipelineJobs", "my-project", "europe-west4", body)
  path = service.uploads.path("my-project", upload)
  assert job.plan["uris"] == {path: upload.uri}
  assert service.paths_in_use() == {path}
  service.cancel(job.name)
  assert service.paths_in_use() == set()
  body = pipeline({"project": "other-project", "dataset_uri": upload.uri})
  with pytest.raises(ApiError, match="where there is no file"):
    service.create("pipelineJobs", "other-project", "europe-west4", body)


def test_projects_that_are_there(workplace):
  assert workplace.open().known_projects() == ["my-project", "other-project"]
  service = workplace.open(projects=None)
  assert service.known_projects() == []
  service.create("pipelineJobs", "a-project", "europe-west4", pipeline({"project": "a-project"}))
  (service.root / "registry" / "b-project").mkdir(parents=True)
  (service.root / "registry" / ".hidden").mkdir()
  assert service.known_projects() == ["a-project", "b-project"]
