"""A network in one .scops file: the same predictions, nothing of the writer's, damaged and hostile files."""

import io
import json
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest
import safetensors.numpy

import scops_jax
from scops_jax.errors import UserError
from scops_jax.prediction import model_file
from scops_jax.prediction.model_file import read_model, write_model
from scops_jax.prediction.predictor import Predictor
from scops_jax.prediction.restore import load_segmenter
from tests import tiny_run

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 40, 30, 3), np.uint8)
NAMES = ("head", "body", "tail")


@pytest.fixture(scope="module")
def segmenter():
  segmenter = tiny_run.efficientnet_segmenter()
  with segmenter.config.unlocked():
    segmenter.config.data.dir = "/home/someone/photos"
    segmenter.config.reference_weights = "/home/someone/weights/net.pth"
  return segmenter._replace(part_names=NAMES, evaluation={"foreground_iou": 0.5, "nmi": None})


@pytest.fixture(scope="module")
def model(segmenter, tmp_path_factory):
  path = tmp_path_factory.mktemp("model") / "new" / "tiny.scops"
  write_model(segmenter, path)
  return path


def rewrite(model, path, *, description=None, weights=None, digest=True, **options):
  """Writes a changed copy, with its digest made right."""
  with zipfile.ZipFile(model) as archive:
    values = json.loads(archive.read("model.json")) | (description or {})
    data = archive.read("weights.safetensors") if weights is None else weights
  if digest:
    del values["digest"]
    values["digest"] = model_file._digest(values, data)
  with zipfile.ZipFile(path, "w", **options) as archive:
    archive.writestr("model.json", json.dumps(values))
    archive.writestr("weights.safetensors", data)
  return path


def test_a_file_gives_what_the_network_gives(segmenter, model):
  found = read_model(model)
  jax.tree.map(np.testing.assert_array_equal, found.params, jax.device_get(segmenter.params))
  jax.tree.map(np.testing.assert_array_equal, found.batch_stats, jax.device_get(segmenter.batch_stats))
  np.testing.assert_array_equal(found.part_basis, segmenter.part_basis)
  assert (found.step, found.part_names, found.evaluation) == (tiny_run.STEP, NAMES, segmenter.evaluation)
  loaded = scops_jax.load_predictor(model)(IMAGES)
  for name, value in Predictor(segmenter)(IMAGES)._asdict().items():
    np.testing.assert_array_equal(getattr(loaded, name), value)


def test_the_same_network_gives_the_same_bytes_and_no_path_of_the_writer(segmenter, model, tmp_path):
  write_model(segmenter, tmp_path / "again.scops")
  data = (tmp_path / "again.scops").read_bytes()
  assert data == model.read_bytes()
  assert b"someone" not in data
  assert read_model(model).config.reference_weights == "net.pth"


def test_float16_halves_the_file_and_barely_moves_the_maps(segmenter, model, tmp_path):
  write_model(segmenter, tmp_path / "half.scops", dtype="float16")
  assert (tmp_path / "half.scops").stat().st_size < 0.55 * model.stat().st_size
  half = Predictor(read_model(tmp_path / "half.scops"))(IMAGES)
  assert (half.labels == Predictor(segmenter)(IMAGES).labels).mean() > 0.99


