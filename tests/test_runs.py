"""A run found again in its work directory."""

import jax
import numpy as np
import pytest

from scops_jax import optimizer, runs, train_step
from scops_jax.checkpoints import Checkpoints
from scops_jax.config import default_config
from scops_jax.errors import UserError
from scops_jax.train_step import TrainState
from scops_jax.workdir import open_workdir


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
  loaded = runs.load_config(tmp_path / "run")
  assert loaded.to_dict() == config.to_dict()
  with pytest.raises(AttributeError):
    loaded.unknown = 1


@pytest.mark.parametrize(
  ("text", "message"),
  [
    (None, "holds no run"),
    ("{", "holds no run"),
    ('{"colour": 1, "reference_layers": []}', "another version"),
  ],
)
def test_a_directory_without_a_config_is_an_error(text, message, tmp_path):
  if text is not None:
    (tmp_path / "config.json").write_text(text)
  with pytest.raises(UserError, match=message):
    runs.load_config(tmp_path)


def test_a_run_without_a_checkpoint_is_an_error(tmp_path):
  open_workdir(tmp_path / "run", small_config())
  with pytest.raises(UserError, match="no checkpoint yet"):
    runs.load_segmenter(tmp_path / "run")


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
  transformation = optimizer.make_optimizer(config, params)
  checkpoints = Checkpoints(workdir)
  for step in (1, 2):
    scaled = jax.tree.map(lambda leaf, step=step: leaf * step, params)
    state = TrainState(np.int32(step), scaled, variables["batch_stats"], transformation.init(params))
    checkpoints.save(step, jax.tree.map(jax.numpy.asarray, state), position={})
  checkpoints.close()

  segmenter = runs.load_segmenter(workdir)
  assert segmenter.step == 2
  assert segmenter.config.num_parts == 3
  jax.tree.map(
    np.testing.assert_array_equal,
    segmenter.params,
    jax.tree.map(lambda leaf: 2 * leaf, variables["params"]),
  )
  jax.tree.map(np.testing.assert_array_equal, segmenter.batch_stats, variables["batch_stats"])
  np.testing.assert_array_equal(segmenter.part_basis, np.maximum(2 * basis, 0))
