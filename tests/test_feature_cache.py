"""Kept reference features: those of the network, computed once for everything they depend on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scops_jax.data.collection import open_collection
from scops_jax.data.pipeline import evaluation_batches, train_batches
from scops_jax.errors import UserError
from scops_jax.runs import feature_cache
from scops_jax.runs.feature_cache import cache_features
from scops_jax.train import train_and_evaluate
from scops_jax.train_step import reference_features
from tests import tiny

NUM_IMAGES, SIDE = 7, 16


@pytest.fixture
def config(tmp_path, monkeypatch):
  rng = np.random.default_rng(0)
  pictures = [rng.integers(0, 256, (20, 24, 3), np.uint8) for _ in range(NUM_IMAGES + 2)]
  return tiny.folder_config(
    tmp_path,
    monkeypatch,
    pictures,
    num_test=2,
    **{
      "data.saliency": "ones",
      "data.cache_reference_features": True,
      "data.num_threads": 1,
      "nmf.num_images": 4,
      "nmf.num_iterations": 2,
      "num_steps": 4,
      "log_every": 1,
    },
  )


class Counting:
  """The tiny reference, compiled; `calls` counts batches that are computed."""

  def __init__(self, config):
    self.networks = tiny.networks()
    self.variables = tiny.variables(self.networks, SIDE)[2]
    self.calls = 0
    self._features = jax.jit(functools.partial(reference_features, networks=self.networks, config=config))
    self.trace = self._features.trace

  def __call__(self, variables, images):
    self.calls += 1
    return self._features(variables, images)

  def maps(self, images):
    return self._features(self.variables, images)

  def cached(self, config):
    return cache_features(open_collection(config), self, config, variables=self.variables)


def test_each_image_has_the_networks_maps_in_bfloat16(config):
  features = Counting(config)
  cached = features.cached(config)
  assert len(cached) == NUM_IMAGES
  assert features.calls == 2  # of 4 images each, the last one padded
  source = open_collection(config).train
  batches = evaluation_batches(source, batch_size=1, image_size=SIDE, kept=cached)
  decoded = evaluation_batches(source, batch_size=1, image_size=SIDE)
  for index, (batch, plain) in enumerate(zip(batches, decoded, strict=True)):
    (expected,) = features.maps(plain["image"])
    image, (kept,) = cached[index]
    assert kept.dtype == jnp.bfloat16
    np.testing.assert_array_equal(kept, np.asarray(expected[0].astype(jnp.bfloat16)))
    np.testing.assert_array_equal(batch["features"][0][0], kept)
    np.testing.assert_array_equal(image, plain["image"][0])
    for name, values in plain.items():
      np.testing.assert_array_equal(batch[name], values)


def test_pictures_whose_pixels_are_kept_are_not_decoded(config, monkeypatch):
  cached = Counting(config).cached(config)
  source = open_collection(config).train
  options = {"batch_size": 2, "image_size": SIDE, "seed": 1, "num_threads": 0}
  expected = next(train_batches(source, **options))
  asked = []
  read = source.read
  monkeypatch.setattr(source, "read", lambda index, fields: asked.append(set(fields)) or read(index, fields))
  batch = next(train_batches(source, **options, kept=cached))
  assert asked == [{"saliency"}] * 2
  np.testing.assert_array_equal(batch["image"], expected["image"])
  np.testing.assert_array_equal(batch["saliency"], expected["saliency"])


def test_training_batches_bring_the_features_of_their_images(config):
  features = Counting(config)
  source, cached = open_collection(config).train, features.cached(config)
  options = {"batch_size": 3, "image_size": SIDE, "seed": 1, "num_threads": 1}
  batches = train_batches(source, **options, kept=cached)
  for _ in range(4):
    batch = next(batches)
    (expected,) = features.maps(batch["image"])
    (kept,) = batch["features"]
    np.testing.assert_array_equal(kept, np.asarray(expected.astype(jnp.bfloat16)))


def test_features_are_computed_once_for_what_decides_them(config):
  features = Counting(config)
  features.cached(config)
  folder = open_collection(config).folder / "reference_features"
  (first,) = folder.glob("*.array_record")
  calls = features.calls
  features.cached(config)
  assert features.calls == calls

  features.variables = jax.tree.map(lambda x: x + 1, features.variables)  # other weights
  (changed,) = features.cached(config)[0].features
  assert features.calls == 2 * calls
  (expected,) = features.maps(
    next(evaluation_batches(open_collection(config).train, batch_size=1, image_size=SIDE))["image"]
  )
  np.testing.assert_array_equal(changed, np.asarray(expected[0].astype(jnp.bfloat16)))
  config.reference_mirror = True
  features.cached(config)
  assert len(list(folder.glob("*.array_record"))) == 3
  assert first.exists()


def test_an_interrupted_computation_leaves_nothing(config):
  class Interrupted(Counting):
    def __call__(self, variables, images):
      raise KeyboardInterrupt

  collection = open_collection(config)
  with pytest.raises(KeyboardInterrupt):
    Interrupted(config).cached(config)
  assert not list((collection.folder / "reference_features").iterdir())


def test_a_full_disk_is_named_before_anything_is_computed(config, monkeypatch):
  features = Counting(config)
  usage = feature_cache.shutil.disk_usage("/")._replace(free=100)
  monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda path: usage)
  with pytest.raises(UserError, match=r"make room, or set data\.cache_reference_features=False"):
    features.cached(config)
  assert features.calls == 0


def test_a_run_ends_with_the_numbers_of_one_that_computes_them_in_every_step(config, tmp_path):
  kept = train_and_evaluate(config, tmp_path / "kept")
  config.data.cache_reference_features = False
  computed = train_and_evaluate(config, tmp_path / "computed")
  assert kept["foreground_iou"] == pytest.approx(computed["foreground_iou"], abs=0.02)
  np.testing.assert_allclose(kept["part_area_fractions"], computed["part_area_fractions"], atol=0.02)
  losses = [
    [float(line.split('"loss": ')[1].split(",")[0]) for line in (tmp_path / name / "metrics.jsonl").open()]
    for name in ("kept", "computed")
  ]
  assert len(losses[0]) == 4
  # The features are rounded to 8 bits of mantissa.
  np.testing.assert_allclose(losses[0], losses[1], rtol=1e-2)
