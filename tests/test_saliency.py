"""Computed saliency maps: written once, kept where edited, replaced where images changed, used by a run."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from scops_jax.data.collection import open_collection
from scops_jax.data.saliency_maps import map_path
from scops_jax.errors import UserError
from scops_jax.runs import setup
from scops_jax.saliency import maps
from tests import tiny

HEIGHT, WIDTH = 40, 60


def draw(seed):
  """A bright ellipse on a dark ground `[HEIGHT, WIDTH, 3]`, and where it is."""
  rng = np.random.default_rng(seed)
  rows, columns = np.mgrid[:HEIGHT, :WIDTH]
  inside = ((rows - rng.uniform(16, 24)) / 11) ** 2 + ((columns - rng.uniform(24, 36)) / 15) ** 2 < 1
  back, front = rng.uniform(0, 90, 3), rng.uniform(160, 255, 3)
  image = np.where(inside[..., None], front, back) + rng.normal(0, 4, (HEIGHT, WIDTH, 3))
  return np.clip(image, 0, 255).astype(np.uint8), inside


@pytest.fixture
def config(tmp_path, monkeypatch):
  options = {"reference_image_size": 64, "data.saliency": "auto", "auto_saliency.num_images": 4}
  return tiny.folder_config(tmp_path, monkeypatch, [draw(index)[0] for index in range(6)], **options)


def test_maps_are_written_kept_and_used(config, capsys):
  folder = pathlib.Path(config.data.dir) / "saliency_auto"
  setup.prepare(config)
  assert f"wrote 6 saliency maps to {folder}" in capsys.readouterr().out
  assert sorted(path.name for path in folder.iterdir()) == [f"{i}.png" for i in range(6)]
  for index in range(6):
    with Image.open(folder / f"{index}.png") as picture:
      found = np.asarray(picture) >= 128
    truth = draw(index)[1]
    assert (found & truth).sum() / (found | truth).sum() > 0.8

  # One is edited, one removed, the image of a third changes.
  edited = np.full((HEIGHT, WIDTH), 77, np.uint8)
  Image.fromarray(edited).save(folder / "0.png")
  (folder / "1.png").unlink()
  Image.fromarray(draw(99)[0]).save(pathlib.Path(config.data.dir) / "images" / "2.png")
  times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
  setup.prepare(config)
  assert "wrote 2 saliency maps" in capsys.readouterr().out
  assert {n for n, t in times.items() if (folder / n).stat().st_mtime_ns != t} == {"2.png"}
  np.testing.assert_array_equal(open_collection(config).train[0]["saliency"], edited)


def test_an_interrupted_preparation_goes_on(config, monkeypatch):
  folder = pathlib.Path(config.data.dir) / "saliency_auto"
  written = []

  def interrupted(path, *arguments):
    if len(written) == 3:
      raise KeyboardInterrupt
    written.append(path)
    original(path, *arguments)

  original = maps.write_map
  monkeypatch.setattr(maps, "write_map", interrupted)
  with pytest.raises(KeyboardInterrupt):
    setup.prepare(config)
  assert sorted(folder.iterdir()) == sorted(written)
  monkeypatch.setattr(maps, "write_map", original)
  setup.prepare(config)
  assert len(list(folder.iterdir())) == 6


def test_other_collections_keep_their_maps_beside_the_data_set(config):
  config.data.name = "toy_faces"
  config.toy_faces.num_train, config.toy_faces.num_test = 3, 1
  setup.prepare(config)
  collection = open_collection(config)
  assert collection.maps == pathlib.Path(config.data.cache_dir) / "toy_faces/train3-test1-seed0/saliency_auto"
  assert (collection.maps / "test" / "000000.png").is_file()
  with Image.open(collection.maps / "train" / "000002.png") as picture:
    np.testing.assert_array_equal(collection.train[2]["saliency"], np.asarray(picture))


def test_a_missing_or_broken_map_says_so(config):
  collection = open_collection(config)
  with pytest.raises(UserError, match=r"no saliency map .*0\.png.*prepare"):
    collection.train.read(0, ["saliency"])
  (collection.maps).mkdir()
  (collection.maps / "0.png").write_bytes(b"no picture")
  with pytest.raises(
    UserError, match=r"0\.png is not a JPEG, .* that can be read: repair or delete this saliency map"
  ):
    setup.prepare(config)


def test_a_map_of_another_size_is_resized(config):
  collection = open_collection(config)
  collection.maps.mkdir()
  Image.fromarray(np.full((10, 15), 200, np.uint8)).save(collection.maps / "0.png")
  np.testing.assert_array_equal(
    collection.train.read(0, ["saliency"])["saliency"], np.full((HEIGHT, WIDTH), 200)
  )


@pytest.mark.parametrize(
  ("name", "expected"),
  [("a/b.JPG", "a/b.png"), ("train/000001", "train/000001.png"), ("v1.2/x.y", "v1.2/x.y.png")],
)
def test_the_place_of_a_map(name, expected):
  assert map_path(pathlib.Path("maps"), name) == pathlib.Path("maps") / expected


class _Ramp:
  """A reference whose two maps hold the columns' and rows' positions in the framed image."""

  def apply(self, variables, images):
    size = images.shape[1]
    columns = jnp.broadcast_to(jnp.linspace(0, size - 1, 11), (len(images), 11, 11))
    finer = jnp.broadcast_to(jnp.linspace(0, size - 1, 21)[:, None], (len(images), 21, 21))
    one = jnp.ones_like
    return (
      jnp.stack([columns, one(columns)], axis=-1),
      jnp.stack([finer, one(finer)], axis=-1),
    )


def test_the_grid_covers_the_image_without_its_margin(config):
  networks = tiny.networks()._replace(reference=_Ramp())
  grid = functools.partial(maps.reference_grid, None, networks=networks, config=config)
  found = np.asarray(jax.jit(grid)(np.zeros((2, 16, 24, 3), np.uint8)))
  assert found.shape == (2, 9, 9, 4)  # 11 cells over 64 + 2 × 8 pixels
  positions = np.linspace(8, 71, 9)
  np.testing.assert_allclose(found[0, 3, :, 0] / found[0, 3, :, 1], positions, rtol=1e-5)
  np.testing.assert_allclose(found[1, :, 5, 2] / found[1, :, 5, 3], positions, rtol=1e-5)
  np.testing.assert_allclose(np.square(found[..., :2]).sum(axis=-1), 1, atol=1e-5)
