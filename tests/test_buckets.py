"""A run in a bucket, on an emulator of Google's store: killed, resumed, and equal to a run on disk."""

import csv
import json
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from scops_jax import load_predictor, models
from scops_jax.errors import UserError
from scops_jax.prediction.restore import load_segmenter
from scops_jax.prediction.stream import predict_images
from scops_jax.runs.checkpoints import latest_step
from scops_jax.runs.workdir import load_config
from scops_jax.storage import locks
from scops_jax.storage.locks import InUseError, exclusive
from scops_jax.storage.paths import as_path, filesystem
from scops_jax.train import evaluate_run
from tests import multihost_worker
from tests.emulator import BUCKET, emulated_store

ROOT = pathlib.Path(__file__).parent.parent
TIMEOUT = 600  # seconds that a process may take on a busy machine


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("buckets")


@pytest.fixture(scope="module", autouse=True)
def store(folder):
  """An empty bucket, a home without copies of it, and tiny networks, for this process and its children."""
  with emulated_store() as environment, pytest.MonkeyPatch.context() as patch:
    patch.setenv("HOME", str(folder / "home"))
    patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    for name, value in environment.items():
      patch.setenv(name, value)
    for name, table in zip(("_SEGMENTERS", "_REFERENCES"), multihost_worker.networks(), strict=True):
      patch.setitem(getattr(models, name), "tiny", table["tiny"])
    yield


def train(workdir, *, cache):
  multihost_worker.train_run(workdir, parallelism="jit", cache=cache)


@pytest.fixture(scope="module")
def on_disk(folder):
  train(folder / "run", cache=folder / "tfds")
  return folder / "run"


@pytest.fixture(scope="module")
def in_bucket(folder):
  """The same run and its data in the bucket, killed after a checkpoint and resumed on another machine."""
  workdir, cache = f"{BUCKET}/runs/one", f"{BUCKET}/tfds"
  arguments = ["", "0", cache, "SIGKILL@5", f"jit={workdir}"]
  killed = subprocess.run(
    [sys.executable, "-m", "tests.multihost_worker", *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=TIMEOUT,
  )
  assert killed.returncode == -signal.SIGKILL, killed.stderr
  assert latest_step(workdir) == 3
  shutil.rmtree(folder / "home")
  train(workdir, cache=cache)
  return workdir


def metrics(workdir):
  records = map(json.loads, (as_path(workdir) / "metrics.jsonl").read_text().splitlines())
  return [{k: v for k, v in record.items() if k != "images_per_second"} for record in records]


def test_a_killed_run_in_a_bucket_ends_as_one_on_disk(on_disk, in_bucket):
  assert metrics(in_bucket) == metrics(on_disk)
  for name in ("evaluation.json", "report/index.html", "figures/losses.png", "figures/parts_000007.png"):
    found, expected = ((as_path(path) / name).read_bytes() for path in (in_bucket, on_disk))
    # The report shows the config, which names the data's folder.
    assert found.replace(b"gs://bucket/tfds", b"TFDS") == expected.replace(
      str(on_disk.parent / "tfds").encode(), b"TFDS"
    ), name
  names = {path.name for path in as_path(in_bucket).iterdir()}
  assert "lock" not in names
  assert sum(name.startswith("events.out.tfevents.") for name in names) == 2
  assert sorted(path.name for path in (as_path(in_bucket) / "checkpoints").iterdir()) == ["6", "7"]


def test_an_evaluation_on_another_machine_gives_the_same_numbers(in_bucket, folder):
  expected = (as_path(in_bucket) / "evaluation.json").read_text()
  shutil.rmtree(folder / "home")
  evaluate_run(load_config(in_bucket), in_bucket)
  assert (as_path(in_bucket) / "evaluation.json").read_text() == expected


def test_predictions_are_those_of_the_run_on_disk(on_disk, in_bucket, folder):
  images = np.random.default_rng(0).integers(0, 256, (2, 20, 24, 3), np.uint8)
  for found, expected in zip(load_predictor(in_bucket)(images), load_predictor(on_disk)(images), strict=True):
    np.testing.assert_array_equal(found, expected)
  files = {}
  for index, image in enumerate(images):
    files[f"{index}.png"] = folder / f"{index}.png"
    Image.fromarray(image).save(files[f"{index}.png"])
  predict_images(load_segmenter(on_disk), files, folder / "parts")
  out = as_path(f"{BUCKET}/parts")
  for _ in range(2):  # the second time nothing is left to be done
    predict_images(load_segmenter(in_bucket), files, str(out))
    for name in ("labels/0.png", "overlays/1.jpg", "contact_sheet.jpg", "parts.csv"):
      assert (out / name).read_bytes() == (folder / "parts" / name).read_bytes(), name
  assert len(list(csv.reader((out / "parts.csv").read_text().splitlines()))) == 1 + 2 * 3
  with pytest.raises(UserError, match=r"predictions of another crf"):
    predict_images(load_segmenter(in_bucket), files, out, crf=True)


def test_a_damaged_checkpoint_is_moved_away_and_its_step_done_again(on_disk, in_bucket, capsys):
  files = filesystem(in_bucket)
  saved = f"{in_bucket}/checkpoints/7"
  largest = max(files.find(f"{saved}/state"), key=files.size)
  files.pipe_file(largest, bytes(files.size(largest)))
  train(in_bucket, cache=f"{BUCKET}/tfds")
  assert "checkpoint 7 is damaged" in capsys.readouterr().err
  assert metrics(in_bucket) == metrics(on_disk)
  assert files.exists(f"{saved}/commit_success.txt")
  assert files.exists(f"{in_bucket}/damaged/7")


def test_of_two_that_ask_for_a_lock_at_once_one_gets_it(monkeypatch):
  path = as_path(f"{BUCKET}/lock")
  with exclusive(path):
    with pytest.raises(InUseError, match="process"), exclusive(path):
      pass
    # This one has looked for the lock before it was there: the store refuses it.
    monkeypatch.setattr(locks._ObjectLock, "_read", lambda self: None)
    with pytest.raises(InUseError), exclusive(path):
      pass
    monkeypatch.undo()
    assert path.exists()
  assert not path.exists()
