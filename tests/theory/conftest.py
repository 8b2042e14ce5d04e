"""Precision in which theorems are checked."""

import jax
import pytest


@pytest.fixture
def float64():
  """Arrays of 64 bits while a test runs."""
  with jax.enable_x64(True):
    yield
