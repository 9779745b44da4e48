"""What a project may choose from for a new distillation, as the operator configured it."""

import dataclasses

from dss_jax.jobs.bodies.schema import PARAMETERS
from dss_jax.jobs.service import JobService
from dss_jax.jobs.settings import AcceleratorType

_REGIONS = ("us-central1", "europe-west4")
_KINDS: tuple[AcceleratorType, ...] = ("TPU", "GPU")
Options = list[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Choices:
  """Pairs of a value and its text, and names of regions and keys."""

  teachers: Options
  students: Options
  accelerators: Options
  regions: list[str]
  keys: list[str]

  def defaults(self) -> dict[str, str]:
    """Returns the values that a form begins with."""
    offered = {
      "teacher_model_reference": self.teachers,
      "student_model_reference": self.students,
      "accelerator_type": self.accelerators,
    }
    return {name: _preferred(name, options) for name, options in offered.items()}


def choices(service: JobService, project: str) -> Choices:
  """Returns what there is for a project."""
  settings = service.settings
  teachers = [(name, name) for name, each in settings.teachers.items() if each.is_for(project)]
  parent = f"projects/{project}/locations/{_REGIONS[0]}/models"
  registry = service.registry(project)
  teachers += [
    (f"{parent}/{name}", f"{name}, a model of this project")
    for name in registry.names()
    # An encrypted student does not teach.
    if not registry.version(name).is_sealed
  ]
  students = []
  for name in settings.student_references:
    given = settings.student(name)
    assert given is not None
    weights = "pretrained" if given.initial_checkpoint else "random weights"
    students.append((name, f"{name} ({given.student}, {weights})"))
  # The operator's own first.
  students.sort(key=lambda each: each[0] not in settings.students)
  accelerators: Options = [
    (kind, f"{kind} ({settings.accelerator(kind).mesh})")
    for kind in _KINDS
    if any(kind in each.accelerators for each in settings.device_sets)
  ]
  regions = {region for each in settings.device_sets for region in each.regions}
  keys = sorted(name for name, each in settings.keys.items() if each.is_for(project))
  return Choices(teachers, students, accelerators, sorted(regions or _REGIONS), keys)


def _preferred(name: str, options: Options) -> str:
  usual = str(PARAMETERS[name].default)
  values = [value for value, _ in options]
  return usual if usual in values or not values else values[0]
