"""Candidate meshes, the rows of a planned batch, vocabulary sizes and out-of-memory messages."""

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


def test_candidates_keep_the_other_fields_of_the_mesh(v3_64):
  mesh = dataclasses.replace(v3_64.mesh, weights_over_data=True)
  candidates = candidate_meshes(dataclasses.replace(v3_64, mesh=mesh), 64)
  assert mesh in candidates
  assert all(candidate.weights_over_data for candidate in candidates)


@pytest.mark.parametrize(
  ("batch_size", "microbatches", "rows"),
  [(24, 1, 24), (8, 1, 8), (24, 3, 24), (24, 2, 32), (16, 3, 24)],
)
def test_rows_are_examples_rounded_up_to_a_multiple(v3_64, batch_size, microbatches, rows):
  config = dataclasses.replace(v3_64, batch_size=batch_size, accumulation_steps=microbatches)
  assert packed_shape(config, 1024, 256) == RowShape(rows, 1024, 256)


@pytest.mark.parametrize(
  ("name", "rows"),
  [(None, 32_128), (T5_VOCABULARY, 32_128), (MT5_VOCABULARY, 250_112), ("bytes", 384)],
)
def test_published_vocabularies_are_not_downloaded(v3_64, name, rows):
  config = dataclasses.replace(v3_64, data=DataConfig(vocabulary=name))
  assert vocabulary_rows(config) == rows
  model = dataclasses.replace(config.model, vocab_size=1000)
  assert vocabulary_rows(dataclasses.replace(config, model=model)) == 1000


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
def test_needed_memory_of_a_program_that_is_too_large(message, gib):
  assert is_out_of_memory(message)
  assert needed_gib(message) == gib


def test_other_errors_are_not_out_of_memory():
  assert not is_out_of_memory("INTERNAL: Mosaic failed to compile TPU kernel")
