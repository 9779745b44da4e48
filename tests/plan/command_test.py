"""Meshes to compare, the rows of a planned batch, and the sizes of published vocabularies."""

import dataclasses

import pytest

from dss_jax.config.schema import DataConfig
from dss_jax.data.packing import RowShape
from dss_jax.data.vocabularies import MT5_VOCABULARY, T5_VOCABULARY
from dss_jax.plan.command import candidate_meshes, packed_shape, vocabulary_rows
from dss_jax.plan.compiled import is_out_of_memory, needed_gib


def axes(meshes):
  return [(mesh.data, mesh.model) for mesh in meshes]


def test_candidates_use_every_device_and_divide_batch_and_width(v3_64):
  assert axes(candidate_meshes(v3_64, 64)) == [(8, 8), (4, 16), (2, 32), (1, 64)]
  of_32 = dataclasses.replace(v3_64, batch_size=32)
  assert axes(candidate_meshes(of_32, 64))[0] == (32, 2)
  narrow = dataclasses.replace(v3_64, model=dataclasses.replace(v3_64.model, mlp_dim=48))
  assert axes(candidate_meshes(narrow, 64)) == [(8, 8), (4, 16)]


def test_candidates_keep_what_else_the_mesh_says(v3_64):
  mesh = dataclasses.replace(v3_64.mesh, weights_over_data=True)
  candidates = candidate_meshes(dataclasses.replace(v3_64, mesh=mesh), 64)
  assert mesh in candidates
  assert all(one.weights_over_data for one in candidates)


@pytest.mark.parametrize(
  ("batch_size", "parts", "rows"), [(24, 1, 24), (8, 1, 8), (24, 3, 24), (24, 2, 32), (16, 3, 24)]
)
def test_a_row_for_each_example_and_a_multiple_of_the_devices(v3_64, batch_size, parts, rows):
  config = dataclasses.replace(v3_64, batch_size=batch_size, accumulation_steps=parts)
  assert packed_shape(config, 1024, 256) == RowShape(rows, 1024, 256)


@pytest.mark.parametrize(
  ("name", "rows"),
  [(None, 32_128), (T5_VOCABULARY, 32_128), (MT5_VOCABULARY, 250_112), ("bytes", 384)],
)
def test_published_vocabularies_are_not_fetched(v3_64, name, rows):
  config = dataclasses.replace(v3_64, data=DataConfig(vocabulary=name))
  assert vocabulary_rows(config) == rows
  settled = dataclasses.replace(config.model, vocab_size=1000)
  assert vocabulary_rows(dataclasses.replace(config, model=settled)) == 1000


@pytest.mark.parametrize(
  ("message", "gib"),
  [
    (
      "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.51G of 15.48G hbm.",
      17.51,
    ),
    ("CompileTimeHbmOom: Ran out of memory. Used 1.5T of 15.48G hbm", 1536.0),
    ("RESOURCE_EXHAUSTED: something else", None),
  ],
)
def test_what_a_program_too_large_would_take(message, gib):
  assert is_out_of_memory(message)
  assert needed_gib(message) == gib


def test_other_refusals_are_not_for_size():
  assert not is_out_of_memory("INTERNAL: Mosaic failed to compile TPU kernel")
