"""The folder in which a fault is tried, a copy of a finished run's, and the commands that meet it there."""

import hashlib
import os
import pathlib
import runpy
import shutil
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from experiments.reliability import children, tiny_training
from experiments.reliability.children import Command
from experiments.reliability.tiny_training import NETWORKS, Place
from scops_jax.data.collection import UNDECODED
from tests.faults.conftest import SETTINGS, outcome

_CONFIG = """\
from scops_jax.config import default_config

def get_config():
  config = default_config()
  config.update_from_flattened_dict({values})
  return config
"""


@dataclass(frozen=True)
class Site:
  """A finished run with its collection, data set and predictions."""

  place: Place

  def path(self, name: str) -> pathlib.Path:
    """Returns a path in the folder: "run/config.json"."""
    return self.place.root / name

  def only(self, pattern: str) -> pathlib.Path:
    """Returns the one path of a pattern."""
    (path,) = self.place.root.glob(pattern)
    return path

  def flags(self, command: str) -> list[str]:
    """Returns the arguments of a command that nothing is wrong with."""
    data = [f"--config={self.path('config.py')}"]
    data += [f"--config.data.dir={self.place.own}", f"--config.data.cache_dir={self.place.cache}"]
    return {
      "main": [*data, f"--workdir={self.path('run')}"],
      "eval": [*data, f"--workdir={self.path('run')}", "--mode=eval"],
      "prepare": data,
      "predict": [
        f"--workdir={self.path('run')}",
        f"--images={self.place.photos}",
        f"--out={self.path('out')}",
        "--batch_size=2",
      ],
      "pack": [f"--workdir={self.path('run')}", f"--out={self.path('packed.scops')}"],
      "export": [f"--workdir={self.path('run')}", f"--export={self.path('program')}"],
      "weights": [str(self.path("weights"))],
      "program": [str(self.place.photos / "0.png"), str(self.path("parts.npz"))],
    }[command]

  def command(self, command: str, arguments: list[str], compiled: pathlib.Path) -> Command:
    """Returns a command as `python -m scops_jax.…` runs it."""
    modules = {"eval": "main", "export": "predict", "pack": "export"}

    def start() -> None:
      tiny_training.set_up(compiled)
      sys.argv = [command, *arguments]
      if command == "program":
        runpy.run_path(str(self.path("program/run.py")), run_name="__main__")
      else:
        runpy.run_module(f"scops_jax.{modules.get(command, command)}", run_name="__main__", alter_sys=True)

    return start

  def result(self, command: str, *, arrays: bool = True) -> Any:
    """Returns what a command is for, to be compared; `arrays`: with those of the newest checkpoint."""
    if command in ("main", "eval"):
      return tiny_training.result(self.path("run")) if arrays else outcome(self.path("run"))
    if command == "predict":
      files = [path for path in self.path("out").rglob("*") if path.suffix in (".png", ".jpg", ".csv")]
      return {str(path.relative_to(self.path("out"))): _digest(path) for path in files}
    if command == "prepare":
      ended = children.run(self._print_examples, log=self.path("examples"))
      return ended.code or sorted(ended.output.splitlines())
    if command == "program":
      with np.load(self.path("parts.npz")) as arrays:
        return {name: arrays[name].tolist() for name in arrays}
    return _digest(self.path("program/parts.stablehlo")) if command == "export" else None

  def _print_examples(self) -> None:
    """Prints a digest of each example of each data set, and of each file of kept features.

    In a child, as reading starts threads. The data sets' bytes differ from process to process: a protobuf map
    has no order.
    """
    for info in self.place.cache.rglob("dataset_info.json"):
      builder = tfds.builder_from_directory(info.parent)
      for split in sorted(builder.info.splits):
        for index, example in enumerate(builder.as_data_source(split, decoders=UNDECODED)):
          content = repr([(name, example[name]) for name in sorted(example)])
          print(split, index, hashlib.sha256(content.encode()).hexdigest())
    for path in self.place.cache.rglob("reference_features/*.array_record"):
      print(path.name, _digest(path))


def write_config(path: pathlib.Path) -> None:
  """Writes the config file of the tiny run."""
  path.write_text(_CONFIG.format(values=NETWORKS | SETTINGS), encoding="utf-8")


def copy(template: pathlib.Path, root: pathlib.Path) -> Site:
  """Copies a site; the times of images stay, because predict compares them."""
  shutil.rmtree(root, ignore_errors=True)
  # Hard links would share damage.
  shutil.copytree(template, root, symlinks=True, copy_function=shutil.copy2)
  return Site(Place(root))


def _digest(path: pathlib.Path) -> str:
  return hashlib.sha256(path.read_bytes()).hexdigest() if os.path.isfile(path) else "no file"
