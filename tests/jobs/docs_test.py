"""docs/jobs.md says what the program does."""

import json
import re

import yaml

from dss_jax.jobs.bodies.schema import PARAMETERS, SYNONYMS, read_parameters
from dss_jax.jobs.settings import Settings
from tests.conftest import REPOSITORY

ENCRYPTION = (REPOSITORY / "docs" / "encryption.md").read_text(encoding="utf-8")
PAGE = (REPOSITORY / "docs" / "jobs.md").read_text(encoding="utf-8")


def block(language, page=PAGE):
  return re.search(rf"```{language}\n(.*?)```", page, re.DOTALL)[1]


def test_the_table_has_every_parameter_and_its_default():
  rows = re.findall(r"^\| (`[a-z_`, ]+`) \| ([^|]*) \|", PAGE, re.MULTILINE)
  found = {}
  for names, defaults in rows:
    names = re.findall(r"[a-z_]+", names)
    given = defaults.replace("`", "").split(", ")
    found.update(zip(names, given * len(names) if len(given) == 1 else given, strict=False))
  assert found.keys() == {*PARAMETERS, *SYNONYMS}
  said = {"none": None, "true": True, "false": False, "default": None, "the URL's": None}
  values = read_parameters({}, [])
  for name, default in found.items():
    expected = values[SYNONYMS.get(name, name)]
    if default == "required":
      assert expected is None
    elif default in said:
      assert expected is said[default]
    else:
      assert str(expected) == default or float(default) == expected


def test_the_request_is_right():
  values = json.loads(block("json"))["runtimeConfig"]["parameterValues"]
  problems = []
  read_parameters(values, problems)
  assert not problems


def test_the_settings_are_right():
  settings = Settings.model_validate(yaml.safe_load(block("yaml")))
  # Each field is shown, but those of other pages.
  assert Settings.model_fields.keys() - settings.model_fields_set == {
    "registry",
    "publisher_models",
    "uploads",
    "keys",
    "memory_folder",
  }


def test_the_settings_of_keys_are_right():
  settings = Settings.model_validate(yaml.safe_load(block("yaml", ENCRYPTION)))
  assert settings.model_fields_set == {"keys", "memory_folder"}
  files = [key.file for key in settings.keys.values()]
  assert files == ["/etc/dss/key-1", None]
