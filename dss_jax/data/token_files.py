"""The files of a token store: names, checksums, version."""

import hashlib
import json
import pathlib
import zlib
from typing import Any

FORMAT_VERSION = 1
FEATURES = ("inputs", "targets")
META = "meta.json"
ROWS = "rows.int64"

_BLOCK_BYTES = 2**20


def tokens_file(kind: str, feature: str) -> str:
  """Returns the name of the file with all tokens of a feature, concatenated, int32."""
  return f"{kind}_{feature}.int32"


def starts_file(kind: str, feature: str) -> str:
  """Returns the name of the file with each example's start in tokens_file, and the end, int64."""
  return f"{kind}_{feature}_starts.int64"


def json_digest(values: Any) -> str:
  """Returns the SHA-256 of values as JSON with sorted keys."""
  return hashlib.sha256(json.dumps(values, sort_keys=True).encode("utf-8")).hexdigest()


def file_sum(path: pathlib.Path) -> list[int]:
  """Returns [size in bytes, CRC-32] of a file, read as a stream."""
  size = checksum = 0
  with path.open("rb") as file:
    while block := file.read(_BLOCK_BYTES):
      checksum = zlib.crc32(block, checksum)
      size += len(block)
  return [size, checksum]
