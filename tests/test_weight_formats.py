"""Weight files of every format: reading and writing without PyTorch; damaged and other files are refused."""

import json
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from scops_jax import weights
from scops_jax.errors import UserError
from scops_jax.weights.formats import find_part_basis
from tests.weight_files import assert_same, tensor, write_legacy, write_safetensors, write_zip

ARRAYS = {
  "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
  "conv.bias": np.array([0.5, -1.0], np.float64),
  "steps": np.array(7, np.int64),
  "half": np.array([1.5, -2.25], ml_dtypes.bfloat16),
}


def legacy_file(path):
  write_legacy(path, {name: tensor(array) for name, array in ARRAYS.items()})


def zip_file(path):
  write_zip(path, {name: tensor(array) for name, array in ARRAYS.items()})


def npz_file(path):
  np.savez(path, **{name: array for name, array in ARRAYS.items() if name != "half"})


WRITERS = {
  "legacy.pth": legacy_file,
  "zip.pth": zip_file,
  "a.safetensors": lambda path: save_file(ARRAYS, path),
  "a.npz": npz_file,
}


@pytest.mark.parametrize("name", WRITERS)
def test_reads_every_format(tmp_path, name):
  WRITERS[name](tmp_path / name)
  loaded = weights.load_state_dict(tmp_path / name)
  assert_same(loaded, {key: array for key, array in ARRAYS.items() if key != "half" or name != "a.npz"})
  for array in loaded.values():
    array[...] = 0  # writable: not a view of the file


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.98])
def test_a_truncated_file_is_one_clear_line(tmp_path, name, kept):
  path = tmp_path / name
  WRITERS[name](path)
  content = path.read_bytes()
  path.write_bytes(content[: int(kept * len(content))])
  with pytest.raises(UserError, match=name) as error:
    weights.load_state_dict(path)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"hello, this is text and not a weight file", b"\x80\x02N."])
def test_another_file_is_refused(tmp_path, content):
  path = tmp_path / "a.pth"
  path.write_bytes(content)
  with pytest.raises(UserError, match="not a readable PyTorch"):
    weights.load_state_dict(path)


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(UserError, match=r"none\.pth: no such file"):
    weights.load_state_dict(tmp_path / "none.pth")


def test_an_object_array_is_refused(tmp_path):
  np.savez(tmp_path / "a.npz", a=np.array([{}], dtype=object))
  with pytest.raises(UserError, match=r"a\.npz"):
    weights.load_state_dict(tmp_path / "a.npz")


def test_a_whole_pickled_model_is_refused(tmp_path):
  path = tmp_path / "model.pth"
  path.write_bytes(pickle.dumps(weights.WeightsError("a class of this project")))
  with pytest.raises(UserError, match="WeightsError"):
    weights.load_state_dict(path)


def test_files_without_tensors_and_other_zips_are_refused(tmp_path):
  with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
    archive.writestr("readme.txt", "hi")
  with pytest.raises(weights.WeightsError, match=r"readme.txt is not an array"):
    weights.load_state_dict(tmp_path / "other.npz")
  write_safetensors(tmp_path / "empty.safetensors", {}, b"")
  with pytest.raises(weights.WeightsError, match="no tensors"):
    weights.load_state_dict(tmp_path / "empty.safetensors")


@pytest.mark.parametrize(
  "entry",
  [
    {"dtype": "F9", "shape": [1], "data_offsets": [0, 1]},
    {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]},  # NumPy has no such dtype
    {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
    {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 4]},
    {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
    {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]},
    {"dtype": "F32", "shape": [1]},
  ],
)
def test_a_safetensors_entry_that_does_not_fit_its_file_is_refused(tmp_path, entry):
  write_safetensors(tmp_path / "a.safetensors", {"a": entry}, bytes(4))
  with pytest.raises(UserError, match=r"a\.safetensors"):
    weights.load_state_dict(tmp_path / "a.safetensors")


