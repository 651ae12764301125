"""A run found again in its work directory."""

import shutil

import jax
import numpy as np
import pytest

from scops_jax import train_step
from scops_jax.config import default_config
from scops_jax.errors import UserError
from scops_jax.prediction.restore import load_segmenter
from scops_jax.runs import setup
from scops_jax.runs.checkpoints import Checkpoints
from scops_jax.runs.workdir import load_config, open_workdir
from scops_jax.train import evaluate_run, train_and_evaluate
from scops_jax.train_step import TrainState
from tests import tiny


def small_config():
  config = default_config()
  with config.unlocked():
    config.num_parts, config.image_size, config.reference_image_size = 3, 32, 33
    config.segmenter_weights = config.reference_weights = "random"
    config.reference_layers = ("block2_expand", "block4_depthwise")
  return config


def test_the_config_comes_back_as_it_was(tmp_path):
  config = small_config()
  open_workdir(tmp_path / "run", config)
  loaded = load_config(tmp_path / "run")
  assert loaded.to_dict() == config.to_dict()
  with pytest.raises(AttributeError):
    loaded.unknown = 1


@pytest.mark.parametrize(
  ("text", "message"),
  [
    (None, "holds no run"),
    ("{", "can't be read"),
    ('{"colour": 1, "reference_layers": []}', "another version"),
  ],
)
def test_a_directory_without_a_config_is_an_error(text, message, tmp_path):
  if text is not None:
    (tmp_path / "config.json").write_text(text)
  with pytest.raises(UserError, match=message):
    load_config(tmp_path)


def test_a_run_without_a_checkpoint_is_an_error(tmp_path):
  open_workdir(tmp_path / "run", small_config())
  with pytest.raises(UserError, match="no checkpoint yet"):
    load_segmenter(tmp_path / "run")


def test_the_segmenter_is_that_of_the_newest_checkpoint(tmp_path):
  config = small_config()
  workdir = open_workdir(tmp_path / "run", config)
  networks = train_step.create_networks(config)
  abstract = jax.eval_shape(
    lambda key: networks.segmenter.init(key, np.zeros((1, 32, 32, 3), np.float32)), jax.random.key(0)
  )
  rng = np.random.default_rng(0)
  variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), abstract)
  basis = rng.normal(size=(3, networks.basis.num_channels)).astype(np.float32)
  params = {"segmenter": variables["params"], "basis": {"raw": basis}}
  transformation = train_step.create_optimizer(networks, params, config)
  checkpoints = Checkpoints(workdir)
  for step in (1, 2):
    scaled = jax.tree.map(lambda leaf, step=step: leaf * step, params)
    state = TrainState(np.int32(step), scaled, variables["batch_stats"], transformation.init(params))
    checkpoints.save(step, jax.tree.map(jax.numpy.asarray, state), position={})
  checkpoints.close()

  segmenter = load_segmenter(workdir)
  assert segmenter.step == 2
  assert segmenter.config.num_parts == 3
  jax.tree.map(
    np.testing.assert_array_equal,
    segmenter.params,
    jax.tree.map(lambda leaf: 2 * leaf, variables["params"]),
  )
  jax.tree.map(np.testing.assert_array_equal, segmenter.batch_stats, variables["batch_stats"])
  np.testing.assert_array_equal(segmenter.part_basis, np.maximum(2 * basis, 0))


def small_run_config(tmp_path, monkeypatch, **overrides):
  """Returns the config of a run of tiny networks on a few images of its own."""
  pictures = [np.full((16, 16, 3), 80 * index, np.uint8) for index in range(3)]
  return tiny.folder_config(tmp_path, monkeypatch, pictures, **{"data.saliency": "ones", **overrides})


def test_frozen_modules_reach_the_optimizer(tmp_path, monkeypatch):
  config = small_run_config(tmp_path, monkeypatch, **{"optimizer.frozen_modules": ("trunk",)})
  networks = setup.create_networks(config)
  transformation = setup.create_optimizer(networks, config)
  params, *_ = tiny.variables(networks)
  gradients = jax.tree.map(np.ones_like, params)
  updates, _ = transformation.update(gradients, transformation.init(params), params)
  assert all(not leaf.any() for leaf in jax.tree.leaves(updates["segmenter"]["trunk"]))
  assert all(leaf.all() for leaf in jax.tree.leaves(updates["segmenter"]["head_logits"]))


@pytest.mark.parametrize(
  ("overrides", "message"),
  [
    ({"optimizer.frozen_modules": ("trunks",)}, r"begins with 'trunks'; it has head_logits, trunk"),
    ({"reference_weights": "nowhere.pth"}, r"nowhere\.pth"),
    ({"segmenter_weights": "nowhere.pth"}, r"nowhere\.pth"),
  ],
)
def test_a_start_that_fails_leaves_no_directory(overrides, message, tmp_path, monkeypatch):
  config = small_run_config(tmp_path, monkeypatch, **overrides)
  with pytest.raises(UserError, match=message):
    train_and_evaluate(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_an_evaluation_needs_neither_the_reference_nor_its_features(tmp_path, monkeypatch):
  config = small_run_config(tmp_path, monkeypatch, **{"data.cache_reference_features": True, "num_steps": 1})
  results = train_and_evaluate(config, tmp_path / "run")
  (folder,) = (tmp_path / "cache").rglob("reference_features")
  shutil.rmtree(folder)
  monkeypatch.setattr(setup, "load_reference", None)
  assert evaluate_run(config, tmp_path / "run") == results
  assert not folder.exists()
