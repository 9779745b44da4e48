"""Files, atomic writes and caches."""
