"""An exported program runs without this package and gives the predictor's numbers."""

import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import ExifTags, Image

from scops_jax.data.image_files import read_image, resize_image
from scops_jax.geometry import pixels_from_points
from scops_jax.prediction.predictor import Predictor, predict_parts
from scops_jax.prediction.program_file import PLATFORMS, PROGRAM, export_program
from tests import tiny_run


@pytest.fixture(scope="module")
def segmenter():
  return tiny_run.efficientnet_segmenter()


@pytest.fixture(scope="module")
def exported(segmenter, tmp_path_factory):
  return export_program(segmenter, tmp_path_factory.mktemp("export") / "new" / "folder")


def write_pictures(folder):
  """Writes an image in every form that needs converting."""
  rng = np.random.default_rng(0)
  blocks = np.kron(rng.integers(0, 256, (10, 12, 3)), np.ones((4, 4, 1))).astype(np.uint8)
  grey = np.kron(rng.integers(0, 65536, (9, 9)), np.ones((5, 5))).astype(np.uint16)
  turned = Image.Exif()
  turned[ExifTags.Base.Orientation] = 6
  Image.fromarray(blocks).save(folder / "rgb.png")
  Image.fromarray(blocks).save(folder / "turned.jpg", exif=turned)
  Image.fromarray(grey).save(folder / "grey16.png")
  Image.fromarray((grey >> 8).astype(np.uint8)).save(folder / "grey.png")
  Image.fromarray(np.dstack([blocks, blocks[..., 1]])).save(folder / "rgba.png")
  return sorted(path.name for path in folder.iterdir())


def test_the_script_alone_labels_as_the_predictor_does(segmenter, exported, tmp_path):
  (tmp_path / "in").mkdir()
  names = write_pictures(tmp_path / "in")
  # Hides the package from the script, wherever it is installed.
  code = (
    "import sys, runpy\nsys.modules['scops_jax'] = None\nscript, *names = sys.argv[1:]\n"
    "for name in names:\n  sys.argv = [script, f'in/{name}', f'{name}.npz']\n"
    "  runpy.run_path(script, run_name='__main__')"
  )
  command = [sys.executable, "-I", "-c", code, str(exported.with_name("run.py")), *names]
  subprocess.run(command, check=True, cwd=tmp_path)

  predict = Predictor(segmenter)
  # On a CPU the predictor has convolutions of its own, where the script uses XLA's: they round differently.
  weights = segmenter.params, segmenter.batch_stats
  same = jax.jit(lambda images: predict_parts(segmenter, images, weights))
  for name in names:
    image = read_image(tmp_path / "in" / name).image
    square = resize_image(image, 32)[None]
    expected, at_square, exact = predict(np.asarray(image)[None]), predict(square), same(square)
    assert len(np.unique(expected.labels)) > 1
    with np.load(tmp_path / f"{name}.npz") as found:
      np.testing.assert_allclose(found["probs"], exact.probs[0], atol=1e-5)
      np.testing.assert_allclose(found["centers"], exact.centers[0], atol=1e-5)
      np.testing.assert_allclose(found["probs"], at_square.probs[0], atol=1e-4)
      np.testing.assert_allclose(found["centers"], at_square.centers[0], atol=2e-4)
      assert found["labels"].dtype == np.uint8
      assert (found["labels"] == expected.labels[0]).mean() > 0.999, name
      width, height = image.size
      places = pixels_from_points(found["centers"], width=width, height=height, square=32)
      np.testing.assert_allclose(found["pixels"], places, atol=1e-9)


@pytest.mark.parametrize(
  ("damaged", "said"),
  [(PROGRAM, f"{PROGRAM} is damaged"), ("image.png", "image.png can't be read: "), ("", "usage: ")],
)
def test_what_the_script_can_not_read_is_one_line(damaged, said, exported, tmp_path):
  shutil.copytree(exported.parent, tmp_path, dirs_exist_ok=True)
  Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "image.png")
  if damaged:
    with (tmp_path / damaged).open("r+b") as file:
      file.seek(40)
      file.write(b"?" * 20)
  arguments = ["image.png", "out.npz"] if damaged else []
  command = [sys.executable, "run.py", *arguments]
  result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
  assert result.returncode == 1
  (line,) = [line for line in result.stderr.splitlines() if line.startswith(("error: ", "usage: "))]
  assert said in line
  assert "Traceback" not in result.stderr


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
