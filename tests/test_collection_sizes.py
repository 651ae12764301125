"""Sizes that follow from the collection: the rules, what the user chose, what a run has already."""

import numpy as np
import pytest
from PIL import Image

from configs import folder
from scops_jax.config import FROM_COLLECTION, check_values, default_config
from scops_jax.data.collection import open_collection
from scops_jax.runs.sizes import choose_sizes, suitable_sizes
from scops_jax.runs.workdir import load_config, open_workdir


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
  collection = open_collection(config)
  chosen = choose_sizes(config, collection, workdir=tmp_path / "run")
  assert [chosen[key] for key in FROM_COLLECTION] == [3, 300, 150, 80, 241]  # the middle edge is 92
  assert chosen.reference_layers == ("block13_depthwise", "block15_depthwise")
  assert chosen.is_locked
  assert config.num_steps == 0
  assert len(collection.train) == 5
  assert "num_steps=300, eval_every=150, image_size=80" in capsys.readouterr().out
  check_values(chosen)


def test_a_run_keeps_those_it_began_with(config, tmp_path):
  chosen = choose_sizes(config, open_collection(config), workdir=None)
  workdir = open_workdir(tmp_path / "run", chosen)
  assert load_config(workdir).num_steps == 300
  for index in range(10, 20):
    Image.fromarray(np.full((300, 300, 3), index, np.uint8)).save(tmp_path / "own/images" / f"{index}.png")
  larger = open_collection(config)
  again = choose_sizes(config, larger, workdir=workdir)
  assert again.to_dict() == chosen.to_dict()
  assert choose_sizes(config, larger, workdir=None).image_size == 128


def test_a_config_without_zeros_stays_as_it_is(tmp_path):
  config = default_config()
  assert choose_sizes(config, None, workdir=tmp_path) is config
