"""Reads thousands of damaged files, many in one process: each gives its content or one error that names it.

The files are those of a run, a data set, predictions and kept features, read by the functions that the
commands read them with; collections' lists, annotations and images (tests/faults/fuzz_data.py); and weight
files (tests/faults/weight_fuzz.py). A file that takes 10 s of a core or a gigabyte more memory than there was
before is a failure; so is any exception but the package's error.
"""

import collections
import contextlib
import io
import json
import pathlib
import re
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from experiments.reliability import children, site, tiny_training
from experiments.reliability.records import Records
from experiments.reliability.site import Site
from scops_jax import train
from scops_jax.data.image_files import read_image
from scops_jax.data.prepared import find_damage
from scops_jax.errors import UserError
from scops_jax.evaluation.evaluate import Dff
from scops_jax.prediction.files import ImageFile, OutputFiles
from scops_jax.prediction.folder import PredictionFolder
from scops_jax.prediction.model_file import read_model
from scops_jax.runs import feature_cache
from scops_jax.runs.checkpoints import read_position, restore_variables
from scops_jax.runs.metrics import check_metrics, read_metrics
from scops_jax.runs.workdir import load_config
from tests.faults import fuzz_data, weight_fuzz

MAX_SECONDS, MAX_BYTES = 10, 1 << 30
_BLOCK = 400  # files of each kind


@dataclass(frozen=True)
class Reader:
  """Files that are damaged, and what reads them: their content, or a note (str) that tells of damage."""

  name: str
  files: str  # a pattern in the site
  read: Callable[[Site, pathlib.Path], Any]


class HangError(BaseException):
  """What no reader takes for a fault of its file."""


def _checkpoint(place: Site, path: pathlib.Path) -> Any:
  variables, step = restore_variables(
    place.path("run"), sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
  )
  return (
    f"going on from {step}"
    if step == 4
    else [leaf.tobytes() for leaf in map(np.asarray, jax.tree.leaves(variables))]
  )


def _data_set(place: Site, path: pathlib.Path) -> Any:
  return find_damage(path.parent) or "whole"


def _features(place: Site, path: pathlib.Path) -> Any:
  return "whole" if feature_cache._is_intact(path.with_suffix(".array_record")) else f"{path.name} is damaged"


def _dff(place: Site, path: pathlib.Path) -> Any:
  dff = Dff.load(path)
  return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tuple(dff))]


def _packed(place: Site, path: pathlib.Path) -> Any:
  segmenter = read_model(path)
  content = (segmenter.params, segmenter.batch_stats, segmenter.part_basis)
  return (
    segmenter.step,
    segmenter.config.to_json(),
    [np.asarray(x).tobytes() for x in jax.tree.leaves(content)],
  )


def _metrics(place: Site, path: pathlib.Path) -> Any:
  check_metrics(place.path("run"), 6, read_position(place.path("run"), 6)["metrics"])
  return read_metrics(place.path("run"))


def _predictions(place: Site, path: pathlib.Path) -> Any:
  settings = json.loads(place.path("settings.whole").read_text())
  names = [f"{index}.png" for index in range(14)]
  images = [ImageFile(name, place.place.photos / name, name[:-4]) for name in names]
  with contextlib.closing(
    PredictionFolder(OutputFiles(place.path("out"), False), settings=settings)
  ) as folder:
    todo = [file.name for file in folder.unfinished(images)]
  return f"labelled again: {todo}" if todo else "whole"


READERS = (
  Reader("arrays and metadata of checkpoints", "run/checkpoints/6/**/*", _checkpoint),
  Reader("config.json", "run/config.json", lambda place, path: load_config(place.path("run")).to_json()),
  Reader("dff.npz", "run/dff.npz", _dff),
  Reader(
    "evaluation.json", "run/evaluation.json", lambda place, path: train._evaluated_step(place.path("run"))
  ),
  Reader("metrics.jsonl", "run/metrics.jsonl", _metrics),
  Reader("prepared data sets", "cache/image_folder/*/2.0.0/*", _data_set),
  Reader("kept features", "cache/image_folder/*/2.0.0/reference_features/*", _features),
  Reader("journal and settings of predict", "out/*.json*", _predictions),
  Reader("labels and overlays", "out/*/*", _predictions),
  Reader("packed networks", "packed.scops", _packed),
  Reader("images", "photos/*.png", lambda place, path: read_image(path).pixels.tobytes()),
)


@dataclass
class Outcome:
  """What reading a damaged file came to."""

  kind: str  # "right", "noticed", "refused", "other content" or "failed"
  detail: str = ""
  seconds: float = 0.0
  memory: int = 0


