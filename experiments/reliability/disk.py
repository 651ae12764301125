"""Fills a small disk at many points of a command: one line names the path, and with room the command goes on.

A tmpfs of a size holds the run, its data set and its predictions. Needs root, to mount it.
"""

import contextlib
import os
import pathlib
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments.reliability import children
from experiments.reliability.records import Records
from experiments.reliability.site import Site
from experiments.reliability.tiny_training import Place

_WRITES = {"prepare": ("cache",), "main": ("run", "cache"), "predict": ("out",)}  # by command


def can_mount(folder: pathlib.Path) -> bool:
  """Returns whether this process may mount a tmpfs."""
  folder.mkdir(parents=True, exist_ok=True)
  if os.geteuid():
    return False
  with _disk(folder, 1 << 20) as mounted:
    return mounted


def run(root: pathlib.Path, template: Site, *, seed: int, count: int, records: Records) -> None:
  """Fills the disk at `count` sizes, drawn between nothing and what a command writes."""
  compiled, disk = root / "compiled", root / "disk"
  expected = {command: template.result(command) for command in _WRITES}
  written = {command: sum(_size(template.path(name)) for name in names) for command, names in _WRITES.items()}
  for index in range(len(records.entries), count):
    rng = np.random.default_rng([seed, index])
    command = list(_WRITES)[index % len(_WRITES)]
    size = int(rng.uniform(0.02, 1.0) * written[command])
    records.add(_fill(template, compiled, disk, command, size, expected[command]))


def _fill(
  template: Site, compiled: pathlib.Path, disk: pathlib.Path, command: str, size: int, expected: Any
) -> dict[str, Any]:
  disk.mkdir(exist_ok=True)
  with _disk(disk, 64 << 20):
    place = Site(Place(disk / "site"))
    for name in ("own", "photos"):
      shutil.copytree(template.path(name), place.path(name), copy_function=shutil.copy2)
    shutil.copy(template.path("config.py"), place.path("config.py"))
    if command == "predict":
      shutil.copytree(template.path("run"), place.path("run"))
    _resize(disk, _size(disk) + size)
    log = disk.with_name("disk.log")
    start = place.command(command, place.flags(command), compiled)
    full = children.run(start, log=log, seconds=120)
    _resize(disk, 64 << 20)
    again = children.run(start, log=log, seconds=120)
    result = place.result(command) if not again.code else None
    return {
      "command": command,
      "bytes": size,
      "code": full.code,
      "message": full.error.strip().split("\n")[-1][:300] if full.code else "",
      "wrong": _wrong(full, again, same=result == expected),
      "cpu": round(full.cpu + again.cpu, 2),
    }


def _size(folder: pathlib.Path) -> int:
  return sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))


def _wrong(full: children.Ended, again: children.Ended, *, same: bool) -> str:
  if full.code not in (0, 1) or "Traceback" in full.error or full.hung:
    return f"code {full.code}: {full.error[-800:]}"
  if full.code and "error: " not in full.error:
    return f"no message: {full.error[-800:]}"
  if again.code:
    return f"with room: code {again.code}: {again.error[-800:]}"
  return "" if same else "with room: another result"


def _resize(disk: pathlib.Path, size: int) -> None:
  subprocess.run(["mount", "-o", f"remount,size={max(4096, size)}", str(disk)], check=True)


@contextlib.contextmanager
def _disk(folder: pathlib.Path, size: int) -> Iterator[bool]:
  command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
  mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
  try:
    yield mounted
  finally:
    if mounted:
      subprocess.run(["umount", "--lazy", str(folder)], check=True)
