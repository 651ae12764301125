"""Fixtures of all tests."""

import os

# Most of the suite's time is XLA compiling programs that run once: it need not optimise them much. Set before
# JAX starts, and inherited by the processes that tests start.
os.environ.setdefault(
  "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
# On the CPU unless the user says otherwise: where libtpu is installed without a TPU, each start would complain.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest


@pytest.fixture
def x64():
  """Lets JAX compute in float64 for the test."""
  with jax.enable_x64(True):
    yield