def run(root: pathlib.Path, template: Site, *, seed: int, count: int, records: Records) -> None:
  """Damages and reads `count` files, as many of a run as of collections and of weights.

  Args:
    root: a folder to work in.
    template: a finished run, see faults.py.
    seed: damage `index` depends on it and on `index` only.
    count: how many.
    records: get an entry for each block, which a process of its own reads.
  """
  found = root / "corruption.json"
  for block in range(len(records.entries), -(-count // (3 * _BLOCK))):

    def command(block: int = block) -> None:
      began = time.process_time()
      tiny_training.set_up(root / "compiled")
      data = fuzz_data.fuzz(seed + block, _BLOCK)
      entry = {
        "run": _damage_run(template, root, seed=seed, first=block * _BLOCK),
        "collections": {"outcomes": data.outcomes, "count": _BLOCK},
        "weights": {"outcomes": weight_fuzz.fuzz(seed + block, _BLOCK), "count": _BLOCK},
        "failures": data.failures,
        "slowest": list(data.slowest),
        "memory": data.memory,
        "cpu": round(time.process_time() - began, 1),
      }
      found.write_text(json.dumps(entry))

    ended = children.run(command, log=root / "corruption")
    if ended.code:
      records.add(
        {"failures": [f"block {block}: code {ended.code}: {ended.error[-1500:]}"], "cpu": ended.cpu}
      )
    else:
      records.add(json.loads(found.read_text()))


def _damage_run(template: Site, root: pathlib.Path, *, seed: int, first: int) -> dict[str, Any]:
  """Damages files of a run, one after the other; returns counts by reader, and what failed."""
  place = site.copy(template.place.root, root / "corrupted")
  settings = json.loads(place.path("out/settings.json").read_text())
  settings.pop("crc", None)
  place.path("settings.whole").write_text(json.dumps(settings))
  files = {reader: _files(place, reader.files) for reader in READERS}
  assert _predictions(place, place.path("out")) == "whole", "the times of the images have changed"
  whole = {(reader, path): reader.read(place, path) for reader in READERS for path in files[reader]}
  counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
  failures, slowest, largest = [], (0.0, ""), (0, "")
  for index in range(first, first + _BLOCK):
    rng = np.random.default_rng([seed, index])
    reader = READERS[index % len(READERS)]
    path = files[reader][rng.integers(len(files[reader]))]
    what = f"{index}: {path.relative_to(place.place.root)}"
    outcome = _damaged(reader, place, path, rng, whole[reader, path])
    counts[reader.name][outcome.kind] += 1
    slowest, largest = max(slowest, (outcome.seconds, what)), max(largest, (outcome.memory, what))
    if outcome.kind in ("failed", "other content"):
      failures.append(f"{what}: {outcome.kind}: {outcome.detail}")
  return {
    "counts": {name: dict(kinds) for name, kinds in counts.items()},
    "failures": failures,
    "slowest": [round(slowest[0], 3), slowest[1]],
    "largest": list(largest),
  }


def _files(place: Site, pattern: str) -> list[pathlib.Path]:
  found = sorted(path for path in place.place.root.glob(pattern) if path.is_file() and path.stat().st_size)
  return [path for path in found if path.name != "lock"]


def _damaged(
  reader: Reader, place: Site, path: pathlib.Path, rng: np.random.Generator, expected: Any
) -> Outcome:
  content = path.read_bytes()
  others = {p: p.read_bytes() for p in (place.path("out/progress.jsonl"), place.path("out/settings.json"))}
  path.write_bytes(_mutated(content, rng))
  before, began = _reset_peak(), time.process_time()
  messages = io.StringIO()
  try:
    with _alarm(), contextlib.redirect_stderr(messages):
      found = reader.read(place, path)
    outcome = _compared(found, expected, messages.getvalue())
  except UserError as error:
    named = path.name in str(error) or reader.name.startswith("arrays")
    outcome = Outcome("refused") if named and "\n" not in str(error) else Outcome("failed", str(error))
  except (Exception, HangError):
    outcome = Outcome("failed", traceback.format_exc()[-1000:])
  outcome.seconds, outcome.memory = time.process_time() - began, _peak() - before
  if outcome.seconds > MAX_SECONDS or outcome.memory > MAX_BYTES:
    outcome.kind, outcome.detail = "failed", f"{outcome.seconds:.0f} s, {outcome.memory} bytes"
  for each, text in (others | {path: content}).items():
    each.write_bytes(text)
  return outcome


def _compared(found: Any, expected: Any, messages: str) -> Outcome:
  if found == expected:
    return Outcome("right")
  if isinstance(found, str) or "damaged" in messages:
    return Outcome("noticed")
  return Outcome("other content", repr(found)[:200])


def _mutated(content: bytes, rng: np.random.Generator) -> bytes:
  """Returns the content with a bit flipped, a byte changed, its end missing, or a block of zeros."""
  data = bytearray(content)
  start = int(rng.integers(len(data)))
  kind = rng.integers(4)
  if kind == 0:
    data[start] ^= 1 << int(rng.integers(8))
  elif kind == 1:
    data[start] = int(rng.integers(256))
  elif kind == 2:
    del data[start:]
  else:
    data[start : start + 512] = bytes(len(data[start : start + 512]))
  return bytes(data)


def _reset_peak() -> int:
  """Lets the kernel measure this process's peak from now on; returns what it holds."""
  pathlib.Path("/proc/self/clear_refs").write_text("5")
  return _peak()


def _peak() -> int:
  """Returns the most bytes this process has held since `_reset_peak`."""
  status = pathlib.Path("/proc/self/status").read_text()
  return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1])


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
  def ring(*_: object) -> None:
    raise HangError

  before = signal.signal(signal.SIGALRM, ring)
  signal.alarm(10 * MAX_SECONDS)  # on a machine that is busy; the time of the core is looked at afterwards
  try:
    yield
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
