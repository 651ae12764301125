"""Memory that is freed goes back to the system."""

import pathlib
import subprocess
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


# A large array that is freed teaches malloc to keep such; small ones hold what comes after them.
KEPT = """
import pathlib
import numpy as np
from scops_jax.memory import map_large_blocks
{call}
np.ones(3_000_000)
held = []
arrays = [(np.ones(250_000), held.append(np.ones(1_000)))[0] for _ in range(100)]
del arrays
print(int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096 // 10**6)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_large_arrays_go_back_by_themselves():
  def resident_megabytes(call):
    code = KEPT.format(call=call)
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)

  assert resident_megabytes("map_large_blocks()") <= resident_megabytes("") - 100
