"""Files on disks and under URLs, atomic writes, and the cache."""
