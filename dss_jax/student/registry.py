"""The registry of students on this machine's disk: names, versions and aliases.

`ROOT/NAME/VERSION/` is a student's folder with `version.json`, what is known of it. It appears
whole, by one rename, and never changes. `ROOT/NAME/index.json` has the model's aliases, the
endpoints that use a version, what is said of one, and the last number given. It is replaced as a
whole, under a lock on ROOT. Any number of processes may register, read and delete at the same
time. Imports nothing heavy.
"""

import contextlib
import dataclasses
import datetime
import difflib
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from dss_jax.errors import UserError
from dss_jax.storage.atomic import make_folder, publishing, withdraw, write_text, writing
from dss_jax.storage.files import PathLike, is_url, reason
from dss_jax.storage.locks import locked
from dss_jax.student.sealed_student import check_readable, is_sealed

# The version that a name alone means: the oldest one, until the alias is moved.
DEFAULT = "default"
# The newest version; computed, so it cannot be moved.
LATEST = "latest"

RECORD, _INDEX, _LOCK = "version.json", "index.json", ".lock"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
# The hosted service's pattern: an alias is never a number.
_ALIAS = re.compile(r"[a-z][a-zA-Z0-9-]{0,126}[a-z0-9]")
_REFERENCE = re.compile(rf"(?P<name>{_NAME.pattern})(@(?P<version>[A-Za-z0-9-]+))?")


@dataclasses.dataclass(frozen=True)
class Version:
  """A registered student.

  Attributes:
    folder: the student's folder, as Student.open takes it.
    aliases: its aliases, with DEFAULT and LATEST.
    endpoints: the endpoints that use it.
    record: what was known when it was registered (see student/registration.py).
    details: what was said of it since, such as a description; see Registry.describe.
  """

  name: str
  number: int
  folder: pathlib.Path
  aliases: tuple[str, ...]
  endpoints: tuple[str, ...]
  record: dict[str, Any]
  details: dict[str, Any]

  @property
  def reference(self) -> str:
    return f"{self.name}@{self.number}"

  @property
  def is_sealed(self) -> bool:
    """Whether the student is encrypted."""
    return is_sealed(self.folder)

  def to_json(self) -> dict[str, Any]:
    return {
      "name": self.name,
      "version": self.number,
      "aliases": list(self.aliases),
      "endpoints": list(self.endpoints),
      "folder": str(self.folder),
      **({"details": self.details} if self.details else {}),
      **self.record,
    }


def check_name(name: str) -> None:
  """Raises UserError unless a model may have this name."""
  if not _NAME.fullmatch(name):
    raise UserError(
      f"{name!r}: cannot be a model's name; use up to 128 letters, digits, '-', '_' and '.', and"
      " begin with a letter or a digit"
    )


def student_folder(model: PathLike, root: PathLike | None = None) -> pathlib.Path:
  """Returns the folder of a student that is given as a folder, NAME, NAME@VERSION or NAME@ALIAS.

  Whatever exists under this path wins over a name.

  Raises:
    UserError: it does not exist as a path, could be a name, and the registry has no such model.
    SealedError: the student is encrypted.
  """
  given = os.fspath(model)
  if os.path.exists(given) or not _REFERENCE.fullmatch(given):
    folder = pathlib.Path(given)
  else:
    folder = Registry(root).version(given).folder
  check_readable(folder, given)
  return folder


