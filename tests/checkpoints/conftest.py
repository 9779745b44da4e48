"""Compiles quickly: every test here compiles something."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def quickly(compile_quickly):
  """Every test here compiles something."""
