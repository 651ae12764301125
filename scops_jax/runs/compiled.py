"""Compiled programs, kept from one start to the next (config.compilation_cache_dir)."""

import hashlib
import pathlib
import sys

import jax

from scops_jax.storage.paths import as_path, is_remote

_SHORTEST = 0.5  # seconds of compilation that are worth a file
_LARGEST = 8 << 30  # bytes of all programs


def keep_programs(folder: str) -> None:
  """Lets this process keep compiled programs in `folder` and take them from there; "" lets it keep none.

  A folder that JAX already has, by JAX_COMPILATION_CACHE_DIR or an earlier call, stays. Programs lie in a
  subfolder for the CPU's instruction set: another CPU may lack some of their instructions. Of a local folder
  the programs that were not used for longest are deleted until 8 GiB are left.
  """
  if not folder or jax.config.values["jax_compilation_cache_dir"]:
    return
  path = as_path(folder)
  if not is_remote(path):
    path = path.expanduser()
    try:
      path.mkdir(parents=True, exist_ok=True)
      _prune(path)
    except OSError as error:
      print(
        f"compilation_cache_dir={folder} can't be written ({error.strerror}): nothing is kept",
        file=sys.stderr,
      )
      return
  jax.config.update("jax_compilation_cache_dir", str(path / _instruction_set()))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", _SHORTEST)


def _instruction_set() -> str:
  """Returns a name for what this machine's CPU can do; "cpu" where the system does not tell."""
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    return "cpu"
  features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
  return f"cpu-{hashlib.sha256(features.encode()).hexdigest()[:8]}"


def _prune(folder: pathlib.Path) -> None:
  files = [(file.stat(), file) for file in folder.glob("*/*") if file.is_file()]
  excess = sum(status.st_size for status, _ in files) - _LARGEST
  for status, file in sorted(files, key=lambda entry: entry[0].st_atime):
    if excess <= 0:
      return
    file.unlink(missing_ok=True)  # another process may have done it
    excess -= status.st_size