class Registry:
  """The students under a root folder."""

  def __init__(self, root: PathLike | None = None):
    """Opens the registry; the folder is made when it is first written to.

    Args:
      root: by default DSS_REGISTRY_DIR, else dss_jax/models in the user's data folder.

    Raises UserError if it is a URL, or if there is no home directory to have it.
    """
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    chosen = os.fspath(root or os.environ.get("DSS_REGISTRY_DIR") or f"{data}/dss_jax/models")
    if is_url(chosen):
      raise UserError(
        f"--registry {chosen}: is a URL, but the registry is locked on this machine's disks; give"
        " the name of a local folder"
      )
    try:
      self.root = pathlib.Path(chosen).expanduser().absolute()
    except RuntimeError:
      raise UserError(
        f"{chosen}: the registry of students would be there, but this user has no home directory;"
        " set DSS_REGISTRY_DIR, or give --registry, a folder that you may write to"
      ) from None

  def names(self) -> list[str]:
    """Returns the names of the models that have a version, sorted."""
    return [name for name in self._folders() if self._numbers(name)]

  def versions(self, name: str) -> list[Version]:
    """Returns a model's versions, oldest first; raises UserError if there is no such model."""
    return [version for number in self._existing(name) if (version := self._read(name, number))]

  def version(self, reference: str) -> Version:
    """Returns the version that NAME, NAME@VERSION or NAME@ALIAS means; NAME is NAME@default.

    Raises UserError, with similar names, if there is none.
    """
    name, wanted = _split(reference)
    numbers = self._existing(name)
    if wanted.isdecimal():
      number = int(wanted) if int(wanted) in numbers else None
    else:
      number = self._aliases(name, numbers).get(wanted)
    version = None if number is None else self._read(name, number)
    if version is None:
      aliases = self._aliases(name, numbers)
      raise UserError(
        f"{reference}: {name} has no version {wanted!r}; its versions are "
        f"{', '.join(map(str, numbers))}, its aliases {', '.join(sorted(aliases))}"
      )
    return version

  def prepare(self, name: str) -> None:
    """Raises UserError unless a model of this name can be registered here."""
    check_name(name)
    with self._locked():
      self._check_case(name)

  def register(
    self, name: str, record: Mapping[str, Any], fill: Callable[[pathlib.Path], None]
  ) -> Version:
    """Adds the next version of a model, its first one if the model is new.

    Its number is taken first, and never given again while the model exists. A process that is
    killed leaves no version, but a gap in the numbers.

    Args:
      record: JSON values; `created` and `size_bytes` are added.
      fill: writes the student into a new folder.

    Raises:
      UserError: the name is not allowed, or the registry cannot be written.
    """
    check_name(name)
    with self._changing(name) as index:
      self._check_case(name)
      number = max(index["last_version"], *self._numbers(name), 0) + 1
      index["last_version"] = number
    folder = self.root / name / str(number)
    with writing(folder), publishing(folder) as part:
      fill(part)
      size = sum(path.stat().st_size for path in part.rglob("*") if path.is_file())
      created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
      complete = {"created": created, "size_bytes": size, **record}
      write_text(part / RECORD, json.dumps(complete, indent=2, ensure_ascii=False) + "\n")
    return self.version(f"{name}@{number}")

  def merge_aliases(self, reference: str, aliases: Iterable[str]) -> Version:
    """Gives a version aliases, in one step for all; each is taken from the version that had it.

    "-ALIAS" removes an alias from the version, as in the hosted service.

    Raises:
      UserError: an alias is not allowed, or is to be removed and another version has it.
    """
    wanted = list(aliases)
    for alias in wanted:
      _check_alias(alias.removeprefix("-"), is_removed=alias.startswith("-"))
    name, _ = _split(reference)
    self._existing(name)
    with self._changing(name) as index:
      number = self.version(reference).number
      for alias in wanted:
        if not alias.startswith("-"):
          index["aliases"][alias] = number
        elif index["aliases"].pop(alias[1:], None) != number:
          raise UserError(
            f"{name}@{number}: has no alias {alias[1:]!r} to remove; see dss models show {name}"
          )
    return self.version(f"{name}@{number}")

  def describe(self, reference: str, details: Mapping[str, Any]) -> Version:
    """Changes what is said of a version: JSON values by name; None removes one."""
    name, _ = _split(reference)
    self._existing(name)
    with self._changing(name) as index:
      number = self.version(reference).number
      said = {**index["details"].get(str(number), {}), **details}
      index["details"][str(number)] = {key: said[key] for key in said if said[key] is not None}
    return self.version(f"{name}@{number}")

  def use(self, endpoint: str, reference: str) -> Version:
    """Records that an endpoint uses a version, which cannot be deleted until it is released."""
    name, _ = _split(reference)
    self._existing(name)
    with self._changing(name) as index:
      number = self.version(reference).number
      users = index["endpoints"].setdefault(str(number), [])
      if endpoint not in users:
        users.append(endpoint)
    return self.version(f"{name}@{number}")

  def release(self, endpoint: str, reference: str) -> None:
    """Records that an endpoint no longer uses a version."""
    name, _ = _split(reference)
    self._existing(name)
    with self._changing(name) as index:
      users = index["endpoints"].get(str(self.version(reference).number), [])
      if endpoint in users:
        users.remove(endpoint)

  def delete(self, reference: str) -> list[str]:
    """Deletes NAME@VERSION, or with NAME alone the model with all its versions.

    Returns what was deleted, each as NAME@VERSION.

    Raises:
      UserError: there is none, an alias or an endpoint uses it, or it is the only version, which
        goes with its model.
    """
    name, _ = _split(reference)
    self._existing(name)
    with self._locked():
      if "@" not in reference:
        doomed = self.versions(name)
        for version in doomed:
          _check_unused(version, {DEFAULT, LATEST})
        withdraw(self.root / name)
      else:
        version = self.version(reference)
        if len(self.versions(name)) == 1:
          raise UserError(
            f"{version.reference}: is the only version of {name}; delete the model with"
            f" `dss models delete {name}`"
          )
        _check_unused(version, {LATEST})
        doomed = [version]
        withdraw(version.folder)
    return [version.reference for version in doomed]

  def _folders(self) -> list[str]:
    try:
      entries = sorted(entry.name for entry in self.root.iterdir() if entry.is_dir())
    except FileNotFoundError:
      return []
    except OSError as error:
      raise UserError(
        f"{self.root}: the registry cannot be read ({reason(error)}); give another --registry"
      ) from None
    return [name for name in entries if _NAME.fullmatch(name)]

  def _numbers(self, name: str) -> list[int]:
    """Returns the numbers of a model's versions, sorted; a numbered folder is always whole."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
      names = (entry.name for entry in (self.root / name).iterdir())
      return sorted(int(each) for each in names if re.fullmatch("[1-9][0-9]*", each))
    return []

  def _existing(self, name: str) -> list[int]:
    """Returns the numbers of a model's versions; raises UserError if there is no such model."""
    known = self.names()
    if name in known:
      return self._numbers(name)
    by_case = {other.casefold(): other for other in known}
    near = difflib.get_close_matches(name.casefold(), by_case, n=5)
    if near:
      mend = f"did you mean {' or '.join(by_case[other] for other in near)}?"
    elif known:
      mend = f"it has {', '.join(known[:20])}{', ...' if len(known) > 20 else ''}"
    else:
      mend = "it is empty, so give the --model-dir of a training run"
    raise UserError(f"{name}: is no folder here and no model in the registry {self.root}; {mend}")

  def _aliases(self, name: str, numbers: list[int]) -> dict[str, int]:
    """Returns the version of each alias, of DEFAULT and LATEST, too."""
    if not numbers:
      return {}
    return {DEFAULT: numbers[0], **self._index(name)["aliases"], LATEST: numbers[-1]}

  def _read(self, name: str, number: int) -> Version | None:
    """Reads a version; None if another process has just deleted it."""
    folder = self.root / name / str(number)
    record = _read_json(folder / RECORD)
    if record is None:
      return None
    aliases = self._aliases(name, self._numbers(name))
    index = self._index(name)
    return Version(
      name=name,
      number=number,
      folder=folder,
      aliases=tuple(sorted(alias for alias, version in aliases.items() if version == number)),
      endpoints=tuple(index["endpoints"].get(str(number), ())),
      record=record,
      details=index["details"].get(str(number), {}),
    )

  def _index(self, name: str) -> dict[str, Any]:
    index = _read_json(self.root / name / _INDEX)
    empty: dict[str, Any] = {"last_version": 0, "aliases": {}, "endpoints": {}, "details": {}}
    return {**empty, **(index or {})}

  @contextlib.contextmanager
  def _changing(self, name: str) -> Iterator[dict[str, Any]]:
    """Gives the model's index to change, under the lock; it is written if the body succeeds."""
    with self._locked():
      index = self._index(name)
      yield index
      make_folder(self.root / name)
      write_text(self.root / name / _INDEX, json.dumps(index, indent=2) + "\n")

  @contextlib.contextmanager
  def _locked(self) -> Iterator[None]:
    """Holds the registry's lock, for the moment that an index takes to be replaced."""
    make_folder(self.root)
    with locked(self.root / _LOCK):
      yield

  def _check_case(self, name: str) -> None:
    for other in self._folders():
      if other != name and other.casefold() == name.casefold():
        raise UserError(
          f"{name}: the registry {self.root} has {other}, and names must differ by more than case;"
          " choose one of the two spellings, or another name"
        )


