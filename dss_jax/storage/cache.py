"""The cache on this machine's disk: token stores, fetched vocabularies, compiled programs."""

import os
import pathlib
import platform

from dss_jax.errors import UserError
from dss_jax.progress import say
from dss_jax.storage.files import PathLike, is_url, reason


def cache_folder(name: str, root: PathLike | None = None) -> pathlib.Path:
  """Returns the path of the cache's folder `name`, which may not exist yet.

  Args:
    root: the cache; by default DSS_CACHE_DIR, else ~/.cache/dss_jax.

  Raises:
    UserError: the cache is a URL, but its files are memory-mapped and locked; or there is no home
      directory, as in a container whose user has none.
  """
  chosen = os.fspath(root or os.environ.get("DSS_CACHE_DIR") or "~/.cache/dss_jax")
  if is_url(chosen):
    raise UserError(
      f"DSS_CACHE_DIR={chosen}: is a URL, but the cache is memory-mapped from this machine's"
      " disks; give the name of a local folder"
    )
  try:
    return pathlib.Path(chosen).expanduser() / name
  except RuntimeError:
    raise UserError(
      f"{chosen}: the cache would be there, but this user has no home directory; set DSS_CACHE_DIR"
      " to a folder that you may write to"
    ) from None


def private_environment(folder: pathlib.Path) -> dict[str, str]:
  """Returns the variables by which a program keeps caches and temporary files in a folder."""
  return {
    "DSS_CACHE_DIR": str(folder / "cache"),
    "JAX_COMPILATION_CACHE_DIR": str(folder / "cache" / "jax"),
    "TMPDIR": str(folder / "tmp"),
  }


def keep_compiled_programs() -> None:
  """Has JAX keep compiled programs in the cache, unless JAX's own cache folder is set already.

  A run then compiles once, and its resumption not at all. The folder has the machine's name,
  since a program compiled for one processor may not run on another that shares the home
  directory. Where there is no place for it, programs are compiled anew, with a warning.
  """
  # Not at the top: vocabularies need the cache, too, and `dss validate` starts without JAX.
  import jax

  # JAX 0.10 does not declare the attribute, later versions do.
  if jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined,unused-ignore]
    return
  try:
    folder = cache_folder("xla") / platform.node()
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
      raise PermissionError(f"{folder} is read-only")
  except (UserError, OSError) as error:
    say(
      f"warning: compiled programs are not kept ({reason(error)}); set DSS_CACHE_DIR to a folder"
      " that you may write to"
    )
    return
  jax.config.update("jax_compilation_cache_dir", str(folder))
  # By default JAX keeps no program that compiles within a second: half of a small run's.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
