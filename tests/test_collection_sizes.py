"""Sizes that follow from the collection: the rules, what the user chose, what a run has already."""

import json

import numpy as np
import pytest
from PIL import Image

from configs import folder
from scops_jax.config import FROM_COLLECTION, check_values, default_config
from scops_jax.data.collection import open_collection
from scops_jax.runs import setup
from scops_jax.runs.sizes import choose_sizes, suitable_sizes
from tests import tiny


@pytest.mark.parametrize(
  ("num_images", "edge", "expected"),
  [
    (900, 150, (8, 1000, 500, 128, 385)),
    (100, 500, (8, 350, 175, 128, 385)),
    (99, 100, (6, 350, 175, 96, 289)),
    (3600, 40, (8, 2000, 1000, 64, 193)),
  ],
)
def test_the_rules(num_images, edge, expected):
  found = suitable_sizes(folder.get_config(), num_images=num_images, edge=edge)
  assert tuple(found[key] for key in FROM_COLLECTION) == expected


def test_a_choice_of_the_user_decides_what_depends_on_it():
  config = folder.get_config()
  config.update({"num_steps": 101, "image_size": 64})
  found = suitable_sizes(config, num_images=900, edge=150)
  assert (found["eval_every"], found["reference_image_size"]) == (51, 193)


@pytest.fixture
def config(tmp_path):
  images = tmp_path / "own" / "images"
  images.mkdir(parents=True)
  for index in range(6):
    Image.fromarray(np.full((90 + index, 200, 3), 40 * index, np.uint8)).save(images / f"{index}.png")
  (tmp_path / "own" / "test.txt").write_text("5.png\n")
  config = folder.get_config()
  config.data.dir, config.data.cache_dir = str(tmp_path / "own"), str(tmp_path / "cache")
  config.data.saliency = "ones"
  config.num_parts = 3
  return config


def test_a_new_run_takes_them_from_the_images(config, tmp_path, capsys):
  chosen, collection = choose_sizes(config, tmp_path / "run", lambda: open_collection(config))
  assert [chosen[key] for key in FROM_COLLECTION] == [3, 300, 150, 80, 241]  # the middle edge is 92
  assert chosen.is_locked
  assert config.num_steps == 0
  assert len(collection.train) == 5
  assert "num_steps=300, eval_every=150, image_size=80" in capsys.readouterr().out
  check_values(chosen)


def test_a_run_keeps_those_it_began_with(config, tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(dict.fromkeys(FROM_COLLECTION, 77)))

  def refuse():
    raise AssertionError("the collection is not to be opened")

  chosen, collection = choose_sizes(config, tmp_path, refuse)
  assert [chosen[key] for key in FROM_COLLECTION] == [3, 77, 77, 77, 77]
  assert collection is None


def test_a_config_without_zeros_stays_as_it_is(tmp_path):
  config = default_config()
  assert choose_sizes(config, tmp_path, lambda: None) == (config, None)


def test_a_run_saves_what_was_chosen(config, tmp_path, monkeypatch):
  monkeypatch.setattr(setup, "create_networks", lambda config: tiny.networks())
  with config.unlocked():
    config.segmenter_weights = config.reference_weights = "random"
    config.optimizer.frozen_modules = ()  # the tiny segmenter has other modules
  setup.set_up(config, tmp_path / "run", create=True)
  assert setup.load_config(tmp_path / "run").num_steps == 300
  setup.set_up(config, tmp_path / "run", create=True)  # finds the same run
