"""A run in a bucket, on an emulator of Google's store: killed, resumed, and equal to a run on disk."""

import csv
import json
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

from scops_jax import load_predictor, models
from scops_jax.errors import UserError
from scops_jax.prediction.restore import load_segmenter
from scops_jax.prediction.stream import predict_images
from scops_jax.runs.checkpoints import latest_step
from scops_jax.runs.workdir import load_config
from scops_jax.storage.paths import as_path, filesystem
from scops_jax.train import evaluate_run
from tests import multihost_worker

pytest.importorskip("gcsfs")
pytest.importorskip("gcp_storage_emulator")

ROOT = pathlib.Path(__file__).parent.parent
BUCKET = "gs://bucket"
TIMEOUT = 300  # seconds that a process may take on a busy machine


def free_port():
  with socket.socket() as listener:
    listener.bind(("localhost", 0))
    return listener.getsockname()[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("buckets")


@pytest.fixture(scope="module", autouse=True)
def store(folder):
  """An empty bucket, and this process's environment for it."""
  port = free_port()
  url = f"http://localhost:{port}"
  command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--host=localhost", f"--port={port}"]
  command += ["--in-memory", "--quiet", "--default-bucket=bucket"]
  emulator = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  deadline = time.monotonic() + 60
  while True:
    try:
      urllib.request.urlopen(f"{url}/storage/v1/b/bucket").close()
      break
    except (urllib.error.URLError, ConnectionError):
      assert emulator.poll() is None
      assert time.monotonic() < deadline
      time.sleep(0.1)
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("STORAGE_EMULATOR_HOST", url)  # for gcsfs
    patch.setenv("TENSORSTORE_GCS_HTTP_URL", url)
    patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # the emulator has no gRPC endpoint
    patch.setenv("HOME", str(folder / "home"))  # of mirror.CACHE
    patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
    for name, table in zip(("_SEGMENTERS", "_REFERENCES"), multihost_worker.networks(), strict=True):
      patch.setitem(getattr(models, name), "tiny", table["tiny"])
    yield url
  emulator.kill()
  emulator.wait()


def train(workdir, *, cache, signal_at=""):
  """Runs training in a process of its own; returns its exit code and its output."""
  command = [sys.executable, "-m", "tests.multihost_worker", "", "0", cache, signal_at, f"jit={workdir}"]
  result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT)
  return result.returncode, result.stdout + result.stderr


@pytest.fixture(scope="module")
def on_disk(folder):
  code, output = train(folder / "run", cache=str(folder / "tfds"))
  assert code == 0, output
  return folder / "run"


@pytest.fixture(scope="module")
def in_bucket(folder):
  """The same run and its data in the bucket, killed after a checkpoint and resumed on another machine."""
  workdir, cache = f"{BUCKET}/runs/one", f"{BUCKET}/tfds"
  code, output = train(workdir, cache=cache, signal_at="SIGKILL@5")
  assert code == -signal.SIGKILL, output
  assert latest_step(workdir) == 3
  shutil.rmtree(folder / "home")  # another machine has no copies
  code, output = train(workdir, cache=cache)
  assert code == 0, output
  return workdir


def metrics(workdir):
  records = map(json.loads, (as_path(workdir) / "metrics.jsonl").read_text().splitlines())
  return [{k: v for k, v in record.items() if k != "images_per_second"} for record in records]


def test_a_killed_run_in_a_bucket_ends_as_one_on_disk(on_disk, in_bucket):
  assert metrics(in_bucket) == metrics(on_disk)
  for name in ("evaluation.json", "report/index.html", "figures/losses.png", "figures/parts_000007.png"):
    found, expected = ((as_path(path) / name).read_bytes() for path in (in_bucket, on_disk))
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


def test_a_damaged_checkpoint_in_a_bucket_is_moved_away_and_its_step_done_again(on_disk, in_bucket):
  store = filesystem(in_bucket)
  saved = f"{in_bucket}/checkpoints/7"
  largest = max(store.find(f"{saved}/state"), key=store.size)
  store.pipe_file(largest, bytes(store.size(largest)))
  code, output = train(in_bucket, cache=f"{BUCKET}/tfds")
  assert code == 0, output
  assert "checkpoint 7 is damaged" in output
  assert metrics(in_bucket) == metrics(on_disk)
  assert store.exists(f"{saved}/commit_success.txt")
  assert store.exists(f"{in_bucket}/damaged/7")


def test_two_hosts_train_in_a_bucket(on_disk):
  workdir, coordinator = f"{BUCKET}/runs/two", f"localhost:{free_port()}"
  arguments = [f"{BUCKET}/tfds", "", f"jit={workdir}"]
  hosts = [
    subprocess.Popen(
      [sys.executable, "-m", "tests.multihost_worker", coordinator, str(i), *arguments],
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for i in range(2)
  ]
  try:
    outputs = [host.communicate(timeout=TIMEOUT)[0] for host in hosts]
  finally:
    for host in hosts:
      host.kill()
  assert [host.returncode for host in hosts] == [0, 0], outputs
  for found, expected in zip(metrics(workdir), metrics(on_disk), strict=True):
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)  # sums in another order
