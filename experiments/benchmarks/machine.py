"""Describes the machine and the software that a measurement ran on."""

import datetime
import os
import pathlib
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "grain", "torch", "numpy", "pillow")
_VARIABLES = ("GLIBC_TUNABLES", "XLA_FLAGS", "OMP_NUM_THREADS")


def describe(environment: Mapping[str, str]) -> list[str]:
  """Returns Markdown lines: date and commit, processor and load, versions, environment variables."""
  commit = subprocess.run(
    ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
  ).stdout.strip()
  memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
  loads = ", ".join(f"{load:.1f}" for load in os.getloadavg())
  versions = [f"Python {platform.python_version()}", *_versions()]
  settings = [f"{name}={environment[name]}" for name in _VARIABLES if name in environment]
  lines = [
    f"- {datetime.date.today().isoformat()}, commit {commit or 'unknown'}",
    f"- {_processor()}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}; load {loads}",
    f"- {', '.join(versions)}",
  ]
  return [*lines, f"- {', '.join(settings)}"] if settings else lines


def _processor() -> str:
  try:
    text = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
  except OSError:
    return platform.processor()
  names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
  return names[0] if names else platform.processor()


def _versions() -> list[str]:
  found = []
  for package in _PACKAGES:
    try:
      found.append(f"{package} {metadata.version(package)}")
    except metadata.PackageNotFoundError:
      continue
  return found
