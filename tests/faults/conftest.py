"""A finished run of tiny networks, which each test copies, damages and starts again."""

import json
import shutil

import jax
import numpy as np
import pytest

from scops_jax.runs import setup
from scops_jax.train import train_and_evaluate
from tests import tiny

SETTINGS = {
  "data.saliency": "ones",
  "data.cache_reference_features": True,
  "data.num_threads": 1,
  "crf.num_iterations": 0,
  "basis.initializer": "nmf",
  "nmf.num_images": 4,
  "nmf.num_iterations": 2,
  "batch_size": 2,
  "eval_batch_size": 2,
  "num_steps": 6,
  "log_every": 1,
  "checkpoint_every": 2,
  "eval_every": 4,
}


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
  """Every run here compiles the same programs."""
  before = {
    "jax_compilation_cache_dir": jax.config.jax_compilation_cache_dir,
    "jax_persistent_cache_min_compile_time_secs": jax.config.jax_persistent_cache_min_compile_time_secs,
  }
  jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  yield
  for name, value in before.items():
    jax.config.update(name, value)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
  """The config and the directory of a run left alone."""
  root = tmp_path_factory.mktemp("finished")
  rng = np.random.default_rng(0)
  pictures = [rng.integers(0, 256, (20, 24, 3), np.uint8) for _ in range(6)]
  with pytest.MonkeyPatch.context() as patch:
    config = tiny.folder_config(root, patch, pictures, num_test=2, **SETTINGS)
    train_and_evaluate(config, root / "run")
  return config, root / "run"


@pytest.fixture
def config(finished, monkeypatch):
  """The config of that run, to be changed."""
  monkeypatch.setattr(setup, "create_networks", lambda config: tiny.networks())
  return finished[0].copy_and_resolve_references().lock()


@pytest.fixture
def workdir(finished, tmp_path):
  """A copy of that run, without what the last steps left: it stopped after step 4, before its evaluation."""
  copy = shutil.copytree(finished[1], tmp_path / "run")
  shutil.rmtree(copy / "checkpoints" / "6")
  (copy / "evaluation.json").unlink()
  return copy


def outcome(workdir):
  """The metrics without the timing, and the evaluation."""
  records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  metrics = [{k: v for k, v in record.items() if k != "images_per_second"} for record in records]
  return metrics, json.loads((workdir / "evaluation.json").read_text())
