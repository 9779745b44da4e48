"""Keys: in files for their owner alone, or with a plug-in; a key's bytes are in no message."""

import base64
import os

import pytest

from dss_jax.errors import UserError
from dss_jax.storage.keys import KeyPlace, new_data_key, read_key, unwrapped, write_key
from dss_jax.storage.sealed import SealedError

NAME = "projects/p/locations/l/keyRings/r/cryptoKeys/k"


class Plugin:
  """A KMS that is easily read."""

  def __init__(self, name):
    self.name = name

  def wrap(self, data):
    return self.name.encode() + data[::-1]

  def unwrap(self, data):
    if "gone" in self.name:
      raise PermissionError("the secret is 12345")
    return data.removeprefix(self.name.encode())[::-1]


def test_a_key_wraps_data_keys(tmp_path):
  path = tmp_path / "key"
  write_key(path)
  assert path.stat().st_mode & 0o777 == 0o600
  key = KeyPlace(file=str(path)).key(NAME)
  data_key = new_data_key(key, "job-1", NAME)
  assert unwrapped(read_key(path, NAME), data_key.header("a", "file")) == data_key
  assert data_key.secret not in base64.b64decode(data_key.wrapped)
  with pytest.raises(UserError, match=r"--out .*key: cannot be made"):
    write_key(path)


def test_another_key_does_not_open(tmp_path):
  for name in ("key", "other"):
    write_key(tmp_path / name)
  header = new_data_key(read_key(tmp_path / "key", NAME), "job-1", NAME).header("a", "file")
  for key in (read_key(tmp_path / "other", NAME), read_key(tmp_path / "key", NAME + "2")):
    with pytest.raises(SealedError, match="does not open these files, or was withdrawn"):
      unwrapped(key, header)


@pytest.mark.parametrize(
  ("content", "mode", "message"),
  [
    (b"", 0o600, "does not hold 32 bytes in base64"),
    (b"not base64", 0o600, "does not hold 32 bytes in base64"),
    (base64.b64encode(b"x" * 31), 0o600, "does not hold 32 bytes in base64"),
    (base64.b64encode(b"x" * 32), 0o640, "is open to other users"),
    (base64.b64encode(b"x" * 32), 0o604, "is open to other users"),
    (None, 0o600, "its file cannot be read"),
  ],
)
def test_a_file_that_is_no_key(tmp_path, content, mode, message):
  path = tmp_path / "key"
  if content is not None:
    path.write_bytes(content)
    os.chmod(path, mode)
  with pytest.raises(SealedError, match=message) as error:
    read_key(path, NAME)
  assert "eHh4" not in str(error.value)
  assert "\n" not in str(error.value)


def test_a_plugin(tmp_path):
  place = KeyPlace(plugin=f"{__name__}:Plugin")
  data_key = new_data_key(place.key(NAME), "job-1", NAME)
  assert unwrapped(place.key(NAME), data_key.header("a", "file")) == data_key
  gone = new_data_key(place.key("gone"), "job-1", "gone")
  with pytest.raises(SealedError, match=r"was withdrawn .PermissionError") as error:
    unwrapped(place.key("gone"), gone.header("a", "file"))
  assert "12345" not in str(error.value)
  for wrong in ("none:Plugin", f"{__name__}:Nobody"):
    with pytest.raises(SealedError, match=f"the key {NAME}: does not open"):
      KeyPlace(plugin=wrong).key(NAME)
