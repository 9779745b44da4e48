"""The operator's keys as requests name them, each for some projects."""

import re
from collections.abc import Mapping

from dss_jax.jobs.api_error import ApiError, invalid
from dss_jax.jobs.bodies.schema import shown
from dss_jax.jobs.settings import Key
from dss_jax.storage.keys import new_data_key, unwrapped
from dss_jax.storage.sealed import DataKey, Header, SealedError, Unlock

_NAME = re.compile(
  r"projects/[a-z0-9:.-]{1,63}/locations/[a-z0-9-]{1,40}/keyRings/[\w-]{1,63}/cryptoKeys/[\w-]{1,63}"
)


class Keyring:
  """The keys of a server; each is looked for when it is used, so that it can be withdrawn."""

  def __init__(self, keys: Mapping[str, Key]):
    self._keys = keys

  def new(self, name: str, project: str, owner: str) -> DataKey:
    """Returns a data key for the files of a new owner.

    Raises:
      ApiError: INVALID_ARGUMENT for what is no name, PERMISSION_DENIED for a key that the project
        may not use, FAILED_PRECONDITION for one that is not there.
    """
    if not _NAME.fullmatch(name):
      raise invalid(
        f"kmsKeyName: {shown(name)} is not of the form"
        " projects/P/locations/L/keyRings/R/cryptoKeys/K"
      )
    try:
      key = self.key(name, project)
    except SealedError as error:
      raise ApiError("PERMISSION_DENIED", f"kmsKeyName: {error}") from None
    try:
      return new_data_key(key.place.key(name), owner, name)
    except SealedError as error:
      raise ApiError("FAILED_PRECONDITION", f"kmsKeyName: {error}") from None

  def unlock_for(self, project: str | None) -> Unlock:
    """Returns what opens a project's sealed files, or raises SealedError; None: any project's."""

    def unlock(header: Header) -> DataKey:
      return unwrapped(self.key(header.key_name, project).place.key(header.key_name), header)

    return unlock

  def key(self, name: str, project: str | None) -> Key:
    """Returns a key's settings; raises SealedError unless the project may use it."""
    key = self._keys.get(name)
    if key is None or (project is not None and not key.is_for(project)):
      raise SealedError(
        f"the key {shown(name)} is not configured here for {project or 'any project'}; the"
        " operator's settings name `keys`"
      )
    return key
