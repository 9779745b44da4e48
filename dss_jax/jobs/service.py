"""The one object that the routes call: what a server has under its root, and what it does."""

import datetime
import pathlib
import re
import secrets
from collections.abc import Sequence
from typing import IO, Any, TypedDict

from dss_jax.config.gin_loader import to_gin
from dss_jax.config.schema import RunConfig
from dss_jax.errors import UserError
from dss_jax.jobs import places
from dss_jax.jobs.api_error import ApiError, invalid, not_found
from dss_jax.jobs.bodies.job_config import Wish, check_students, run_config
from dss_jax.jobs.bodies.job_request import read_request
from dss_jax.jobs.bodies.schema import PLACE, shown
from dss_jax.jobs.devices import Devices, Need, find_devices
from dss_jax.jobs.encryption.private_jobs import PrivateJobs
from dss_jax.jobs.encryption.working_folder import is_private
from dss_jax.jobs.settings import DeviceSet, Settings, read_settings
from dss_jax.jobs.store import CANCELLED_ERROR, STARTED, WAITING, Job, Kind, Store, now
from dss_jax.jobs.uploads import Uploads
from dss_jax.storage.atomic import make_folder, withdraw
from dss_jax.storage.files import PathLike, is_url
from dss_jax.storage.sealed import SUFFIX
from dss_jax.student.registry import Registry

# A project's id, or its number.
_PROJECT = re.compile(r"[a-z][a-z0-9:.-]{0,61}[a-z0-9]|[0-9]{1,20}")
_LOCATION = re.compile(r"[a-z][a-z0-9-]{1,38}[a-z0-9]")
_JOB_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,126}")
MAX_BATCH = 32


class Plan(TypedDict):
  """What a job does beside its run.

  Attributes:
    platform, devices: what the run needs.
    location: of the model that it makes.
    display_name: of the model that it makes.
    student, teacher: as the request names them.
    output, evaluation_output: folders that get copies of its results, if any.
    uris: of the request, by the paths that they mean.
    review_rationales: whether people review the teacher's answers before the training.
    key: of an encrypted job: its kmsKeyName and its data key, wrapped.
  """

  platform: str | None
  devices: int
  location: str
  display_name: str
  student: str
  teacher: str | None
  output: str | None
  evaluation_output: str | None
  uris: dict[str, str]
  review_rationales: bool
  key: dict[str, str] | None


