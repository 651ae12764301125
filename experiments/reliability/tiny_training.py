"""Tiny networks on six images: the run that is killed, damaged and resumed, and predictions of it.

All of it takes two seconds of a core, because JAX keeps the compiled programs, and figures are not drawn but
written as a grey pixel unless asked for: drawing them would take three quarters of the time.
"""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from experiments.reliability.executables import keep_compiled_steps, sources_digest
from scops_jax.config import default_config
from scops_jax.data.image_files import find_images
from scops_jax.prediction import model_file, restore
from scops_jax.prediction.stream import predict_images
from scops_jax.report import charts, figures
from scops_jax.runs import setup
from scops_jax.storage.files import replacing
from scops_jax.train import evaluate_run, train_and_evaluate
from tests import tiny
from tests.faults.conftest import SETTINGS, outcome

NETWORKS = {
  "num_parts": tiny.NUM_PARTS,
  "image_size": 16,
  "reference_image_size": 16,
  "segmenter_weights": "random",
  "reference_weights": "random",
  "data.name": "image_folder",
  "optimizer.learning_rate": 1e-3,
}
_NUM_PREDICTED = 14


@dataclasses.dataclass(frozen=True)
class Place:
  """A folder with images, and where runs, their data sets and predictions go."""

  root: pathlib.Path

  @property
  def own(self) -> pathlib.Path:
    """The collection."""
    return self.root / "own"

  @property
  def cache(self) -> pathlib.Path:
    """The prepared data set and the kept features."""
    return self.root / "cache"

  @property
  def photos(self) -> pathlib.Path:
    """Images to label."""
    return self.root / "photos"

  def config(self, **overrides: Any) -> ConfigDict:
    """Returns the run's config."""
    config = default_config()
    places = {"data.dir": str(self.own), "data.cache_dir": str(self.cache)}
    config.update_from_flattened_dict(NETWORKS | SETTINGS | places | overrides)
    return config

  def draw_images(self) -> None:
    """Draws the collection and the images to label."""
    rng = np.random.default_rng(0)
    for folder, count in ((self.own / "images", 6), (self.photos, _NUM_PREDICTED)):
      folder.mkdir(parents=True)
      for index in range(count):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(folder / f"{index}.png")
    (self.own / "test.txt").write_text("4.png\n5.png\n", encoding="utf-8")


def result(workdir: pathlib.Path) -> dict[str, Any]:
  """Returns what a run came to: its metrics but for the speed, its evaluation and the newest checkpoint."""
  metrics, evaluation = outcome(workdir)
  newest = checkpoints(workdir)[-1]
  saved = {name: json.loads((newest / name / "metadata").read_text()) for name in ("digests", "position")}
  # It covers the speed.
  del saved["digests"]["position"], saved["position"]["metrics"]
  return {"metrics": metrics, "evaluation": evaluation, "step": newest.name, **saved}


def checkpoints(workdir: pathlib.Path) -> list[pathlib.Path]:
  """Returns the folders of a run's checkpoints, the newest last."""
  found = [path for path in workdir.glob("checkpoints/*") if path.name.isdecimal()]
  return sorted(found, key=lambda path: int(path.name))


def is_done(place: Place) -> bool:
  """Returns whether `mark_done` was called by processes of the same sources."""
  path = place.root / "done"
  return path.exists() and path.read_text() == sources_digest()


def mark_done(place: Place) -> None:
  """Says that what a place is for is in it."""
  (place.root / "done").write_text(sources_digest())


def set_up(compiled: pathlib.Path, *, draws: bool = False) -> None:
  """Makes this process train tiny networks; JAX keeps the compiled programs in the folder `compiled`."""
  jax.config.update("jax_compilation_cache_dir", str(compiled))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  for module in (setup, restore, model_file):
    module.create_networks = lambda config: tiny.networks()
  keep_compiled_steps(compiled / "steps" / sources_digest())
  if not draws:
    figures.part_figure = lambda *, path, **_: _grey_pixel(path)
    charts.loss_curves = lambda records, path, **_: _grey_pixel(path)
    charts.loss_curves_uri = lambda records, **_: "data:,"


def train(place: Place, workdir: pathlib.Path, **overrides: Any) -> None:
  """Trains, or goes on with training."""
  train_and_evaluate(place.config(**overrides), workdir)


def evaluate(place: Place, workdir: pathlib.Path, **overrides: Any) -> None:
  """Evaluates as --mode=eval does."""
  evaluate_run(place.config(**overrides), workdir)


def predict(place: Place, workdir: pathlib.Path, out: pathlib.Path) -> None:
  """Labels the photos, in batches of two."""
  predict_images(restore.load_segmenter(workdir), find_images(place.photos), out, batch_size=2)


def _grey_pixel(path: pathlib.Path) -> None:
  with replacing(path) as temporary:
    Image.new("RGB", (1, 1), "grey").save(temporary, format="PNG")
