"""Weights of examples by the teacher's agreement with itself: LossConfig.agreement_weights."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from dss_jax.data.records import Row
from dss_jax.data.sources import RowSource
from dss_jax.data.token_files import json_digest
from dss_jax.data.token_store import TokenStore
from dss_jax.errors import UserError


def agreement_of(row: Row) -> float | None:
  """Returns the share of the teacher's answers to a row that have the label of most of them.

  It is in the row's provenance, which `dss annotate` writes. None for a row without, and for one
  whose answers have no label.
  """
  provenance = row.get("provenance")
  if not isinstance(provenance, dict) or not isinstance(provenance.get("label"), str):
    return None
  share: Any = provenance.get("agreement")
  is_number = type(share) in (int, float) and math.isfinite(share)
  return float(share) if is_number and 0 < share <= 1 else None


def weighted(store: TokenStore, source: RowSource) -> tuple[TokenStore, dict[str, Any]]:
  """Returns the source's token store with a weight for each example, and figures of the weights.

  A row without an agreement weighs 1. The weights become part of the store's fingerprint, so that
  a run is not resumed with others.

  Raises UserError if no row has an agreement.
  """
  shares = _shares(source.rows)
  known = shares[~np.isnan(shares)]
  if not len(known):
    raise UserError(
      f"--agreement-weights: no row of {source.report.get('file', source.name)} has the agreement "
      "of a teacher's answers; annotate the rows with --samples 3 --temperature 0.7, or leave it "
      "out"
    )
  weights = np.where(np.isnan(shares), 1.0, shares).astype(np.float32)[store.row_numbers]
  fingerprint = json_digest({"tokens": store.fingerprint, "weights": weights.tolist()})
  figures = {"examples": len(known), "mean": float(known.mean()), "least": float(known.min())}
  return dataclasses.replace(store, fingerprint=fingerprint, example_weights=weights), figures


def _shares(rows: Iterable[Row]) -> np.ndarray:
  """Returns the agreement of each row, NaN where there is none."""
  shares = [agreement_of(row) for row in rows]
  return np.array([math.nan if share is None else share for share in shares])
