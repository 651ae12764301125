"""A run found again in its work directory."""

import jax
import numpy as np
import pytest

from scops_jax import train_step
from scops_jax.config import default_config
from scops_jax.errors import UserError
from scops_jax.runs import setup
from scops_jax.runs.checkpoints import Checkpoints
from scops_jax.runs.workdir import open_workdir
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
  loaded = setup.load_config(tmp_path / "run")
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
    setup.load_config(tmp_path)


def test_a_run_without_a_checkpoint_is_an_error(tmp_path):
  open_workdir(tmp_path / "run", small_config())
  with pytest.raises(UserError, match="no checkpoint yet"):
    setup.load_segmenter(tmp_path / "run")


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

  segmenter = setup.load_segmenter(workdir)
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
  run = setup.set_up(config, tmp_path / "run", create=True)
  state = setup.initial_state(run, part_basis=None)
  gradients = jax.tree.map(np.ones_like, state.params)
  updates, _ = run.transformation.update(gradients, state.opt_state, state.params)
  assert all(not leaf.any() for leaf in jax.tree.leaves(updates["segmenter"]["trunk"]))
  assert all(leaf.all() for leaf in jax.tree.leaves(updates["segmenter"]["head_logits"]))


def test_a_frozen_module_that_there_is_not_is_an_error(tmp_path, monkeypatch):
  config = small_run_config(tmp_path, monkeypatch, **{"optimizer.frozen_modules": ("trunks",)})
  with pytest.raises(UserError, match=r"begins with 'trunks'; it has head_logits, trunk"):
    setup.set_up(config, tmp_path / "run", create=True)
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("has_dff", "computed"), [(True, False), (False, True)])
def test_an_evaluation_computes_kept_features_only_for_dff(has_dff, computed, tmp_path, monkeypatch):
  config = small_run_config(tmp_path, monkeypatch, **{"data.cache_reference_features": True})
  workdir = open_workdir(tmp_path / "run", config)
  if has_dff:
    (workdir / setup.DFF_FILE).touch()
  run = setup.set_up(config, workdir, create=False)
  assert (run.features is not None) == computed
  assert bool(list((tmp_path / "cache").rglob("reference_features"))) == computed
