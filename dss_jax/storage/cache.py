"""Compiled programs are kept on disk, so that a run compiles once and its resumption not at all."""

import os
import pathlib
import platform

import jax


def keep_compiled_programs() -> None:
  """Points JAX at a folder of DSS_CACHE_DIR (else ~/.cache/dss_jax), unless JAX was told one.

  The folder carries the machine's name, since a program compiled for one processor may not run
  on another that shares the home directory.
  """
  if jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
    return
  default = pathlib.Path.home() / ".cache" / "dss_jax"
  cache = pathlib.Path(os.environ.get("DSS_CACHE_DIR") or default)
  jax.config.update("jax_compilation_cache_dir", str(cache / "xla" / platform.node()))
  # By default those that compile within a second are left out: half of a small run's.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
