"""Weight files of strangers: no code runs, and neither time, memory nor the terminal is taken."""

import io
import pickle
import resource
import struct
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest

from scops_jax import models, weights
from scops_jax.weights import inspection
from tests.faults.weight_fuzz import fuzz
from tests.weight_files import Call, Global, State, Storage, tensor, view, write_legacy, write_zip

ARRAY = np.ones((2, 3), np.float32)


def pickled(instructions: bytes) -> bytes:
  """A zip file whose pickle consists of these instructions."""
  content = io.BytesIO()
  with zipfile.ZipFile(content, "w") as archive:
    archive.writestr("archive/data.pkl", b"\x80\x02" + instructions + b".")
  return content.getvalue()


def nested_tuples(last: bytes = b"") -> bytes:
  """(((..), (..)), ((..), (..))): 2^200 items in 910 bytes or so."""
  return b"]q\x00" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(200)) + last


def npz(header_shape: str, data: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
  content = io.BytesIO()
  header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {header_shape}, }}\n".encode()
  with zipfile.ZipFile(content, "w", compression) as archive:
    array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data
    archive.writestr("a.npy", array)
  return content.getvalue()


def declared(size: int) -> bytes:
  """A deflated member that says it inflates to `size` bytes."""
  content = bytearray(npz("(2,)", bytes(8), zipfile.ZIP_DEFLATED))
  place = content.index(b"PK\x01\x02") + 24
  content[place : place + 4] = struct.pack("<I", size)
  return bytes(content)


def many_views() -> bytes:
  """A thousand tensors that each view the same 4 MB."""
  path = io.BytesIO()
  storage = Storage("FloatStorage", np.zeros(1 << 20, np.float32))
  write_zip(path, [view(storage, (1 << 20,), (1,)) for _ in range(1000)])
  return path.getvalue()


HOSTILE = {
  "nested tuples": pickled(nested_tuples()),
  "nested tuples as a key": pickled(b"}" + nested_tuples(b"Ns")),
  "nested tuples as a storage's key": pickled(
    b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n" + nested_tuples() + b"NK\x01tQ"
  ),
  "nested tuples as a tensor's shape": pickled(b"ctorch\nSize\n" + nested_tuples() + b"\x85R"),
  "a huge memo": pickled(b"Nr\xff\xff\xff\x7f"),
  "a long pickle": pickled(b"N0" * 1_000_000 + b"N"),
  "deep lists": pickled(b"]" * 100_000 + b"a" * 99_999),
  "a list inside itself": pickled(b"]q\x00h\x00a"),
  "a huge bytes object": pickled(b"\x8e" + struct.pack("<Q", 1 << 40)),
  "a huge number": pickled(b"\x8b\xff\xff\xff\x7f"),
  "a changed function": pickled(b"ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aNsb"),
  "an npz that claims terabytes": npz("(1099511627776,)", bytes(8)),
  "an npz that claims nothing": npz("(0, 1099511627776)", bytes(8)),
  "a deflate bomb": declared((1 << 32) - 2),
  "tensors that share a storage": many_views(),
  "a safetensors header of terabytes": struct.pack("<Q", 1 << 40) + b'{"a":',
  "a safetensors header of 20 MB": struct.pack("<Q", 20 << 20) + b"{" + b" " * (20 << 20),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_soon(name, tmp_path):
  path = tmp_path / "file.pth"
  path.write_bytes(HOSTILE[name])
  began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  with pytest.raises(weights.WeightsError, match=r"file\.pth"):
    weights.load_state_dict(path)
  assert time.monotonic() - began < 10
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1e6  # kB


def test_a_pickles_state_changes_nothing_outside(tmp_path):
  function = Global("torch._utils", "_rebuild_tensor_v2")
  write_legacy(tmp_path / "a.pth", {"a": tensor(ARRAY), "b": State(Call(function, ()), ({}, {"x": 1}))})
  with pytest.raises(weights.WeightsError):
    weights.load_state_dict(tmp_path / "a.pth")
  write_legacy(tmp_path / "b.pth", {"a": tensor(ARRAY)})
  np.testing.assert_array_equal(weights.load_state_dict(tmp_path / "b.pth")["a"], ARRAY)


def test_escape_codes_do_not_reach_the_terminal(tmp_path):
  name = "\x1b[2J\x07name\u202e"
  np.savez(tmp_path / "a.npz", **{name: ARRAY})
  command = [sys.executable, "-m", "scops_jax.weights", str(tmp_path / "a.npz")]
  result = subprocess.run(command, capture_output=True, text=True, check=True)
  assert r"\x1b[2J\x07name\u202e" in result.stdout
  assert "\x1b" not in result.stdout + result.stderr
  path = tmp_path / "b.pth"
  path.write_bytes(pickled(b"c\x1b[2Jevil\nname\n"))
  with pytest.raises(weights.WeightsError, match=r"\\x1b\[2Jevil\.name"):
    weights.load_state_dict(path)
  path.write_bytes(pickle.dumps({"a": 1}))
  with pytest.raises(weights.WeightsError):
    weights.load_state_dict(path)


def test_a_missing_entry_is_named_as_in_the_file():
  module = models.create_reference("vgg16", ("relu1_2",))
  import jax

  shapes = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32))
  variables = jax.tree.map(lambda shape: np.zeros(shape.shape, shape.dtype), shapes)
  state_dict = weights.to_state_dict(variables, model_name="vgg16")
  state_dict = {f"module.{key}": value for key, value in state_dict.items()}
  del state_dict["module.features.2.weight"]
  message = r"module\.features\.2\.weight: not in the file \(our params/features_2/kernel\)"
  with pytest.raises(weights.WeightsError, match=message):
    weights.apply_state_dict(variables, state_dict, model_name="vgg16")
  (fit,) = inspection.find_fits(state_dict, model_name="vgg16")
  assert "module.features.2.weight: not in the file" in inspection.describe(state_dict, [fit], details=True)


def test_damaged_files_are_refused_or_read():
  outcomes = fuzz(seed=0, count=400)
  assert outcomes["refused"] > 200
