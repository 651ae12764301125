"""Whole runs on a few small images: killed and resumed, evaluated again, and stopped by a user's mistakes."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from scops_jax.report.gallery import Gallery

ROOT = pathlib.Path(__file__).parent.parent
RUN_KEYS = {
  "landmark_error_train",
  "landmark_error_test",
  "mean_shape_error_test",
  "dff_error_test",
  "landmark_errors_test",
  "foreground_iou",
  "foreground_iou_mean",
  "foreground_iou_crf",
  "nmi",
  "ari",
  "nmi_with_background",
  "ari_with_background",
  "landmark_error_test_eyes",
  "landmark_error_test_box_edge",
  "landmark_error_test_box_sides",
  "landmark_error_test_image",
  "part_purity",
  "warp_center_error",
  "warp_label_agreement",
  "warp_part_agreement",
  "clip_center_jitter",
  "clip_label_flicker",
  "keypoint_box_nmi",
  "keypoint_box_ari",
  "keypoint_nmi",
  "keypoint_ari",
  "keypoint_fg_nmi",
  "keypoint_fg_ari",
  "part_area_fractions",
  "num_train",
  "num_test",
  "step",
}
SMALL = {
  "num_parts": 3,
  "num_steps": 8,
  "batch_size": 2,
  "image_size": 32,
  "reference_image_size": 33,
  "eval_batch_size": 4,
  "eval_every": 5,
  "checkpoint_every": 3,
  "log_every": 1,
  "nmf.num_images": 8,
  "nmf.num_iterations": 5,
  "toy_faces.num_train": 12,
  "toy_faces.num_test": 6,
}


def command(workdir, *extra, config="configs/toy_faces.py", cache, **overrides):
  settings = SMALL | {"data.cache_dir": str(cache)} | {k.replace("__", "."): v for k, v in overrides.items()}
  flags = [f"--config.{key}={value}" for key, value in settings.items()]
  return [
    sys.executable,
    "-m",
    "scops_jax.main",
    f"--config={config}",
    f"--workdir={workdir}",
    *flags,
    *extra,
  ]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp("tfds")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
  # Every run here compiles the same programs.
  return os.environ | {
    "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
  }


def run(*args, environment, **kwargs):
  return subprocess.run(
    command(*args, **kwargs), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
  )


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache, environment):
  """The directory and output of a run left alone."""
  workdir = tmp_path_factory.mktemp("runs") / "alone"
  result = run(workdir, cache=cache, environment=environment)
  assert result.returncode == 0, result.stderr
  return workdir, result.stdout


def metrics(workdir):
  """The records of metrics.jsonl without the timing."""
  records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return [{k: v for k, v in record.items() if k != "images_per_second"} for record in records]


def test_a_run_leaves_everything_that_is_promised(finished):
  workdir, output = finished
  assert [record["step"] for record in metrics(workdir)] == list(range(1, 9))
  assert {"loss", "concentration", "equivariance", "semantic_consistency", "lr"} <= metrics(workdir)[0].keys()
  results = json.loads((workdir / "evaluation.json").read_text())
  assert results.keys() == RUN_KEYS
  assert (results["num_train"], results["num_test"], results["step"]) == (12, 6, 8)
  assert sum(results["part_area_fractions"]) == pytest.approx(1.0)
  assert json.loads((workdir / "config.json").read_text())["num_parts"] == 3
  assert sorted(path.name for path in (workdir / "figures").iterdir()) == [
    "losses.png",
    "parts_000005.png",
    "parts_000008.png",
  ]
  gallery = Gallery.load(workdir / "report" / "gallery.npz")
  assert gallery.names == tuple(f"test/{i:06d}" for i in range(6))
  assert gallery.landmark_names[:2] == ("left_eye", "right_eye")
  assert list(workdir.glob("events.out.tfevents.*"))
  assert output.splitlines()[-3:] == [
    str(workdir / name) for name in ("figures/parts_000008.png", "figures/losses.png", "report/index.html")
  ]
  assert not list(workdir.rglob("*tmp*"))


def test_evaluation_alone_gives_the_same_numbers(finished, cache, environment):
  workdir, _ = finished
  before, report = (workdir / "evaluation.json").read_text(), (workdir / "report" / "index.html").read_text()
  for name in ("evaluation.json", "report/index.html"):
    (workdir / name).unlink()
  result = run(workdir, "--mode=eval", cache=cache, environment=environment)
  assert result.returncode == 0, result.stderr
  assert (workdir / "evaluation.json").read_text() == before
  assert (workdir / "report" / "index.html").read_text() == report


def test_a_killed_run_ends_as_one_left_alone(finished, tmp_path, cache, environment):
  workdir, _ = finished
  killed = tmp_path / "killed"
  rng = np.random.default_rng(0)
  # Killed once before any step, then at random moments of the training and its evaluations.
  waits = [
    ("config.json", 0.0),
    ("metrics.jsonl", rng.uniform(0, 0.5)),
    ("evaluation.json", rng.uniform(0, 0.5)),
  ]
  for awaited, delay in waits:
    process = subprocess.Popen(
      command(killed, cache=cache),
      cwd=ROOT,
      env=environment,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while not ((killed / awaited).exists() and (killed / awaited).stat().st_size) and process.poll() is None:
      assert time.monotonic() < deadline
      time.sleep(0.01)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
  result = run(killed, cache=cache, environment=environment)
  assert result.returncode == 0, result.stderr
  assert metrics(killed) == metrics(workdir)
  assert (killed / "evaluation.json").read_text() == (workdir / "evaluation.json").read_text()


def test_a_finished_run_started_again_only_reports(finished, cache, environment):
  workdir, output = finished
  before = {path: path.stat().st_mtime_ns for path in (workdir / "checkpoints").iterdir()}
  result = run(workdir, cache=cache, environment=environment)
  assert result.returncode == 0, result.stderr
  printed = result.stdout.splitlines()
  assert any(line.startswith("landmark_error_test") for line in printed)
  assert printed == output.splitlines()[-len(printed) :]
  assert {path: path.stat().st_mtime_ns for path in (workdir / "checkpoints").iterdir()} == before


@pytest.mark.parametrize(
  ("extra", "message"),
  [
    (["--config.num_part=4"], "nearest is 'num_parts'"),
    (["--config.loss.semantic=4"], "nearest is 'loss.semantic_consistency'"),
    (["--config.num_parts=many"], "num_parts"),
    (["--config.num_parts=-1"], "num_parts=-1 is not in [0, 255]"),
    (["--config.image_size=100"], "image_size=100 is not divisible by 16"),
    (["--config.segmenter=unet"], "unknown segmenter 'unet'"),
    (["--config.reference_layers=('block99',)"], "block99"),
    (["--config.reference_weights=nowhere.pth"], "nowhere.pth"),
    (["--config.data.name=nothing"], "toy_faces"),
    (["--workdir=/dev/null/run"], "/dev/null/run"),
    (["--config=configs/nothing.py"], "nearest is configs/"),
    (["stray"], "stray"),
    (["--process_id=1"], "--process_id needs --multihost"),
    (["--mode=eval"], "holds no run"),
  ],
  ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_users_mistake_is_one_line(extra, message, tmp_path, cache, environment):
  workdir = tmp_path / "run"
  result = run(workdir, *extra, cache=cache, environment=environment)
  assert result.returncode != 0
  assert "Traceback" not in result.stderr
  lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
  assert len(lines) == 1, result.stderr
  assert message in lines[0]
  assert not workdir.exists()


def test_a_workdir_of_another_config_is_refused_and_kept(finished, cache, environment):
  workdir, _ = finished
  before = (workdir / "config.json").read_text()
  result = run(workdir, cache=cache, environment=environment, num_parts=4)
  assert result.returncode != 0
  assert "num_parts (was 3, now 4)" in result.stderr
  assert "Traceback" not in result.stderr
  assert (workdir / "config.json").read_text() == before
