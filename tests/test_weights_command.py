"""python -m scops_jax.weights: what a file holds, which networks it fits, conversion and export."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from scops_jax import models, weights
from scops_jax.errors import UserError
from scops_jax.weights import inspection
from tests.weight_files import assert_same


def zeros(module):
  shapes = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32))
  return jax.tree.map(lambda shape: np.zeros(shape.shape, shape.dtype), shapes)


@pytest.fixture(scope="module")
def deeplab():
  """A state dict of deeplab50_2branch with 4 parts, under a prefix."""
  variables = zeros(models.create_segmenter("deeplab50_2branch", 4))
  state_dict = weights.to_state_dict(variables, model_name="deeplab50_2branch")
  return {f"module.{name}": value for name, value in state_dict.items()}


def test_finds_the_network_and_its_parts(deeplab):
  (fit,) = inspection.find_fits(deeplab, model_name="deeplab50_2branch")
  assert (fit.match.complete, fit.num_parts, len(fit.match.filled)) == (True, 4, 273)
  text = inspection.describe(deeplab, [fit], details=False)
  assert "module.conv1.weight" in text
  assert "float32  64×3×7×7" in text
  assert "326 entries" in text
  assert "deeplab50_2branch (segmenter): fits: 273 matched, 53 unused" in text
  assert "head of 4 parts" in text


def test_names_what_does_not_fit(deeplab):
  fits = inspection.find_fits(deeplab, model_name="deeplab50", num_parts=8)
  text = inspection.describe(deeplab, fits, details=True)
  assert "deeplab50 (segmenter): does not fit: 265 matched, 53 unused, 0 unknown, 8 mis-shaped" in text
  assert "layer5.conv2d_list.0.weight: shape (5, 1024, 3, 3), expected (9, 2048, 3, 3)" in text


def test_converting_removes_the_prefix_and_if_asked_the_head(deeplab):
  fits = inspection.find_fits(deeplab, model_name="deeplab50_2branch")
  stripped = {name.removeprefix("module."): value for name, value in deeplab.items()}
  converted = inspection.convert(deeplab, fits)
  assert list(converted) == list(stripped)
  assert_same(converted, stripped)
  backbone = inspection.convert(deeplab, fits, drop_head=True)
  assert stripped.keys() - backbone.keys() == {
    f"layer5.conv2d_list.{i}.{entry}" for i in range(4) for entry in ("weight", "bias")
  }
  with pytest.raises(UserError, match="--drop_head"):
    inspection.convert({"W": np.zeros((2, 3))}, [], drop_head=True)


def test_tells_vgg_networks_apart():
  state_dict = weights.to_state_dict(
    zeros(models.create_reference("vgg16", ("relu5_3",))), model_name="vgg16"
  )
  state_dict |= {"classifier.6.weight": np.zeros((2, 3)), "classifier.6.bias": np.zeros(2)}
  fits = inspection.find_fits(state_dict)
  assert (fits[0].model_name, fits[0].match.complete) == ("vgg16", True)
  assert not any(fit.match.complete for fit in fits[1:])
  assert (
    inspection.describe(state_dict, fits, details=False)
    .splitlines()[-1]
    .startswith("vgg16 (reference): fits")
  )


def test_part_bases_and_other_files(tmp_path):
  raw = np.array([[1.0, -2.0, 3.0]])
  basis = {"W": np.maximum(raw, 0), "W_state_dict.w": raw}
  assert inspection.find_fits(basis) == []
  assert "part basis: 1 parts, 3 channels" in inspection.describe(basis, [], details=False)
  assert_same(inspection.convert(basis, []), {"W": raw.astype(np.float32)})
  assert "fits none" in inspection.describe({"a": raw[0]}, [], details=False)


def test_output_path(tmp_path):
  file = tmp_path / "a.v2.pth"
  assert inspection.output_path(file, out=None, to="safetensors") == tmp_path / "a.v2.safetensors"
  assert inspection.output_path(tmp_path, out=None, to="npz") == tmp_path / "segmenter.npz"
  assert inspection.output_path(file, out="b.npz", to=None).name == "b.npz"
  with pytest.raises(UserError, match=r"--out=b\.npz does not end with \.safetensors, as --to=safetensors"):
    inspection.output_path(file, out="b.npz", to="safetensors")


def run_command(*arguments, before=""):
  """Runs `python -m scops_jax.weights` after the code `before`; returns its code, output and error."""
  code = f"{before}\nimport runpy\nrunpy.run_module('scops_jax.weights', run_name='__main__', alter_sys=True)"
  command = [sys.executable, "-c", code, *map(str, arguments)]
  result = subprocess.run(command, capture_output=True, text=True, check=False)
  lines = result.stderr.splitlines(keepends=True)
  return result.returncode, result.stdout, "".join(line for line in lines if not line.startswith("loading "))


def test_command_overwrites_nothing(tmp_path):
  np.savez(tmp_path / "basis.npz", W=np.ones((2, 3), np.float32))
  new = tmp_path / "basis.safetensors"
  new.touch()
  code, out, error = run_command(tmp_path / "basis.npz", "--to=safetensors")
  assert "part basis: 2 parts, 3 channels" in out
  assert (code, error) == (1, f"error: {new} already exists: give another --out\n")
  assert new.stat().st_size == 0


def test_command_refuses_to_write_pytorch_files(tmp_path):
  np.savez(tmp_path / "basis.npz", W=np.ones((2, 3), np.float32))
  code, _, error = run_command(tmp_path / "basis.npz", f"--out={tmp_path}/new.pth")
  assert code == 1
  assert error.startswith(
    f"error: {tmp_path}/new.pth: weights are written as .safetensors, which PyTorch loads"
  )
  assert [path.name for path in tmp_path.iterdir()] == ["basis.npz"]


STAND_IN = """
import jax, numpy as np
from scops_jax import models
from scops_jax.prediction import restore
from scops_jax.config import default_config
module = models.create_segmenter("efficientnet_lite0", 8)
shapes = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32))
trained = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
restore.load_segmenter = lambda workdir: restore.Segmenter(
  default_config(), None, trained["params"], trained["batch_stats"], np.ones((8, 5), np.float32), 7)
"""


def test_command_exports_a_run(tmp_path):
  code, out, error = run_command(tmp_path, "--to=safetensors", before=STAND_IN)
  assert (code, error) == (0, "")
  assert "efficientnet_lite0 after 7 steps" in out
  state_dict = weights.load_state_dict(tmp_path / "segmenter.safetensors")
  assert weights.head_num_parts(state_dict, model_name="efficientnet_lite0") == 8
  basis = weights.load_state_dict(tmp_path / "segmenter_basis.safetensors")
  assert {name: value.shape for name, value in basis.items()} == {"W": (8, 5)}
