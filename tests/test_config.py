"""The configuration: complete, locked, checked."""

import importlib.util
import pathlib

import pytest

from scops_jax.config import check_values, default_config
from scops_jax.errors import UserError

CONFIGS = sorted((pathlib.Path(__file__).parent.parent / "configs").glob("*.py"))


def load(path: pathlib.Path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config()


def test_release_weights_follow_from_the_changed_reductions():
  config = default_config()
  # method.md: 10 / B and 1000 / (K + 1) at B = 6, K = 8; the others are the release's.
  assert config.loss.concentration == pytest.approx(1.6667, abs=1e-4)
  assert config.loss.equivariance == pytest.approx(111.1, abs=0.02)
  assert (config.loss.landmark_equivariance, config.loss.semantic_consistency) == (100.0, 1e4)
  assert config.loss.orthonormality == 0.1


def test_terms_beyond_the_paper_are_off_by_default():
  loss = default_config().loss
  assert loss.background == loss.balance == 0.0
  assert not default_config().semantic_assigned
  assert default_config().spatial.mirror_probability == 0.0


def test_the_config_is_locked():
  config = default_config()
  with pytest.raises(AttributeError, match="num_parts"):
    config.num_part = 4
  with pytest.raises(TypeError):
    config.num_parts = "many"
  with pytest.raises(AttributeError):
    config.loss.semantic = 1.0


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_are_valid_and_have_the_same_keys(path):
  config = load(path)
  check_values(config)
  assert config.is_locked
  assert config.to_dict().keys() == default_config().to_dict().keys()


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("num_parts", -1, "num_parts=-1 must be at least 1, or 0 to be chosen"),
    ("checkpoint_every", 0, "checkpoint_every=0 must be at least 1"),
    ("num_parts", 300, "at most 255"),
    ("batch_size", -1, "batch_size=-1"),
    ("parallelism", "threads", "parallelism='threads' is not one of jit, pmap"),
    ("spatial.mode", "affine", "spatial.mode='affine'"),
    ("optimizer.name", "lion", "sgd, adam"),
    ("spatial.scale_low", 3.0, "scale_high"),
    ("crf.num_iterations", -1, "crf.num_iterations=-1 must not be negative"),
    ("crf.color_sigma", 0.0, "crf.color_sigma=0.0 must be positive"),
    ("data.landmark_normalizer", "eyes", "inter_ocular"),
    ("sync_batch_norm", False, "sync_batch_norm=False needs parallelism"),
  ],
)
def test_wrong_values_name_key_and_choices(key, value, message):
  config = default_config()
  config.update_from_flattened_dict({key: value})
  with pytest.raises(UserError, match=message):
    check_values(config)


def test_repeated_updates_are_of_sgd():
  config = default_config()
  config.optimizer.repeat_updates = True
  check_values(config)
  config.optimizer.name = "adam"
  with pytest.raises(UserError, match=r"optimizer\.repeat_updates=True needs optimizer\.name"):
    check_values(config)
