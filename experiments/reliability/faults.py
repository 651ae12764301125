"""Tries each fault of fault_list.py on a copy of a finished run and classifies how the command ends.

good       the right result, or another one with a line that names what is damaged; or exit code 1 and one
           line that names the file or key, within 10 s of a core and 1 GB more memory than without the fault
bad        a traceback, a crash, a message that names nothing, a hang, more memory
dangerous  exit code 0 with another result than without the fault, and no word about it
"""

import functools
import pathlib
import random
import shutil
from typing import Any

from experiments.reliability import children, fault_list, site
from experiments.reliability.fault_list import Fault
from experiments.reliability.records import Records
from experiments.reliability.site import Site
from experiments.reliability.tiny_training import Place

_MAX_SECONDS = 10.0  # of a core
_MAX_BYTES = 1 << 30
_HANGS = 120.0  # seconds, on a machine that is busy with other things


def run(root: pathlib.Path, template: Site, *, count: int, records: Records) -> None:
  """Tries the faults that `records` lack, at most `count` of all, in an order that mixes the groups."""
  compiled = root / "compiled"
  baselines = _baselines(compiled, site.copy(template.place.root, root / "tried"))
  faults = fault_list.all_faults(template)
  random.Random(0).shuffle(faults)  # what is not finished is then a sample
  tried = {entry["fault"] for entry in records.entries}
  for fault in faults[:count]:
    if fault.title not in tried:
      records.add(_try(fault, root, compiled, template, baselines))


@functools.cache
def make_template(root: pathlib.Path) -> Site:
  """Makes the finished run, once for the phases of a process.

  It is made where faults are tried, because a run's config holds paths: a command that meets others says so.
  """
  template, made = Site(Place(root / "template")), Site(Place(root / "tried"))
  for place in (template.place, made.place):
    shutil.rmtree(place.root, ignore_errors=True)
  made.place.draw_images()
  site.write_config(made.path("config.py"))
  for command in ("main", "predict", "export", "pack"):
    _undamaged(made, root / "compiled", command)
  fault_list.add_files(made)
  made.place.root.rename(template.place.root)
  return template


def _baselines(compiled: pathlib.Path, place: Site) -> dict[str, tuple[Any, int]]:
  """Returns each command's result and memory without a fault."""
  # A second time: what a command does where all is done already is what faults are compared with.
  commands = ("main", "eval", "prepare", "predict", "export", "program")
  baselines = {command: _undamaged(place, compiled, command) for command in commands}
  baselines["weights"] = (None, baselines["predict"][1])
  return baselines


def _undamaged(place: Site, compiled: pathlib.Path, command: str) -> tuple[Any, int]:
  ended = children.run(place.command(command, place.flags(command), compiled), log=place.path("log"))
  if ended.code:
    raise RuntimeError(f"{command}: {ended.error}")
  return place.result(command, arrays=False), ended.peak


def _try(
  fault: Fault,
  root: pathlib.Path,
  compiled: pathlib.Path,
  template: Site,
  baselines: dict[str, tuple[Any, int]],
) -> dict[str, Any]:
  place = site.copy(template.place.root, root / "tried")
  arguments = place.flags(fault.command)
  fault.damage(place)
  arguments = fault.change(place, arguments)
  start = place.command(fault.command, arguments, compiled)
  if fault.around is not None:
    start = fault.around(start)
  ended = children.run(start, log=place.path("log"), seconds=_HANGS, folder=fault.folder)
  result, memory = baselines[fault.command]
  verdict, why = classify(fault, ended, memory=memory, same=lambda: _same(place, fault.command, result))
  entry = {
    "fault": fault.title,
    "group": fault.group,
    "verdict": verdict,
    "why": why,
    "code": ended.code,
    "cpu": round(ended.cpu, 2),
  }
  return entry | ({} if verdict == "good" else {"error": ended.error[-1500:]})


def classify(fault: Fault, ended: children.Ended, *, memory: int, same: Any) -> tuple[str, str]:
  """Returns the verdict and its reason.

  Args:
    fault: what was tried.
    ended: how the command ended.
    memory: bytes that the command holds without a fault.
    same: called to learn whether the result is that without the fault.
  """
  if ended.hung or ended.cpu > _MAX_SECONDS:
    return "bad", f"took {ended.cpu:.0f} s"
  if ended.peak > memory + _MAX_BYTES:
    return "bad", f"took {(ended.peak - memory) / 1e9:.1f} GB more"
  if ended.code < 0:
    return "bad", f"signal {-ended.code}"
  if "Traceback" in ended.error + ended.output:
    return "bad", "traceback"
  if ended.code == fault.code != 0:
    _, found, message = ended.error.rpartition("error: ")  # with the lines of details below it
    if fault.code == 1 and not found:
      return "bad", "no message"
    return ("good", "refused") if fault.named in message else ("bad", f"does not name {fault.named}")
  if ended.code:
    return "bad", f"exit code {ended.code}"
  if fault.refused:
    return "dangerous", "accepted"
  if same():
    return "good", "right result"
  said = bool(fault.named) and fault.named in ended.error + ended.output
  return ("good", "another result, and says so") if said else ("dangerous", "another result")


def _same(place: Site, command: str, expected: Any) -> bool:
  try:
    return place.result(command, arrays=False) == expected
  except (OSError, ValueError):
    return False
