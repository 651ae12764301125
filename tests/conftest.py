"""Fixtures of all tests."""

import atexit
import os
import shutil
import tempfile

# Most of the suite's time is XLA compiling programs that run once: it need not optimise them much. Set before
# JAX starts, and inherited by the processes that tests start.
os.environ.setdefault(
  "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

# Runs keep compiled programs in the user's home (config.compilation_cache_dir); tests keep theirs here.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="scops_jax_tests_")
  atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax
import pytest


@pytest.fixture
def x64():
  """Lets JAX compute in float64 for the test."""
  with jax.enable_x64(True):
    yield
