"""load_predictor and Predictor: sizes, batches, checks, the CRF, and importing them lazily."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import ExifTags, Image

import scops_jax
from scops_jax import geometry
from scops_jax.data.image_files import resize_pixels
from scops_jax.errors import UserError
from scops_jax.prediction import predictor
from scops_jax.prediction.labels import resize_maps
from scops_jax.prediction.predictor import Predictor, open_picture, padded_batch_size
from scops_jax.report.palette import part_colors
from tests import tiny, tiny_run


@pytest.fixture(scope="module")
def segmenter():
  return tiny_run.tiny_segmenter()


def test_the_predictor_resizes_maps_back(segmenter):
  images = np.random.default_rng(0).integers(0, 256, (3, 20, 24, 3), np.uint8)
  result = Predictor(segmenter, batch_size=4)(images)
  assert result.labels.shape == (3, 20, 24)
  assert result.labels.dtype == np.uint8
  assert result.probs.shape == (3, 20, 24, tiny.NUM_PARTS + 1)
  assert result.centers.shape == (3, tiny.NUM_PARTS, 2)
  assert {result.probs.dtype, result.centers.dtype} == {np.dtype(np.float32)}
  small = np.stack([resize_pixels(image, 16) for image in images])
  maps = predictor.predict_parts(segmenter, small, (segmenter.params, segmenter.batch_stats))
  expected = [resize_maps(np.asarray(probs), 20, 24) for probs in maps.probs]
  np.testing.assert_allclose(result.probs, expected, atol=1e-5)
  np.testing.assert_allclose(result.centers, maps.centers, atol=1e-5)
  np.testing.assert_array_equal(result.labels, result.probs.argmax(-1))


def test_the_predictor_at_the_networks_size_in_several_batches(segmenter):
  images = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)
  result = Predictor(segmenter, batch_size=4)(images)
  one_by_one = [Predictor(segmenter, batch_size=1)(image[None]) for image in images]
  for name in result._fields:
    expected = np.concatenate([getattr(single, name) for single in one_by_one])
    np.testing.assert_allclose(getattr(result, name), expected, atol=1e-5)


def test_wrong_images_raise(segmenter):
  predict = Predictor(segmenter)
  with pytest.raises(TypeError, match="uint8"):
    predict(np.zeros((1, 16, 16, 3), np.float32))
  for shape in ((16, 16), (16, 16, 1), (1, 16, 16, 1), (0, 16, 16, 3), (0, 16, 3)):
    with pytest.raises(ValueError, match=r"\[B, H, W, 3\]"):
      predict(np.zeros(shape, np.uint8))
  with pytest.raises(TypeError, match="expected a path"):
    predict(3)
  with pytest.raises(UserError, match=r"nothing\.jpg .*No such file"):
    predict("nothing.jpg")
  with pytest.raises(ValueError, match="batch_size"):
    Predictor(segmenter, batch_size=0)


def test_images_of_any_kind_and_size(segmenter, tmp_path):
  rng = np.random.default_rng(0)
  pixels = [
    rng.integers(0, 256, (height, width, 3), np.uint8) for height, width in ((20, 24), (16, 16), (9, 40))
  ]
  turned = Image.Exif()
  turned[ExifTags.Base.Orientation] = 6
  Image.fromarray(pixels[0]).save(tmp_path / "a.png")
  Image.fromarray(np.rot90(pixels[2])).save(tmp_path / "turned.png", exif=turned)
  grey = Image.fromarray(pixels[1][..., 0])
  images = [tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(pixels[1]), pixels[2], grey]
  predict = Predictor(segmenter, batch_size=4)
  found = predict([*images, tmp_path / "turned.png"])
  expected = [pixels[0], pixels[0], pixels[1], pixels[2], np.repeat(pixels[1][..., :1], 3, axis=2), pixels[2]]
  for one, image in zip(found, expected, strict=True):
    whole = predict(image[None])
    assert one.labels.shape == image.shape[:2]
    for name, value in whole._asdict().items():
      np.testing.assert_allclose(getattr(one, name), value[0], atol=1e-5)
  keyed = Image.fromarray(np.zeros((16, 16, 3), np.uint8))
  keyed.info["transparency"] = (0, 0, 0)
  np.testing.assert_array_equal(open_picture(keyed), np.full((16, 16, 3), 255))
  alone = predict(tmp_path / "a.png")
  np.testing.assert_array_equal(alone.labels, found[0].labels)
  assert predict([]) == []


def test_the_overlay(segmenter):
  pixels = np.random.default_rng(0).integers(0, 256, (300, 500, 3), np.uint8)
  predict = Predictor(segmenter)
  labels = predict(pixels).labels
  plain = np.asarray(predict.overlay(pixels, numbers=False, legend=False))
  np.testing.assert_array_equal(plain[labels == 0], pixels[labels == 0])
  hidden = predict.overlay(Image.fromarray(pixels), shown=(), numbers=True, legend=False)
  np.testing.assert_array_equal(np.asarray(hidden), pixels)
  only = np.asarray(predict.overlay(pixels, shown=[2], opacity=1.0, numbers=False, legend=False))
  np.testing.assert_array_equal(only[labels != 2], pixels[labels != 2])
  assert (only[labels == 2] == part_colors(2)[1]).all()
  marked = predict.overlay(pixels)
  assert marked.width == 500
  assert marked.height > 300
  assert predict.overlay(pixels[:40, :30]).size[0] == 240  # enlarged


def test_batches_are_powers_of_two():
  assert [padded_batch_size(n, 32) for n in (1, 2, 3, 5, 31, 32, 33, 1000)] == [1, 2, 4, 8, 32, 32, 32, 32]
  assert padded_batch_size(7, 6) == 6


def test_crf_refines_maps_and_centres(segmenter):
  blocks = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3), np.uint8)
  images = blocks.repeat(4, axis=1).repeat(4, axis=2)
  plain = jax.device_get(predictor.compile_segmenter(segmenter)(images))
  refined = jax.device_get(predictor.compile_segmenter(segmenter, crf=True)(images))
  assert np.abs(refined.probs - plain.probs).max() > 0.01
  np.testing.assert_array_equal(refined.labels, refined.probs.argmax(-1))
  np.testing.assert_allclose(refined.centers, geometry.part_centers(refined.probs, epsilon=0.0), atol=1e-6)


def test_the_package_imports_the_predictor_only_when_asked():
  code = (
    "import sys, scops_jax; assert 'load_predictor' in dir(scops_jax); "
    "print([name for name in ('jax', 'flax', 'numpy', 'PIL') if name in sys.modules])"
  )
  result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert result.stdout.strip() == "[]"
  with pytest.raises(AttributeError, match="no attribute 'nothing'"):
    _ = scops_jax.nothing
  with pytest.raises(UserError, match="there is no such run"):
    scops_jax.load_predictor("does/not/exist")
