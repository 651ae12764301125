"""A run's directory as training leaves it, with random weights and without training."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from scops_jax.config import default_config
from scops_jax.prediction.restore import Segmenter
from scops_jax.runs.checkpoints import Checkpoints
from scops_jax.runs.workdir import open_workdir
from scops_jax.train_step import TrainState, create_networks, create_optimizer
from tests import tiny

NUM_PARTS, IMAGE_SIZE, STEP = 3, 32, 7


def efficientnet_segmenter() -> Segmenter:
  """Returns an EfficientNet-Lite0 of random weights whose maps vary over the image, at 32²."""
  config = default_config()
  with config.unlocked():
    config.num_parts, config.image_size, config.reference_image_size = NUM_PARTS, IMAGE_SIZE, 33
    config.reference_layers = ("stem",)
    config.optimizer.momentum = 0.0
  networks = create_networks(config)
  image = np.zeros((1, IMAGE_SIZE, IMAGE_SIZE, 3), np.float32)
  variables = jax.eval_shape(networks.segmenter.init, jax.random.key(0), image)
  rng = np.random.default_rng(0)

  def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    name = path[-1].key
    if name in ("scale", "var"):
      return np.ones(leaf.shape, np.float32)
    if name in ("bias", "mean"):
      return np.zeros(leaf.shape, np.float32)
    # He's deviation, but a large last layer: clear labels.
    deviation = 3.0 if path[-2].key == "head_logits" else (2 / np.prod(leaf.shape[:-1])) ** 0.5
    return (deviation * rng.standard_normal(leaf.shape)).astype(np.float32)

  variables = jax.tree_util.tree_map_with_path(draw, variables)
  basis = np.ones((NUM_PARTS, networks.basis.num_channels), np.float32)
  return Segmenter(config, networks, variables["params"], variables["batch_stats"], basis, STEP)


def write_run(path: pathlib.Path) -> pathlib.Path:
  """Writes the config and a checkpoint of efficientnet_segmenter."""
  segmenter = efficientnet_segmenter()
  params = {"segmenter": segmenter.params, "basis": {"raw": segmenter.part_basis}}
  opt_state = create_optimizer(segmenter.networks, params, segmenter.config).init(params)
  state = TrainState(jnp.int32(STEP), params, segmenter.batch_stats, opt_state)
  checkpoints = Checkpoints(open_workdir(path, segmenter.config))
  checkpoints.save(STEP, jax.tree.map(jnp.asarray, state), position={})
  checkpoints.close()
  return path


def tiny_segmenter(seed: int = 0) -> Segmenter:
  """Returns two convolutions as a run's network at 16², K = tiny.NUM_PARTS; compiles in no time."""
  networks = tiny.networks()
  image = jnp.zeros((1, 16, 16, 3))
  params = networks.segmenter.init(jax.random.key(seed), image)["params"]
  basis = np.ones((tiny.NUM_PARTS, tiny.CHANNELS), np.float32)
  return Segmenter(tiny.config(), networks, params, {}, basis, STEP)
