"""The operator's settings of a job server: one YAML file, checked by pydantic."""

import os
import pathlib
import re
from typing import Annotated, Any, Literal

import pydantic
import yaml

from dss_jax.errors import UserError
from dss_jax.storage.files import PathLike, read_text, reason
from dss_jax.storage.keys import KeyPlace

FILE = "jobs.yaml"
AcceleratorType = Literal["GPU", "TPU"]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_Count = Annotated[int, pydantic.Field(ge=1)]
_Price = Annotated[float, pydantic.Field(ge=0)]


class _Settings(pydantic.BaseModel):
  model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class _OfProjects(_Settings):
  """What requests may name.

  Attributes:
    projects: whose requests may; None: all.
  """

  projects: tuple[str, ...] | None = None

  def is_for(self, project: str) -> bool:
    return self.projects is None or project in self.projects


class Place(_OfProjects):
  """A folder below which requests may name files.

  Attributes:
    path: a local folder; of a bucket, also a URL, such as gs://NAME itself.
  """

  path: str


def _place(value: Any) -> Any:
  """Takes a text as a place's path."""
  return {"path": value} if isinstance(value, str) else value


_Place = Annotated[Place, pydantic.BeforeValidator(_place)]


class Teacher(_OfProjects):
  """A teacher that requests may name.

  Attributes:
    name: openai:MODEL, recorded:FILE or t5:MODEL, as --teacher takes it.
    prices: of a million tokens of prompts and of answers, in any currency; None: not known.
    settings: further fields of TeacherConfig, such as prompt or samples.
  """

  name: str
  url: str | None = None
  key_env: str | None = None
  prices: tuple[_Price, _Price] | None = None
  settings: dict[str, Any] = {}


class Student(_Settings):
  """A student that requests may name.

  Attributes:
    student: its size, as --student takes it.
    settings: fields of the run by their gin names, such as "DataConfig.vocabulary"; they win over
      what the request says.
  """

  student: str
  initial_checkpoint: str | None = None
  settings: dict[str, Any] = {}


class Accelerator(_Settings):
  """What an accelerator_type of a request means on this machine.

  Attributes:
    mesh: as --mesh takes it.
    batch_size: None is the service's: 24 on TPUs, 8 on GPUs and for 32k inputs.
  """

  mesh: str
  batch_size: _Count | None = None


class DeviceSet(_Settings):
  """Devices that one job at a time uses.

  Attributes:
    accelerators: the accelerator types that its jobs ask for.
    regions: of the requests that it takes; () takes all.
    environment: variables of its jobs, such as CUDA_VISIBLE_DEVICES.
    platform, devices: what a program sees there; None finds out when the server first starts.
  """

  name: Annotated[str, pydantic.Field(pattern=f"^{_NAME.pattern}$")]
  accelerators: tuple[AcceleratorType, ...] = ("GPU", "TPU")
  regions: tuple[str, ...] = ()
  environment: dict[str, str] = {}
  platform: Literal["cpu", "gpu", "tpu"] | None = None
  devices: _Count | None = None


class Quota(_Settings):
  """The most jobs at a time of a region, an accelerator type, or both; None means all."""

  region: str | None = None
  accelerator: AcceleratorType | None = None
  jobs: Annotated[int, pydantic.Field(ge=0)]


class ServiceAccount(_OfProjects):
  """What a request's serviceAccount selects: variables of its job's environment."""

  environment: dict[str, str] = {}