@pytest.mark.parametrize("size", [0x80, 0x4B50])  # how pickles and zip files (b"PK") begin
def test_a_safetensors_file_whose_size_looks_like_another_format_is_read(tmp_path, size):
  header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
  path = tmp_path / "a.safetensors"
  path.write_bytes(struct.pack("<Q", size) + header.ljust(size) + struct.pack("<f", 1.5))
  assert_same(weights.load_state_dict(path), {"a": np.array([1.5], np.float32)})


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_written_files_read_back(tmp_path, suffix):
  arrays = ARRAYS | {"view": ARRAYS["conv.weight"].T}
  weights.save_state_dict(tmp_path / f"a{suffix}", arrays)
  if suffix == ".npz":
    arrays["half"] = arrays["half"].astype(np.float32)
  assert_same(weights.load_state_dict(tmp_path / f"a{suffix}"), arrays)
  assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]


def test_pytorch_loads_written_safetensors(tmp_path):
  torch = pytest.importorskip("torch")
  safetensors_torch = pytest.importorskip("safetensors.torch")
  arrays = ARRAYS | {"view": ARRAYS["conv.weight"].T}
  weights.save_state_dict(tmp_path / "a.safetensors", arrays)
  loaded = safetensors_torch.load_file(tmp_path / "a.safetensors")
  assert loaded.keys() == arrays.keys()
  for name, value in arrays.items():
    assert loaded[name].dtype == getattr(torch, value.dtype.name)
    np.testing.assert_array_equal(loaded[name].double().numpy(), value.astype(np.float64))


def test_pytorch_loads_an_exported_network_strictly(tmp_path):
  torch = pytest.importorskip("torch")
  safetensors_torch = pytest.importorskip("safetensors.torch")
  arrays = {"0.weight": np.ones((2, 3, 1, 1)), "1.weight": np.array([2.0, 3.0]), "1.bias": np.zeros(2)}
  arrays |= {"1.running_mean": np.ones(2), "1.running_var": np.ones(2)}
  # As before PyTorch 0.4.1 and in half precision: without BatchNorm's counters.
  weights.save_state_dict(tmp_path / "a.safetensors", {n: v.astype(np.float16) for n, v in arrays.items()})
  network = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1, bias=False), torch.nn.BatchNorm2d(2))
  network.load_state_dict(safetensors_torch.load_file(tmp_path / "a.safetensors"), strict=True)
  np.testing.assert_array_equal(network[1].weight.detach().numpy(), [2.0, 3.0])


@pytest.mark.parametrize("name", ["a.pth", "a.h5"])
def test_only_safetensors_and_npz_are_written(tmp_path, name):
  message = rf"{name}: .*PyTorch loads with safetensors\.torch\.load_file\(path\), or as \.npz"
  with pytest.raises(UserError, match=message):
    weights.save_state_dict(tmp_path / name, ARRAYS)


def test_writing_needs_a_dtype_of_the_format_and_a_folder(tmp_path):
  with pytest.raises(UserError, match=r"a\.safetensors can't be written"):
    weights.save_state_dict(tmp_path / "a.safetensors", {"a": np.zeros(2, np.longdouble)})
  assert list(tmp_path.iterdir()) == []
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match=r"b\.npz can't be written"):
    weights.save_state_dict(tmp_path / "file" / "b.npz", ARRAYS)


BASIS = np.array([[1.0, -2.0, 0.5], [-1.0, 3.0, 0.0]], np.float32)  # 2 parts, 3 channels


@pytest.mark.parametrize(
  "content",
  [
    {"W": tensor(np.maximum(BASIS, 0)), "W_state_dict": {"w": tensor(BASIS)}},
    {"W": tensor(np.maximum(BASIS, 0)), "W_state_dict": tensor(BASIS)},
    {"W_state_dict": {"w": tensor(BASIS)}},
    {"W": tensor(BASIS), "step": tensor(np.array(3))},
    tensor(BASIS),
    {"anything": tensor(BASIS.astype(np.float64))},
  ],
)
def test_part_bases_of_either_layout(tmp_path, content):
  write_zip(tmp_path / "basis.pth", content)
  assert_same({"W": find_part_basis(weights.load_state_dict(tmp_path / "basis.pth"))}, {"W": BASIS})


@pytest.mark.parametrize("arrays", [{"": BASIS[0]}, {"a": BASIS, "b": BASIS}, {"W": BASIS[0]}])
def test_other_arrays_are_no_part_basis(arrays):
  assert find_part_basis(arrays) is None
