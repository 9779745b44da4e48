"""Who looks at a page: the session of a browser and the caller behind it."""

import dataclasses

from starlette.requests import Request

from dss_jax.console.session import Session
from dss_jax.jobs.api.access import Caller, Role


@dataclasses.dataclass(frozen=True)
class Visit:
  """A request of a browser.

  Attributes:
    caller: None before the sign-in.
    project: of the page; None for pages of no project.
  """

  session: Session
  caller: Caller | None = None
  project: str | None = None

  def may(self, role: Role) -> bool:
    """Returns whether the caller has a role in the page's project."""
    return (
      self.caller is not None and self.project is not None and self.caller.may(role, self.project)
    )


def visit_of(request: Request) -> Visit:
  """Returns the visit that the gate let through."""
  visit = request.state.visit
  assert isinstance(visit, Visit)
  return visit


def caller_of(request: Request) -> Caller:
  """Returns who sends a request; for pages that need a sign-in."""
  caller = visit_of(request).caller
  assert caller is not None
  return caller
