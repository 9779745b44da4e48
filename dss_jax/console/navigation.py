"""The sections of the console, in the order of the navigation."""

from typing import NamedTuple

from dss_jax.jobs.api.access import Role


class Section(NamedTuple):
  """Attributes:

  path: of its first page, below /console/projects/PROJECT/.
  role: who sees it.
  """

  title: str
  path: str
  role: Role = "viewer"


SECTIONS = (
  Section("Jobs", "jobs"),
  Section("New distillation", "create", "editor"),
  Section("Data", "data"),
  Section("Models", "models"),
  Section("Try a student", "try"),
)
