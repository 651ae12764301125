"""A tiny random transformer as reference and as backbone: a whole run on toy_faces, and its codes."""

import json

import jax
import numpy as np
import pytest

from configs import celeba_dino, cub_dino, toy_faces
from scops_jax import models, train
from scops_jax.config import check_values
from scops_jax.data.collection import open_collection
from scops_jax.errors import UserError
from scops_jax.models import dino
from scops_jax.models.vit import Architecture
from scops_jax.prediction.predictor import load_predictor
from scops_jax.prediction.restore import load_segmenter
from scops_jax.runs import setup
from scops_jax.runs.metrics import read_metrics
from scops_jax.runs.sizes import suitable_sizes
from scops_jax.saliency.maps import reference_grid
from scops_jax.train_step import create_networks, reference_features
from tests import tiny_dino

SIDE, PATCH, STEPS = 32, 8, 24


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
  small = Architecture(PATCH, channels=16, depth=2, heads=2, registers=2, grid=4)
  monkeypatch.setitem(tiny_dino.ARCHITECTURES, "dino_tiny_8", small)
  tiny_dino.register(monkeypatch)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp("cache")


@pytest.fixture
def config(cache):
  config = toy_faces.get_config()
  values = {
    "num_parts": 3,
    "num_steps": STEPS,
    "batch_size": 8,
    "eval_batch_size": 8,
    "image_size": SIDE,
    "segmenter": "dino_tiny_8",
    "segmenter_weights": "random",
    "reference": "dino_tiny_8",
    "reference_weights": "random",
    "reference_layers": (),
    "reference_image_size": 2 * SIDE,
    "signed_features.mean_square": 0.1,
    "optimizer.frozen_modules": ("embed", "block0_"),
    "optimizer.learning_rate": 2e-3,
    "optimizer.warmup_steps": 2,
    "crf.num_iterations": 0,
    "eval_every": STEPS,
    "checkpoint_every": STEPS,
    "log_every": 1,
    "nmf.num_images": 16,
    "nmf.num_iterations": 5,
    "toy_faces.num_train": 24,
    "toy_faces.num_test": 8,
    "data.cache_dir": str(cache),
  }
  config.update_from_flattened_dict(values)
  return config


def test_a_run_from_start_to_prediction(config, tmp_path):
  results = train.train_and_evaluate(config, tmp_path / "run")
  losses = [record["loss"] for record in read_metrics(tmp_path / "run")]
  assert len(losses) == STEPS
  assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
  assert np.isfinite(results["landmark_error_test"])
  assert sum(results["part_area_fractions"]) == pytest.approx(1, abs=1e-3)
  saved = json.loads((tmp_path / "run" / "config.json").read_text())
  assert saved["reference_layers"] == ["norm"]
  # Frozen modules keep what they started from.
  segmenter = load_segmenter(tmp_path / "run")
  start = setup.init_segmenter(segmenter.networks, segmenter.config)["params"]
  moved = {
    name: any(
      np.any(np.asarray(a) != np.asarray(b))
      for a, b in zip(jax.tree.leaves(start[name]), jax.tree.leaves(segmenter.params[name]), strict=True)
    )
    for name in start
  }
  frozen = {name for name, value in moved.items() if not value}
  assert frozen == {"embed", "block0_attention", "block0_mlp"}
  assert segmenter.part_basis.shape == (3, 32)
  predicted = load_predictor(tmp_path / "run")(np.zeros((1, 40, 50, 3), np.uint8))
  assert predicted.labels.shape == (1, 40, 50)


@pytest.mark.parametrize(("method", "channels"), [("minimum", 16), ("pca", 12)])
def test_a_fitted_code_is_kept_with_the_collection(method, channels, config, monkeypatch):
  config.signed_features.method = method
  config.signed_features.num_components = 6
  config.signed_features.num_images = 10
  config.reference_layers = ("norm",)
  collection, networks = open_collection(config), setup.create_networks(config)
  loaded = setup.load_reference(networks, config)
  variables = setup.fit_feature_code(collection, networks, loaded, config)
  images = np.stack([collection.train.read(i, ("image",))["image"] for i in range(2)])[:, ::4, ::4]
  (features,) = reference_features(variables, images, networks=networks, config=config)
  assert features.shape == (2, 8, 8, channels)
  assert features.min() >= 0
  np.testing.assert_allclose(np.mean(features**2, axis=-1), 0.1, rtol=1e-3)
  cached = setup.open_features(collection, networks, variables, config)
  assert cached[0].features[0].shape == (8, 8, channels)
  # Found again, not fitted again.
  monkeypatch.setattr("scops_jax.runs.feature_code._fit", None)
  again = setup.fit_feature_code(collection, networks, loaded, config)
  np.testing.assert_array_equal(again["code"][0], variables["code"][0])
  codes = (collection.folder / "reference_features").glob("*_code.npz")
  kept = max(codes, key=lambda path: path.stat().st_mtime_ns)
  for content in (b"", kept.read_bytes()[:-30]):
    kept.write_bytes(content)
    with pytest.raises(UserError, match=r"can't be written or read .*: delete it"):
      setup.fit_feature_code(collection, networks, loaded, config)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"image_size": 36}, r"^image_size=36 is not divisible by 8, the stride of dino_tiny_8: take 32 or 40$"),
    ({"reference_image_size": 65}, r"^reference_image_size=65 is not divisible by 8.*take 64 or 72$"),
    (
      {"reference_layers": ("block9",)},
      r"^unknown layer of dino_tiny_8 'block9'; valid: block0, block1, norm$",
    ),
  ],
)
def test_a_mistake_is_one_line(change, message, config, tmp_path):
  config.update_from_flattened_dict(change)
  with pytest.raises(UserError, match=message) as info:
    train.train_and_evaluate(config, tmp_path / "run")
  assert "\n" not in str(info.value)
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("segmenter", "reference", "expected"),
  [
    ("efficientnet_lite0", "dinov2_vits14_reg", (128, 392)),
    ("dinov2_vits14_reg", "dinov2_vits14_reg", (126, 378)),
    ("dinov3_vits16", "dinov3_vits16", (128, 384)),
  ],
)
def test_sizes_that_follow_from_the_images_fit_the_patches(segmenter, reference, expected, config):
  config.update({"segmenter": segmenter, "reference": reference, "image_size": 0})
  found = suitable_sizes(config, num_images=900, edge=300.0)
  assert (found["image_size"], found["reference_image_size"]) == expected
  assert found["image_size"] % dino.ARCHITECTURES.get(segmenter, Architecture(16, 1, 1, 1)).patch == 0


@pytest.mark.parametrize("num_parts", ["4", "8", "16"])
@pytest.mark.parametrize("module", [celeba_dino, cub_dino])
def test_the_configs_fit_their_networks(module, num_parts):
  config = module.get_config(num_parts)
  check_values(config)
  models.check_image_size(config.segmenter, config.image_size)
  models.check_reference_image_size(config.reference, config.reference_image_size)
  models.create_reference(config.reference, config.reference_layers)
  assert config.num_parts == int(num_parts)


def test_saliency_from_features_frames_images_in_whole_patches(config):
  config.reference_image_size, config.reference_layers = 48, ("norm",)
  networks = create_networks(config)
  images = np.random.default_rng(0).integers(0, 256, (1, SIDE, SIDE, 3), np.uint8)
  variables = networks.reference.init(jax.random.key(0), np.zeros((1, 48, 48, 3), np.float32))
  grid = reference_grid(variables, images, networks=networks, config=config)
  assert grid.shape == (1, 6, 6, 16)  # as many cells as without the margin of a patch
