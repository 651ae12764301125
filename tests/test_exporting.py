"""An exported program runs without this package and gives the predictor's numbers."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from scops_jax.prediction.exporting import PLATFORMS, PROGRAM, export_program
from scops_jax.prediction.predictor import Predictor, predict_parts
from tests import tiny_run


@pytest.fixture(scope="module")
def segmenter():
  return tiny_run.efficientnet_segmenter()


@pytest.fixture(scope="module")
def exported(segmenter, tmp_path_factory):
  return export_program(segmenter, tmp_path_factory.mktemp("export") / "new" / "folder")


def test_the_script_alone_gives_the_predictors_numbers(segmenter, exported, tmp_path):
  pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
  Image.fromarray(pixels).save(tmp_path / "image.png")
  # Hides the package from the script, wherever it is installed.
  hide = (
    "import sys, runpy; sys.modules['scops_jax'] = None; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
  )
  script = exported.with_name("run.py")
  command = [sys.executable, "-I", "-c", hide, str(script), "image.png", "out.npz"]
  subprocess.run(command, check=True, cwd=tmp_path)

  small = np.asarray(Image.fromarray(pixels).resize((32, 32), Image.Resampling.BILINEAR))
  expected = Predictor(segmenter)(small[None])
  assert len(np.unique(expected.labels)) > 1
  # On a CPU the predictor has convolutions of its own, where the script uses XLA's: they round differently.
  weights = segmenter.params, segmenter.batch_stats
  same = jax.jit(lambda images: predict_parts(segmenter, images, weights))(small[None])
  with np.load(tmp_path / "out.npz") as found:
    np.testing.assert_allclose(found["probs"], same.probs[0], atol=1e-5)
    np.testing.assert_allclose(found["centers"], same.centers[0], atol=1e-5)
    np.testing.assert_allclose(found["probs"], expected.probs[0], atol=1e-4)
    np.testing.assert_allclose(found["centers"], expected.centers[0], atol=1e-4)
    assert (found["labels"] == expected.labels[0]).mean() > 0.999


def test_one_file_serves_every_batch_size_and_platform(exported):
  program = jax.export.deserialize(exported.read_bytes())
  assert exported.name == PROGRAM
  assert program.platforms == PLATFORMS
  shape = program.in_avals[0].shape
  assert shape[1:] == (32, 32, 3)
  assert not jax.export.is_symbolic_dim(shape[1])
  assert jax.export.is_symbolic_dim(shape[0])
  assert [aval.dtype for aval in program.out_avals] == [np.uint8, np.float32, np.float32]


def test_the_readme_says_what_goes_in_and_out(exported):
  text = exported.with_name("README.md").read_text()
  assert "uint8 `[B, 32, 32, 3]`" in text
  assert "`[B, 32, 32, 4]`" in text
  assert "`[B, 3, 2]`" in text
  assert "efficientnet_lite0, 3 parts,\n7 training steps" in text
