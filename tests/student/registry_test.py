"""The registry: names, versions, aliases; several writers at once; writers that are killed."""

import json
import os
import pathlib
import pwd
import random
import subprocess
import sys
import time

import pytest

from dss_jax.errors import UserError
from dss_jax.student.registry import Registry, student_folder

# Registers students of two files under one name for ever, or as often as it is told.
WRITER = """
import sys
from dss_jax.student.registry import Registry

registry, who, count = Registry(sys.argv[1]), sys.argv[2], int(sys.argv[3])

def fill(folder):
  for name in ("weights", "config"):
    (folder / name).write_text(who * 100_000)

print("ready", flush=True)
while count:
  registry.register("sign", {"by": who}, fill)
  count -= 1
"""


def write(folder):
  (folder / "weights").write_bytes(b"1234")


@pytest.fixture
def registry(tmp_path):
  return Registry(tmp_path / "registry")


@pytest.fixture
def two(registry):
  """A registry with sign@1 and sign@2."""
  for number in (1, 2):
    registry.register("sign", {"metrics": {"accuracy": number / 2}}, write)
  return registry


def refused(call, *arguments):
  with pytest.raises(UserError) as caught:
    call(*arguments)
  assert "\n" not in str(caught.value)
  return str(caught.value)


def writer(registry, who, count=-1):
  process = subprocess.Popen(
    [sys.executable, "-c", WRITER, str(registry.root), who, str(count)],
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "ready\n"
  return process


def test_versions_have_numbers_and_records(two):
  first, second = two.versions("sign")
  assert (first.reference, second.reference) == ("sign@1", "sign@2")
  assert first.record["metrics"] == {"accuracy": 0.5}
  assert first.record["size_bytes"] == 4
  assert first.record["created"].endswith("+00:00")
  assert (second.folder / "weights").read_bytes() == b"1234"
  assert second.to_json()["version"] == 2
  assert two.names() == ["sign"]


def test_a_name_alone_is_its_default(two):
  """The first version, as in the hosted service, until the alias is moved."""
  assert two.version("sign").number == 1
  assert two.version("sign@default").number == 1
  assert two.version("sign@latest").number == 2
  two.merge_aliases("sign@2", ["default"])
  assert two.version("sign").number == 2
  two.register("sign", {}, write)
  assert two.version("sign").number == 2
  assert two.version("sign@latest").number == 3


def test_an_alias_moves(two):
  assert two.merge_aliases("sign@1", ["prod"]).aliases == ("default", "prod")
  assert two.merge_aliases("sign@latest", ["prod", "blue"]).aliases == ("blue", "latest", "prod")
  assert two.version("sign@1").aliases == ("default",)
  assert two.version("sign@prod").number == 2
  assert two.merge_aliases("sign@prod", ["-prod", "green"]).aliases == ("blue", "green", "latest")


@pytest.mark.parametrize(
  ("alias", "says"),
  [
    ("latest", "always means the newest"),
    ("-default", "cannot be removed"),
    ("-prod", "has no alias 'prod'"),
    ("1", "cannot be an alias"),
    ("Prod", "cannot be an alias"),
    ("a b", "cannot be an alias"),
    ("../x", "cannot be an alias"),
    ("", "cannot be an alias"),
  ],
)
def test_other_aliases_are_refused(two, alias, says):
  two.merge_aliases("sign@2", ["prod"])
  assert says in refused(two.merge_aliases, "sign@1", ["fine", alias])
  # All or none.
  assert two.version("sign@1").aliases == ("default",)


def test_what_is_used_is_not_deleted(two):
  assert "the alias default means it" in refused(two.delete, "sign@1")
  two.merge_aliases("sign@2", ["prod"])
  two.register("sign", {}, write)
  assert "`dss models alias sign@VERSION prod`" in refused(two.delete, "sign@2")
  two.use("hotline", "sign@3")
  two.use("hotline", "sign@3")
  assert "the endpoint hotline uses it" in refused(two.delete, "sign@3")
  assert "the endpoint hotline uses it" in refused(two.delete, "sign@latest")
  assert len(two.versions("sign")) == 3
  two.release("hotline", "sign@3")
  assert two.delete("sign@3") == ["sign@3"]
  assert [version.number for version in two.versions("sign")] == [1, 2]


def test_a_number_is_not_given_twice(two):
  two.delete("sign@2")
  assert two.register("sign", {}, write).number == 3
  assert two.version("sign@latest").number == 3


def test_a_model_is_deleted_whole(two):
  two.delete("sign@2")
  assert "`dss models delete sign`" in refused(two.delete, "sign@1")
  two.merge_aliases("sign@1", ["prod"])
  assert "the alias prod" in refused(two.delete, "sign")
  two.merge_aliases("sign@1", ["-prod"])
  assert two.delete("sign") == ["sign@1"]
  assert two.names() == []
  assert os.listdir(two.root) == [".lock"]
  assert two.register("sign", {}, write).number == 1


@pytest.mark.parametrize(
  "name", ["", ".", "..", "../x", "a/b", "a@1", "-a", ".a", "a b", "a\n", "a\0", "ä", "x" * 129]
)
def test_names_that_are_refused(registry, name):
  assert "cannot be a model's name" in refused(registry.register, name, {}, write)
  assert "cannot be a model's name" in refused(registry.prepare, name)
  assert not registry.root.exists()


def test_names_do_not_differ_by_case_alone(two):
  assert "has sign" in refused(two.register, "Sign", {}, write)
  assert "has sign" in refused(two.prepare, "SIGN")
  assert two.names() == ["sign"]
  assert "did you mean sign?" in refused(two.version, "Sign")


def test_what_there_is_not(two):
  two.register("other", {}, write)
  assert "did you mean sign?" in refused(two.version, "sigh")
  assert "it has other, sign" in refused(two.version, "xyz")
  assert "its versions are 1, 2, its aliases default, latest" in refused(two.version, "sign@3")
  assert "has no version 'prod'" in refused(two.delete, "sign@prod")
  assert "is not the name of a model" in refused(two.version, "../sign")
  assert "it is empty" in refused(Registry(two.root / "none").version, "sign")
  for call in (two.merge_aliases, two.delete):
    assert "no model in the registry" in refused(
      call, "nothing@1", *([["a1"]] * (call != two.delete))
    )


def test_a_folder_wins_over_a_name(two, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert student_folder("sign", two.root) == two.root / "sign" / "1"
  assert student_folder("sign@2", two.root) == two.root / "sign" / "2"
  (tmp_path / "sign").mkdir()
  assert student_folder("sign", two.root) == pathlib.Path("sign")
  # Never a name.
  for path in ("runs/none", "./sign", "../sign", "gs://bucket/sign"):
    assert student_folder(path, two.root) == pathlib.Path(path)


def test_a_failed_registration_leaves_nothing(two):
  def fail(folder):
    write(folder)
    raise ValueError("stop")

  with pytest.raises(ValueError, match="stop"):
    two.register("sign", {}, fail)
  assert len(two.versions("sign")) == 2
  assert sorted(os.listdir(two.root / "sign")) == ["1", "2", "index.json"]


def test_damage_is_named(two):
  (two.root / "sign" / "2" / "version.json").write_text("{")
  assert "version.json: cannot be read as JSON" in refused(two.versions, "sign")
  (two.root / "sign" / "index.json").write_text("[]")
  assert "index.json: is not a JSON object" in refused(two.version, "sign")


def test_writers_at_once(registry):
  """No version is lost, and no number is given twice."""
  writers = [writer(registry, who, 15) for who in "abc"]
  aliases = registry.register("sign", {"by": "d"}, write)
  for number in range(20):
    registry.merge_aliases(aliases.reference, [f"alias-{number}"])
  assert [process.communicate(timeout=120)[0] for process in writers] == ["", "", ""]
  assert [process.returncode for process in writers] == [0, 0, 0]
  versions = registry.versions("sign")
  assert [version.number for version in versions] == list(range(1, 47))
  by = [version.record["by"] for version in versions]
  assert {who: by.count(who) for who in "abc"} == {"a": 15, "b": 15, "c": 15}
  assert len(registry.version(aliases.reference).aliases) >= 20


def test_killed_writers(registry):
  """At whatever moment: every version is whole, and the next writer goes on."""
  dice = random.Random(0)
  last = 0
  for _ in range(20):
    process = writer(registry, "a")
    time.sleep(dice.uniform(0, 0.05))
    process.kill()
    process.communicate()
    versions = registry.versions("sign") if registry.names() else []
    for version in versions:
      assert version.record["by"] == "a"
      assert {path.name for path in version.folder.iterdir()} == {
        "weights",
        "config",
        "version.json",
      }
      assert (version.folder / "config").stat().st_size == 100_000
    assert len(versions) >= last
    last = len(versions)
  assert last
  newest = registry.register("sign", {"by": "b"}, write)
  assert registry.version("sign@latest") == newest
  # What the killed ones left is removed by the next writer.
  assert not list((registry.root / "sign").glob(".*.part"))
  assert json.loads((registry.root / "sign" / "index.json").read_text())["last_version"] >= last


def test_where_it_lies(monkeypatch, tmp_path):
  monkeypatch.setenv("DSS_REGISTRY_DIR", str(tmp_path / "own"))
  assert Registry().root == tmp_path / "own"
  assert Registry(tmp_path / "given").root == tmp_path / "given"
  monkeypatch.delenv("DSS_REGISTRY_DIR")
  monkeypatch.delenv("XDG_DATA_HOME", raising=False)
  assert Registry().root == pathlib.Path.home() / ".local" / "share" / "dss_jax" / "models"
  monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
  assert Registry().root == tmp_path / "data" / "dss_jax" / "models"
  assert "is a URL" in refused(Registry, "gs://bucket/models")


def test_without_a_home_directory(monkeypatch):
  for name in ("DSS_REGISTRY_DIR", "XDG_DATA_HOME", "HOME"):
    monkeypatch.delenv(name, raising=False)

  def no_entry(_):
    raise KeyError

  monkeypatch.setattr(pwd, "getpwuid", no_entry)
  assert "no home directory; set DSS_REGISTRY_DIR" in refused(Registry)


def test_a_registry_that_cannot_be_written(tmp_path):
  (tmp_path / "file").write_text("")
  assert "cannot be written" in refused(Registry(tmp_path / "file" / "x").prepare, "sign")
  assert "cannot be" in refused(Registry(tmp_path / "file").names)


def test_what_is_said_of_a_version_can_change(two):
  two.describe("sign@1", {"description": "the first", "labels": {"team": "a"}})
  two.describe("sign@default", {"labels": None, "display_name": "Signs"})
  assert two.version("sign@1").details == {"description": "the first", "display_name": "Signs"}
  assert two.version("sign@1").to_json()["details"]["display_name"] == "Signs"
  assert two.version("sign@2").details == {}
  assert "details" not in two.version("sign@2").to_json()
  assert "has no version" in refused(two.describe, "sign@3", {})
