"""Fixtures of all tests."""

import jax
import pytest


@pytest.fixture
def x64():
  """Lets JAX compute in float64 for the test."""
  with jax.enable_x64(True):
    yield