def test_what_can_not_be_written(segmenter, tmp_path):
  with pytest.raises(UserError, match=r"model\.zip should end with \.scops"):
    write_model(segmenter, tmp_path / "model.zip")
  with pytest.raises(UserError, match="part_names has 1 names, the network 3 parts"):
    write_model(segmenter._replace(part_names=("head",)), tmp_path / "x.scops")
  with pytest.raises(UserError, match="printable"):
    write_model(segmenter._replace(part_names=("a", "b\n", "c")), tmp_path / "x.scops")
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match=r"out=.* can't be written"):
    write_model(segmenter, tmp_path / "file" / "x.scops")
  large = jax.tree.map(lambda leaf: 1e6 * np.ones_like(leaf), segmenter.params)
  with pytest.raises(ValueError, match="infinite"), np.errstate(over="ignore"):
    write_model(segmenter._replace(params=large), tmp_path / "x.scops", dtype="float16")
  assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"format": "other"}, "another format"),
    ({"format_version": 2}, "format version is 2, this scops_jax reads 1"),
    ({"part_names": ["a"]}, "1 names"),
    ({"config": {"num_parts": 4}}, "3 names, the network 4 parts"),
    ({"config": {"num_parts": 4}, "part_names": []}, "the part basis has shape"),
    ({"config": {"no_such_key": 4}}, "no_such_key"),
    ({"config": {"image_size": 10**9}}, "image_size"),
    ({"config": {"segmenter": "__import__('os')"}}, "segmenter"),
    ({"config": 3}, "int"),
  ],
)
def test_wrong_descriptions_are_errors(change, message, model, tmp_path):
  if isinstance(change.get("config"), dict):
    with zipfile.ZipFile(model) as archive:
      config = json.loads(archive.read("model.json"))["config"]
    del config["digest"]
    change = change | {"config": config | change["config"]}
  with pytest.raises(UserError, match=message):
    read_model(rewrite(model, tmp_path / "x.scops", description=change))


def test_damage_and_hostile_files_are_errors(segmenter, model, tmp_path):
  data = model.read_bytes()
  path = tmp_path / "x.scops"

  def refused(message):
    with pytest.raises(UserError, match=message):
      load_segmenter(path)

  for content in (b"", b"no zip", data[: len(data) // 2], data[1000:]):
    path.write_bytes(content)
    refused("is no model")
  flipped = bytearray(data)
  flipped[len(data) // 2] ^= 1
  path.write_bytes(flipped)
  refused("CRC")
  rewrite(model, path, weights=b"\0" * 10**6, compression=zipfile.ZIP_DEFLATED)  # a bomb
  refused("model.json is compressed")
  rewrite(model, path, digest=False, description={"step": 8})
  refused("not what was written")
  rewrite(model, path, weights=b"\xff" * 7 + b"\0" + b"{}")
  refused("header")
  for name, array, message in (
    ("params/extra", np.zeros(3, np.float32), "not those of efficientnet_lite0"),
    ("params/stem/kernel", np.array([1], np.int32), "int32"),
    ("part_basis", np.full((3, 4), np.nan, np.float32), "NaN"),
  ):
    with zipfile.ZipFile(model) as archive:
      arrays = safetensors.numpy.load(archive.read("weights.safetensors"))
    rewrite(model, path, weights=safetensors.numpy.save(arrays | {name: array}))
    refused(message)
  stream = io.BytesIO()
  with zipfile.ZipFile(stream, "w") as archive:
    archive.writestr("model.json", " " * (2 << 20))
  path.write_bytes(stream.getvalue())
  refused("more than 1048576")


def test_a_network_comes_with_the_package(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  segmenter = load_segmenter("toy_faces")
  assert segmenter.config.num_parts == len(segmenter.part_names) == 8
  assert segmenter.evaluation["foreground_iou"] > 0.95
  with pytest.raises(UserError, match=r"workdir=toy_face: there is no such run .* toy_faces"):
    load_segmenter("toy_face")
  (tmp_path / "toy_faces").mkdir()  # a directory goes first
  with pytest.raises(UserError, match="workdir=toy_faces holds no run"):
    load_segmenter("toy_faces")


def test_the_command(tmp_path):
  workdir = tiny_run.write_run(tmp_path / "run")
  (workdir / "evaluation.json").write_text(json.dumps({"step": tiny_run.STEP, "nmi": 0.25}))

  def call(*arguments):
    command = [sys.executable, "-m", "scops_jax.export", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)

  out = tmp_path / "half.scops"
  result = call(f"--workdir={workdir}", f"--out={out}", "--dtype=float16", "--part_names=a,b,c")
  assert result.returncode == 0, result.stderr
  assert result.stdout.startswith(f"{out}: efficientnet_lite0, 3 parts, 7 steps, float16, ")
  found = read_model(out)
  assert (found.part_names, found.evaluation) == (("a", "b", "c"), {"step": 7, "nmi": 0.25})
  result = call(f"--workdir={tmp_path}/nothing", f"--out={out}")
  assert result.returncode == 1
  assert result.stderr.startswith(f"error: --workdir={tmp_path}/nothing: there is no such run")
