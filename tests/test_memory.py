"""Freed memory goes back to the system, or is kept for the next step."""

import platform
import subprocess
import sys

import pytest

# Below the size for which malloc maps memory of its own; every other one holds the heap's top.
SMALL = """
import pathlib
import numpy as np
from scops_jax.kernels.memory import keep_freed_memory
def resident_megabytes():
  return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096 // 10**6
arrays = [np.ones(10_000) for _ in range(4_000)]
held = arrays[::50]
del arrays
before = resident_megabytes()
keep_freed_memory()
print(before - resident_megabytes())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's malloc")
def test_small_arrays_freed_before_are_given_back():
  command = [sys.executable, "-c", SMALL]
  assert int(subprocess.run(command, capture_output=True, check=True).stdout) >= 100


# A large array that is freed teaches malloc to keep such; small ones hold what comes after them.
KEPT = """
import pathlib
import numpy as np
from scops_jax.kernels.memory import map_large_blocks
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


LATER = """
import pathlib
import numpy as np
from scops_jax.kernels.memory import keep_freed_memory
def resident_megabytes():
  return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096 // 10**6
before = resident_megabytes()
keep_freed_memory()
array = np.ones(20_000_000)
del array
print(resident_megabytes() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's malloc")
def test_a_large_array_freed_later_is_kept():
  command = [sys.executable, "-c", LATER]
  assert int(subprocess.run(command, capture_output=True, check=True).stdout) >= 150
