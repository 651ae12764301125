"""Reads damaged weight files: none may do more than give arrays or an error that names the file."""

import collections
import pathlib
import tempfile
import time

import numpy as np

from scops_jax import weights
from tests.weight_files import parameter, tensor, write_legacy, write_safetensors, write_zip

MAX_SECONDS = 10.0  # for one file
_WORDS = (
  b"\x00",
  b"\xff",
  b"\x7f\xff\xff\xff",
  b"\xff" * 8,
  b"\x80\x02",
  b"PK\x03\x04",
  b"(",
  b".",
  b"\x1b[2J",
)


def valid_files(folder: pathlib.Path) -> dict[str, bytes]:
  """Returns a small valid file of each format."""
  array = np.arange(6, dtype=np.float32).reshape(2, 3)
  content = {
    "state_dict": {"conv.weight": parameter(tensor(array)), "conv.bias": tensor(array[0])},
    "epoch": 3,
  }
  write_zip(folder / "zip.pth", content)
  write_legacy(folder / "legacy.pth", content)
  header = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
  write_safetensors(folder / "a.safetensors", header, array.tobytes())
  np.savez(folder / "stored.npz", a=array, b=array[0])
  np.savez_compressed(folder / "deflated.npz", a=array, b=array[0])
  return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
  """Returns the content with one to four random changes."""
  data = bytearray(content)
  for _ in range(rng.integers(1, 5)):
    start, stop = sorted(rng.integers(0, len(data) + 1, 2).tolist())
    kind = rng.integers(6)
    if kind == 0 and data:  # a bit is flipped
      data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    elif kind == 1:  # the end is missing
      del data[stop:]
    elif kind == 2:  # a part is missing
      del data[start : min(stop, start + 16)]
    elif kind == 3:  # a part is there twice
      data[start:start] = data[start : start + 64]
    elif kind == 4:  # a word is overwritten
      word = _WORDS[rng.integers(len(_WORDS))]
      data[start : start + len(word)] = word
    else:  # random bytes are inserted
      data[start:start] = rng.bytes(int(rng.integers(1, 9)))
  return bytes(data)


def fuzz(seed: int, count: int) -> collections.Counter[str]:
  """Reads `count` damaged files; returns how many were read and how many refused.

  Raises:
    AssertionError: an error does not name its file or has control characters, or it took too long.
    Exception: what load_state_dict raised instead of WeightsError.
  """
  outcomes: collections.Counter[str] = collections.Counter()
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    files = valid_files(folder)
    for i in range(count):
      rng = np.random.default_rng([seed, i])
      file_name = list(files)[i % len(files)]
      path = folder / file_name
      path.write_bytes(mutate(files[file_name], rng))
      began = time.monotonic()
      try:
        arrays = weights.load_state_dict(path)
        assert all(isinstance(array, np.ndarray) for array in arrays.values())
        outcomes["read"] += 1
      except weights.WeightsError as error:
        message = str(error)
        assert str(path) in message, (seed, i, message)
        assert message.isprintable(), (seed, i, message)
        outcomes["refused"] += 1
      assert time.monotonic() - began < MAX_SECONDS, (seed, i)
  return outcomes
