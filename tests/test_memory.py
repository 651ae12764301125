"""Memory that is freed goes back to the system, or is kept for the next step."""

import os
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


# 4000² floats, larger than what malloc keeps by itself; one fault a page of 4096 bytes, or of 2 MiB.
TEMPORARIES = """
import resource
import jax
import jax.numpy as jnp
from scops_jax.kernels.memory import compute_in_calling_thread, keep_freed_memory
{first}
program = jax.jit(lambda x: jnp.tanh(x[:, None] * x) @ x[:, None].repeat(3, 1))
x = jnp.linspace(0, 1, 4000)
program(x).block_until_ready()
{then}
for _ in range(8):  # until the heap is large enough
  program(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
  program(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's malloc")
def test_temporaries_of_a_program_are_kept_for_the_next_call():
  def faults(first, then):
    code = TEMPORARIES.format(first=first, then=then)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}
    command = [sys.executable, "-c", code]
    return int(subprocess.run(command, capture_output=True, check=True, env=environment).stdout)

  assert faults("", "") >= 8 * 15_000
  # Now and then small blocks lie in the way.
  assert faults("compute_in_calling_thread()", "keep_freed_memory()") <= 3 * 15_700