def _split(reference: str) -> tuple[str, str]:
  """Returns the name and the version or alias of NAME, NAME@VERSION or NAME@ALIAS."""
  match = _REFERENCE.fullmatch(reference)
  if not match:
    raise UserError(
      f"{reference!r}: is not the name of a model; write NAME, NAME@VERSION or NAME@ALIAS, as"
      " `dss models list` shows them"
    )
  return match["name"], match["version"] or DEFAULT


def _check_alias(alias: str, *, is_removed: bool) -> None:
  if not _ALIAS.fullmatch(alias):
    raise UserError(
      f"{alias!r}: cannot be an alias; use 2 to 128 letters, digits and '-', begin with a small"
      " letter, and end with a small letter or a digit"
    )
  if alias == LATEST:
    raise UserError(f"{LATEST}: always means the newest version, so it cannot be set; use another")
  if alias == DEFAULT and is_removed:
    raise UserError(f"{DEFAULT}: cannot be removed; give it to another version of the model")


def _check_unused(version: Version, free: set[str]) -> None:
  aliases = [alias for alias in version.aliases if alias not in free]
  if version.endpoints:
    raise UserError(
      f"{version.reference}: the endpoint {version.endpoints[0]} uses it; undeploy it there first"
    )
  if aliases:
    raise UserError(
      f"{version.reference}: the alias {aliases[0]} means it; give the alias to another version"
      f" first, with `dss models alias {version.name}@VERSION {aliases[0]}`"
    )


def _read_json(path: pathlib.Path) -> dict[str, Any] | None:
  """Reads a file of the registry; None where there is none."""
  mend = "restore it from a copy, or delete the folder that it is in"
  try:
    values = json.loads(path.read_text(encoding="utf-8"))
  except (FileNotFoundError, NotADirectoryError):
    return None
  except (OSError, ValueError) as error:
    raise UserError(f"{path}: cannot be read as JSON ({reason(error)}); {mend}") from None
  if not isinstance(values, dict):
    raise UserError(f"{path}: is not a JSON object; {mend}")
  return values
