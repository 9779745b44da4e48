"""A second start of a run takes all compiled programs from the cache on disk."""

import collections

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture
def compiled(tmp_path, monkeypatch):
  """Counts compilations and cache hits, with an empty cache and JAX's default settings."""
  settings = {
    "jax_compilation_cache_dir": None,
    "jax_persistent_cache_min_compile_time_secs": 1.0,
  }
  before = {name: getattr(jax.config, name) for name in settings}
  for name, value in settings.items():
    jax.config.update(name, value)
  monkeypatch.setenv("DSS_CACHE_DIR", str(tmp_path / "cache"))
  compilation_cache.reset_cache()
  events = collections.Counter()

  def count(event, **unused):
    events[event.rpartition("/")[2]] += 1

  jax.monitoring.register_event_listener(count)
  yield events
  jax.monitoring.unregister_event_listener(count)
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


def test_a_second_start_compiles_nothing(dss, compiled):
  jax.clear_caches()
  dss.train("first", "--train-steps", "1")
  first = dict(compiled)
  assert first["cache_misses"] >= 4  # the weights, the step, the evaluation, their norm
  assert "cache_hits" not in first
  compiled.clear()
  jax.clear_caches()
  dss.train("second", "--train-steps", "1")
  assert compiled["cache_misses"] == 0
  assert compiled["cache_hits"] == compiled["compile_requests_use_cache"] >= first["cache_misses"]
