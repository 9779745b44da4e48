"""Evaluation rows taken out of a data set, the same ones every time."""

import hashlib
import tempfile
from collections.abc import Iterator

from dss_jax.data.records import Row, read_rows, write_rows
from dss_jax.errors import UserError
from dss_jax.jobs.uploads import Upload, Uploads


def split(
  uploads: Uploads, project: str, path: str, name: str, percent: float, user: str
) -> tuple[Upload, Upload]:
  """Stores a data set as two uploads, one to train on and one to evaluate on.

  Which rows are held out follows from the inputs alone. Rows of one input stay together, so that
  none is in both. Only inputs with a label are held out.

  Raises:
    UserError: too few rows have a label.
  """
  digests = sorted(
    {_digest(row["input_text"]) for row in read_rows(path) if row.get("output_text")}
  )
  held_out = set(digests[: max(1, round(len(digests) * percent / 100))])
  # A split needs rows on both sides.
  if len(digests) < 2 or len(held_out) == len(digests):
    raise UserError(
      f"{name}: {len(digests)} inputs have a label, too few to hold {percent:g} % of them out;"
      " give evaluation data of your own, or none"
    )

  def rows(is_held_out: bool) -> Iterator[Row]:
    for row in read_rows(path):
      if (_digest(row["input_text"]) in held_out) == is_held_out:
        yield row

  stem = name.removesuffix(".jsonl")
  made: list[Upload] = []
  for is_held_out, part in ((False, "train"), (True, "evaluation")):
    with tempfile.NamedTemporaryFile(prefix="dss_split_") as file:
      write_rows(file.name, rows(is_held_out))
      with open(file.name, "rb") as content:
        made.append(uploads.add(project, f"{stem}.{part}.jsonl", content, user))
  return made[0], made[1]


def _digest(text: str) -> bytes:
  return hashlib.sha256(text.encode()).digest()[:8]