class Key(_OfProjects):
  """A key that requests may name as their kmsKeyName.

  Attributes:
    file, plugin: where it is, see KeyPlace.
  """

  file: str | None = None
  plugin: Annotated[str, pydantic.Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")] | None = None

  @pydantic.model_validator(mode="after")
  def _check_place(self) -> "Key":
    if (self.file is None) == (self.plugin is None):
      raise ValueError("give one of file and plugin")
    return self

  @property
  def place(self) -> KeyPlace:
    return KeyPlace(self.file, self.plugin)


_KeyName = Annotated[
  str,
  pydantic.Field(pattern=r"^projects/[^/]+/locations/[^/]+/keyRings/[^/]+/cryptoKeys/[^/]+$"),
]


# The architectures of the service's T5 students, without a checkpoint.
_STUDENTS = {
  f"t5-{name}": Student(student=size)
  for name, size in (
    ("small", "small"), ("base", "base"), ("large", "large"), ("xl", "xl"), ("xxl", "xxl"),
    ("3b", "xl"), ("11b", "xxl"),
  )
}  # fmt: skip
_ACCELERATORS = {"TPU": Accelerator(mesh="v3-64"), "GPU": Accelerator(mesh="gpu-8")}


class Settings(_Settings):
  """All of an operator's settings.

  Attributes:
    projects: those that requests may name; None for any.
    buckets: what gs://NAME means: a path, or a place with its projects.
    folders: local folders below which requests may name files, each as a bucket is given.
    teachers, students: by the names of requests' teacher_model_reference and
      student_model_reference; the t5-* students are there without being named.
    publisher_models: which registered student, NAME or NAME@VERSION of the request's project,
      answers for publishers/google/models/ID.
    loaded_students: that the server keeps in memory; others are loaded when they are asked.
    keys: by their kmsKeyName, projects/P/locations/L/keyRings/R/cryptoKeys/K.
    memory_folder: on a file system in memory, for the working folders of encrypted jobs.
    registry: the folder of the registries, one a project; None: ROOT/registry.
    uploads: the folder of the files that people upload in the console; None: ROOT/uploads.
    upload_bytes: the most that one of them may have.
    answer_on: where the server's own students answer; the devices of jobs are the jobs'.
    restarts: of a job's process, without progress between them, before the job fails.
    cancel_seconds: how long a cancelled job may take to save its checkpoint.
    retention_days: how long an ended job is kept, and an upload that no job reads; None for ever.
  """

  projects: tuple[str, ...] | None = None
  buckets: dict[str, _Place] = {}
  folders: tuple[_Place, ...] = ()
  teachers: dict[str, Teacher] = {}
  students: dict[str, Student] = {}
  publisher_models: dict[str, str] = {}
  loaded_students: _Count = 4
  accelerators: dict[AcceleratorType, Accelerator] = {}
  device_sets: tuple[DeviceSet, ...] = (DeviceSet(name="default"),)
  quotas: tuple[Quota, ...] = ()
  service_accounts: dict[str, ServiceAccount] = {}
  keys: dict[_KeyName, Key] = {}
  memory_folder: str = "/dev/shm"
  registry: str | None = None
  uploads: str | None = None
  upload_bytes: _Count = 2**28
  answer_on: Literal["cpu", "gpu", "tpu"] = "cpu"
  restarts: _Count = 5
  cancel_seconds: _Count = 120
  retention_days: _Count | None = None

  @pydantic.model_validator(mode="after")
  def _check_names(self) -> "Settings":
    names = [device_set.name for device_set in self.device_sets]
    if not names or len(set(names)) < len(names):
      raise ValueError("device_sets: give at least one, each with another name")
    return self

  def student(self, reference: str) -> Student | None:
    return self.students.get(reference) or _STUDENTS.get(reference)

  @property
  def student_references(self) -> list[str]:
    return sorted({**_STUDENTS, **self.students})

  def accelerator(self, kind: AcceleratorType) -> Accelerator:
    return self.accelerators.get(kind) or _ACCELERATORS[kind]


def read_settings(root: PathLike, file: PathLike | None = None) -> Settings:
  """Reads the settings: a file, else ROOT/jobs.yaml if it is there, else the defaults.

  Raises UserError for a file that is not such settings; the sentence names the first wrong one.
  """
  path = pathlib.Path(root) / FILE if file is None else pathlib.Path(file)
  if file is None and not path.exists():
    return Settings()
  try:
    values = yaml.safe_load(read_text(path))
  except yaml.YAMLError as error:
    raise UserError(f"{path}: is not YAML ({reason(error)}); see docs/jobs.md") from None
  try:
    settings = Settings.model_validate({} if values is None else values)
  except pydantic.ValidationError as error:
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    raise UserError(f"{path}: {place}: {first['msg']}; see docs/jobs.md") from None
  return _with_absolute_paths(settings, path.absolute().parent)


def _with_absolute_paths(settings: Settings, folder: pathlib.Path) -> Settings:
  """Returns the settings with paths, which are relative to the file's folder, made absolute."""

  def absolute(path: str) -> str:
    return path if "://" in path else os.path.normpath(folder / os.path.expanduser(path))

  def place(given: Place) -> Place:
    return given.model_copy(update={"path": absolute(given.path)})

  def teacher(given: Teacher) -> Teacher:
    kind, _, rest = given.name.partition(":")
    return given.model_copy(
      update={"name": f"{kind}:{absolute(rest)}" if kind == "recorded" else given.name}
    )

  def student(given: Student) -> Student:
    path = given.initial_checkpoint
    return given.model_copy(update={"initial_checkpoint": None if path is None else absolute(path)})

  def key(given: Key) -> Key:
    return given.model_copy(update={"file": None if given.file is None else absolute(given.file)})

  return settings.model_copy(
    update={
      "keys": {name: key(given) for name, given in settings.keys.items()},
      "memory_folder": absolute(settings.memory_folder),
      "teachers": {name: teacher(given) for name, given in settings.teachers.items()},
      "students": {name: student(given) for name, given in settings.students.items()},
      "buckets": {name: place(given) for name, given in settings.buckets.items()},
      "folders": tuple(map(place, settings.folders)),
      "registry": None if settings.registry is None else absolute(settings.registry),
      "uploads": None if settings.uploads is None else absolute(settings.uploads),
    }
  )
