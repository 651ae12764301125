"""Mutates files of small collections and reads them: `fuzz(seed, count)`."""

import contextlib
import pathlib
import random
import resource
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from absl import logging
from ml_collections import ConfigDict
from PIL import Image

from scops_jax.config import default_config
from scops_jax.data.builder import FilteredError
from scops_jax.data.collection import BUILDERS
from scops_jax.errors import UserError
from tests.miniatures import aflw, celeba_wild, cub_parts, pascal_parts

SECONDS = 10  # that reading a collection may take
_PUBLISHED = {"aflw": aflw, "celeba_wild": celeba_wild, "cub_parts": cub_parts, "pascal_parts": pascal_parts}
_NUMBERS = (b"0", b"-1", b"nan", b"inf", b"-inf", b"1e308", b"9" * 30, b"1_0", b"0x10", b"", b"\xd9\xa3")
_BYTES = (b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\n", b'"', b",", b" ", b"../", b"\xed\xb3\xbf")


class _HangError(BaseException):
  """What no reader takes for a fault of its file."""


@dataclass
class Report:
  """What `fuzz` saw."""

  outcomes: Counter[str] = field(default_factory=Counter)  # "refused", "example", "bad example", "filtered"
  failures: list[str] = field(default_factory=list)  # tracebacks, hangs
  slowest: tuple[float, str] = (0.0, "")  # processor seconds for one collection, and which
  memory: int = 0  # bytes by which the process grew


def fuzz(seed: int, count: int) -> Report:
  """Reads `count` collections, each with one to three mutations of one file.

  Mutation `index` depends on the seed and on `index` only. Images and maps are mutated less often than lists,
  databases and annotations.

  Args:
    seed: of the mutations.
    count: how many.
  """
  logging.set_verbosity(logging.ERROR)  # tfds speaks of each builder
  report, before = Report(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  with tempfile.TemporaryDirectory() as place:
    configs = _write_seeds(pathlib.Path(place))
    files = {name: _files(pathlib.Path(config.data.dir)) for name, config in configs.items()}
    for index in range(count):
      rng = random.Random(f"{seed} {index}")
      name = rng.choice(sorted(configs))
      path = rng.choice(files[name][rng.random() < 0.25])
      content = path.read_bytes()
      mutated = content
      for _ in range(rng.randint(1, 3)):
        mutated = _mutate(mutated, rng)
      path.write_bytes(mutated)
      what = f"seed {seed}, mutation {index} of {name}, {path.name}"
      started = time.process_time()
      try:
        with _alarm():
          report.outcomes.update(_read(configs[name]))
      except (Exception, _HangError):
        report.failures.append(f"{what}: {traceback.format_exc()}")
      finally:
        path.write_bytes(content)
      report.slowest = max(report.slowest, (time.process_time() - started, what))
  report.memory = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
  return report


def _write_seeds(place: pathlib.Path) -> dict[str, ConfigDict]:
  configs = {}
  for name in (*_PUBLISHED, "image_folder"):
    config = default_config()
    config.data.name, config.data.dir = name, str(place / name)
    config.data.cache_dir, config.data.on_bad_example = str(place / "cache"), "skip"
    config.cub.category = 1
    config.pascal.category = "horse"
    if name in _PUBLISHED:
      _PUBLISHED[name].write(place / name, faults=False)
    else:
      _write_folder(place / name)
    configs[name] = config
  return configs


def _write_folder(root: pathlib.Path) -> None:
  rng = np.random.default_rng(0)
  for folder in ("images", "saliency", "parts"):
    (root / folder).mkdir(parents=True)
  rows = ["image,landmark,x,y,visible"]
  for index in range(4):
    Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(root / f"images/{index}.jpg")
    Image.fromarray(np.full((20, 30), 255, np.uint8)).save(root / f"saliency/{index}.png")
    Image.fromarray(np.eye(20, 30, dtype=np.uint8)).save(root / f"parts/{index}.png")
    rows += [f"{index}.jpg,{landmark},{index + 1.5},7,1" for landmark in ("tip", "tail")]
  (root / "landmarks.csv").write_text("\n".join(rows))
  (root / "test.txt").write_text("0.jpg\n1.jpg\n")


def _files(root: pathlib.Path) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
  """The files that are not pictures, and those that are."""
  found = sorted(path for path in root.rglob("*") if path.is_file())
  pictures = [path for path in found if path.suffix in (".jpg", ".png")]
  return [path for path in found if path not in pictures], pictures


def _mutate(content: bytes, rng: random.Random) -> bytes:
  data = bytearray(content)
  start = rng.randrange(len(data) + 1)
  end = min(len(data), start + rng.choice((1, 4, 16, 200)))
  kind = rng.randrange(9)
  if kind == 0 and start < len(data):
    data[start] ^= 1 << rng.randrange(8)
  elif kind == 1:
    del data[start:]
  elif kind == 2:
    del data[start:end]
  elif kind == 3:
    data[start:start] = data[start:end] * rng.choice((1, 2, 50))
  elif kind == 4:
    data[start:start] = rng.choice(_BYTES)
  elif kind == 5:
    data[start:end] = rng.randbytes(end - start)
  elif kind == 6:  # a count or size in a binary file
    data[start : start + 4] = rng.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**24)).to_bytes(4, "little")
  elif kind == 7:  # a field in a text
    fields = bytes(data).split(rng.choice((b" ", b",", b"\n")))
    fields[rng.randrange(len(fields))] = rng.choice((*_NUMBERS, b"x" * 200_000, b"7" * 200_000))
    data = bytearray(b" ".join(fields))
  else:
    lines = bytes(data).split(b"\n")
    lines[rng.randrange(len(lines))] = rng.choice(lines)
    data = bytearray(b"\n".join(lines))
  return bytes(data)


def _read(config: ConfigDict) -> Iterator[str]:
  try:
    builder = BUILDERS[config.data.name](config, variant="mutated")
    builder.open_source()
    records = [record for split in builder.splits for record in builder.list_records(split)]
  except UserError as error:
    _check_message(error)
    yield "refused"
    return
  for record in records:
    outcome = builder._try_example(record)
    if isinstance(outcome, FilteredError):
      yield "filtered"
    elif isinstance(outcome, Exception):
      _check_message(outcome)
      yield "bad example"
    else:
      yield "example"


def _check_message(error: Exception) -> None:
  assert str(error).strip(), f"{type(error).__name__} without a message"


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
  def ring(*unused: object) -> None:
    raise _HangError(f"reading took over {SECONDS} s")

  before = signal.signal(signal.SIGALRM, ring)
  signal.alarm(SECONDS)
  try:
    yield
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
