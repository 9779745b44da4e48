"""There is one cache root, which DSS_CACHE_DIR moves."""

import os
import pathlib
import platform
import pwd

import jax
import pytest

from dss_jax.errors import UserError
from dss_jax.storage.cache import cache_folder, keep_compiled_programs


def test_the_environment_names_the_cache(tmp_path, monkeypatch):
  monkeypatch.setenv("DSS_CACHE_DIR", str(tmp_path))
  assert cache_folder("tokens") == tmp_path / "tokens"
  assert cache_folder("tokens", tmp_path / "own") == tmp_path / "own" / "tokens"
  monkeypatch.setenv("DSS_CACHE_DIR", "~/kept")
  assert cache_folder("tokens") == pathlib.Path.home() / "kept" / "tokens"


@pytest.mark.parametrize("value", [None, ""])
def test_the_default_is_below_the_home_directory(monkeypatch, value):
  if value is None:
    monkeypatch.delenv("DSS_CACHE_DIR")
  else:
    monkeypatch.setenv("DSS_CACHE_DIR", value)
  assert cache_folder("xla") == pathlib.Path.home() / ".cache" / "dss_jax" / "xla"


def test_a_url_is_refused(monkeypatch):
  monkeypatch.setenv("DSS_CACHE_DIR", "gs://bucket/cache")
  with pytest.raises(UserError, match=r"^DSS_CACHE_DIR=gs://bucket/cache: is a URL.*local folder$"):
    cache_folder("tokens")


@pytest.fixture
def unset_jax_cache():
  names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
  before = {name: getattr(jax.config, name) for name in names}
  jax.config.update("jax_compilation_cache_dir", None)
  yield
  for name, value in before.items():
    jax.config.update(name, value)


def test_compiled_programs_are_kept_for_each_machine(tmp_path, monkeypatch, unset_jax_cache):
  monkeypatch.setenv("DSS_CACHE_DIR", str(tmp_path))
  keep_compiled_programs()
  assert jax.config.jax_compilation_cache_dir == str(tmp_path / "xla" / platform.node())
  assert jax.config.jax_persistent_cache_min_compile_time_secs == 0


def test_a_cache_folder_of_jax_is_left_alone(unset_jax_cache):
  jax.config.update("jax_compilation_cache_dir", "/elsewhere")
  keep_compiled_programs()
  assert jax.config.jax_compilation_cache_dir == "/elsewhere"


@pytest.fixture
def homeless(monkeypatch):
  """Makes this process a user without HOME and without an entry in the list of users."""

  def no_entry(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")

  monkeypatch.delenv("HOME")
  monkeypatch.setattr(pwd, "getpwuid", no_entry)


def test_without_a_home_only_a_default_is_refused(homeless, monkeypatch, tmp_path):
  assert cache_folder("tokens") == pathlib.Path(os.environ["DSS_CACHE_DIR"]) / "tokens"
  for value in ("", "~/kept", "~nobody-of-this-name/x"):
    monkeypatch.setenv("DSS_CACHE_DIR", value)
    with pytest.raises(UserError, match="no home directory; set DSS_CACHE_DIR to a folder"):
      cache_folder("tokens")


def test_where_programs_cannot_be_kept_a_command_goes_on(
  homeless, tmp_path, monkeypatch, unset_jax_cache, capsys
):
  file = tmp_path / "file"
  file.write_text("")
  for place in ("", str(file)):
    monkeypatch.setenv("DSS_CACHE_DIR", place)
    keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir is None
    message = capsys.readouterr().err
    assert message.startswith("warning: compiled programs are not kept (")
    assert "set DSS_CACHE_DIR" in message