class JobService:
  """The jobs, models and files of a server.

  Attributes:
    root: the server's folder: jobs.sqlite, jobs/ (a folder for each), registry/.
    settings: the operator's.
    uploads: the files that people uploaded.
    store: the jobs and their tasks.
    devices: what each device set has.
    private: the encrypted jobs and students.
  """

  def __init__(self, root: pathlib.Path, settings: Settings, devices: dict[str, Devices]):
    self.root = root
    self.settings = settings.model_copy(
      update={"uploads": settings.uploads or str(root / "uploads")}
    )
    self.uploads = Uploads(str(self.settings.uploads), settings.upload_bytes)
    self.store = Store(root)
    self.devices = devices
    self.private = PrivateJobs(root, settings)

  @property
  def projects(self) -> tuple[str, ...] | None:
    """The projects that there are; None for any."""
    return self.settings.projects

  def known_projects(self) -> list[str]:
    """Returns the projects that there are; of any that may be, those with a job or a student."""
    if self.projects is not None:
      return sorted(self.projects)
    registries = self.registry("-").root.parent
    found = {path.name for path in registries.iterdir()} if registries.is_dir() else set()
    found |= {job.project for job in self.store.newest()}
    return sorted(name for name in found if _PROJECT.fullmatch(name))

  def check_parent(self, project: str, location: str, *, any_location: bool = False) -> None:
    """Raises ApiError unless the path of a request names a project and a location of this server.

    Args:
      any_location: whether "-" stands for all locations.
    """
    if not _PROJECT.fullmatch(project):
      raise invalid(f"{shown(project)}: cannot be a project's id")
    if not _LOCATION.fullmatch(location) and not (any_location and location == "-"):
      raise invalid(f"{shown(location)}: cannot be a location; write one such as us-central1")
    if self.projects is not None and project not in self.projects:
      raise not_found(f"projects/{project}")

  def registry(self, project: str) -> Registry:
    """Returns the registry of a project's students; each project has its own."""
    folder = pathlib.Path(self.settings.registry or self.root / "registry")
    return Registry(folder / project)

  def resolve(self, uri: str, field: str, project: str) -> str:
    """Returns where a URI of a request leads; raises ApiError as places.resolve does."""
    return places.resolve(self.settings, uri, field, project)

  def folder(self, job: Job) -> pathlib.Path:
    """Returns the folder of a job: model/ (the run), worker.log, worker.lock, evaluation.json."""
    return self.root / "jobs" / job.folder

  def working_folder(self, job: Job) -> pathlib.Path:
    """Returns the folder where a job's process works: in memory, if the job is encrypted."""
    return self.private.folder(job) if is_private(job) else self.folder(job)

  def has_file(self, job: Job, name: str) -> bool:
    """Returns whether a job's folder has a file, whether or not it can be decrypted."""
    return (self.folder(job) / (f"{name}{SUFFIX}" if is_private(job) else name)).is_file()

  def open_file(self, job: Job, name: str) -> IO[bytes]:
    """Opens a file of a job's folder, decrypted; raises FileNotFoundError, or UserError."""
    if is_private(job):
      return self.private.open_file(job, name)
    return (self.folder(job) / name).open("rb")

  def device_sets(self, accelerator: str, location: str, need: Need) -> list[DeviceSet]:
    """Returns the device sets that a job can run on."""
    return [
      each
      for each in self.settings.device_sets
      if accelerator in each.accelerators
      and (not each.regions or location in each.regions)
      and self.devices[each.name].satisfy(need)
    ]

  def create(
    self,
    kind: Kind,
    project: str,
    location: str,
    body: Any,
    *,
    job_id: str | None = None,
    user: str | None = None,
  ) -> Job:
    """Adds a job to the queue; raises ApiError, with everything that is wrong, if it cannot run."""
    return self.store.create(self.prepare(kind, project, location, body, job_id=job_id, user=user))

  def prepare(
    self,
    kind: Kind,
    project: str,
    location: str,
    body: Any,
    *,
    job_id: str | None = None,
    user: str | None = None,
  ) -> Job:
    """Returns the job that create would add; raises ApiError as it does."""
    self.check_parent(project, location)
    if job_id is not None and not _JOB_ID.fullmatch(job_id):
      raise invalid(
        f"{shown(job_id)}: cannot be a job's id; use 1 to 127 small letters, digits and '-', and"
        " do not begin with '-'"
      )
    problems: list[str] = []
    request = read_request(kind, body, project, location, self.settings, problems)
    wish = request.wish
    job_id = job_id or _new_id(kind)
    folder = f"{job_id}-{secrets.token_hex(4)}"
    found = run_config(
      wish, self.settings, self.registry(project), self.root / "jobs" / folder / "model", problems
    )
    if found is None:
      place = f"{PLACE}: " if kind == "pipelineJobs" else ""
      raise ApiError("INVALID_ARGUMENT", place + "; ".join(problems), problems)
    config, need = found
    self._check_devices(wish, location, need)
    plan = Plan(
      platform=need.platform,
      devices=need.devices,
      location=request.location,
      display_name=wish.model_display_name,
      student=wish.student_model_reference,
      teacher=wish.teacher_model_reference,
      output=request.output,
      evaluation_output=request.evaluation_output,
      uris=_uris(config, wish),
      review_rationales=wish.review_rationales,
      key=None,
    )
    if request.key is not None:
      plan["key"] = self.private.new_key(request.key, project, folder)
    moment = now()
    return Job(
      name=f"projects/{project}/locations/{location}/{kind}/{job_id}",
      kind=kind,
      project=project,
      location=location,
      job_id=job_id,
      display_name=request.display_name,
      user=user,
      accelerator=wish.accelerator_type,
      account=request.account,
      state="QUEUED",
      create_time=moment,
      start_time=None,
      end_time=None,
      update_time=moment,
      request=request.body,
      config=to_gin(config),
      plan=dict(plan),
      folder=folder,
    )

  def get(self, name: str) -> Job:
    """Returns a job by projects/P/locations/L/KIND/ID; raises ApiError if there is none."""
    job = self.store.get(name)
    if job is None:
      raise not_found(name)
    return job

  def find(self, name: str) -> Job:
    """Returns the job of a name, or of an id that only one job has; raises ApiError."""
    if "/" in name:
      return self.get(name)
    found = [job for job in self.store.newest() if job.job_id == name]
    if len(found) > 1:
      raise invalid(f"{name}: {len(found)} jobs have this id; give the whole name of one")
    if not found:
      raise not_found(name)
    return found[0]

  def of_parent(self, kind: Kind, project: str, location: str) -> list[Job]:
    """Returns the jobs of a parent, newest first; location "-" means all."""
    self.check_parent(project, location, any_location=True)
    return self.store.of_parent(kind, project, location)

  def cancel(self, name: str) -> Job:
    """Asks a job to stop, with its checkpoint kept; a job that has ended stays as it is.

    One that waits is cancelled at once, one that runs when its process has ended.
    """
    self.get(name)
    self.store.change(name, WAITING, state="CANCELLED", error=CANCELLED_ERROR)
    self.store.change(name, STARTED, state="CANCELLING")
    return self.get(name)

  def delete(self, names: Sequence[str]) -> None:
    """Deletes ended jobs and their folders, all or none; their students stay registered."""
    jobs = [self.get(name) for name in names]
    self.store.delete(names)
    for job in jobs:
      if self.folder(job).exists():
        withdraw(self.folder(job))

  def paths_in_use(self) -> set[str]:
    """Returns the files that jobs which have not ended read."""
    jobs = self.store.in_states((*WAITING, *STARTED))
    return {path for job in jobs for path in job.plan["uris"]}

  def of_model(self, project: str, model: str, version: int) -> Job | None:
    """Returns the job that made a version of a model in the registry; None if none here did."""
    for job in self.store.in_states(("SUCCEEDED",)):
      made = job.result or {}
      if job.project == project and (made["model"], made["version"]) == (model, version):
        return job
    return None

  def _check_devices(self, wish: Wish, location: str, need: Need) -> None:
    if self.device_sets(wish.accelerator_type, location, need):
      return
    there = ", ".join(
      f"{each.name}: {self.devices[each.name].count} of {self.devices[each.name].platform.upper()}"
      for each in self.settings.device_sets
    )
    platform = "" if need.platform is None else f" of {need.platform.upper()}"
    raise ApiError(
      "FAILED_PRECONDITION",
      f"{wish.field('accelerator_type')} {wish.accelerator_type} in {location} needs {need.devices}"
      f" devices{platform}, and no device set for it has them ({there}); the operator's settings"
      " say what an accelerator type is here",
    )


def open_service(root: PathLike, config: PathLike | None = None) -> JobService:
  """Opens the jobs under a root folder, and makes it if it is not there.

  Args:
    config: the operator's settings, by default ROOT/jobs.yaml.

  Raises UserError for a folder or settings that cannot be used.
  """
  if is_url(root):
    raise UserError(f"--root {root}: is a URL; give the name of a local folder")
  folder = pathlib.Path(root).expanduser().absolute()
  settings = read_settings(folder, config)
  check_students(settings)
  make_folder(folder)
  return JobService(folder, settings, find_devices(settings, folder))


def _uris(config: RunConfig, wish: Wish) -> dict[str, str]:
  pairs = (
    (config.data.dataset, wish.dataset_uri),
    (config.data.eval_dataset, wish.evaluation_data_uri),
  )
  return {path: uri for path, uri in pairs if path and uri}


def _new_id(kind: Kind) -> str:
  if kind == "tuningJobs":
    # Google's are numbers.
    return str(secrets.randbelow(9 * 10**17) + 10**17)
  moment = datetime.datetime.now(datetime.UTC)
  return f"distillation-{moment:%Y%m%d%H%M%S}-{secrets.token_hex(3)}"
