"""Memory that is freed goes back to the system."""

import pathlib
import sys

import numpy as np
import pytest

from scops_jax.memory import return_freed_memory


def resident_kilobytes():
  for line in pathlib.Path("/proc/self/status").read_text().splitlines():
    if line.startswith("VmRSS"):
      return int(line.split()[1])
  raise AssertionError("no VmRSS")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_small_arrays_are_given_back():
  # Below the size for which malloc maps memory of its own; every other one holds the heap's top.
  arrays = [np.ones(10_000) for _ in range(4_000)]
  held = arrays[::50]
  del arrays
  before = resident_kilobytes()
  return_freed_memory()
  assert len(held) == 80
  assert resident_kilobytes() <= before - 100_000
