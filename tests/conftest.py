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
# On the CPU unless the user says otherwise: with libtpu but no TPU, every start complains.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Runs keep compiled programs in the user's home (config.compilation_cache_dir); tests keep theirs here.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="scops_jax_tests_")
  atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture(scope="module")
def compile_once(tmp_path_factory):
  """Keeps compiled programs for the tests of a module, whose runs share them."""
  options = {
    "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
    "jax_persistent_cache_min_compile_time_secs": 0.1,
  }
  before = {name: getattr(jax.config, name) for name in options}
  for name, value in options.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()  # which else keeps the folder that it has, or that it has none
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


@pytest.fixture
def x64():
  """Lets JAX compute in float64 for the test."""
  with jax.enable_x64(True):
    yield
