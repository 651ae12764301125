"""Files of a run, damaged: what can be rebuilt is, with a line that says so; the rest names file and cure."""

import os
import shutil
import subprocess

import pytest

from scops_jax import train
from scops_jax.errors import UserError
from scops_jax.prediction.restore import load_segmenter
from scops_jax.runs import feature_cache
from scops_jax.runs.metrics import MetricsLog, check_metrics, read_metrics
from scops_jax.train import evaluate_run, train_and_evaluate
from tests.faults.conftest import outcome


def flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 16
  path.write_bytes(content)


def damage_everything_that_is_rebuilt(workdir):
  flip(workdir / "dff.npz")
  (workdir / "evaluation.json").write_text("{")
  for name in ("figures", "report"):
    shutil.rmtree(workdir / name)


@pytest.mark.parametrize(
  ("damage", "said"),
  [
    (lambda workdir: None, ()),
    (lambda workdir: (workdir / "dff.npz").unlink(), ("dff.npz is missing: the baseline is fitted again",)),
    (damage_everything_that_is_rebuilt, ("dff.npz is damaged", "evaluation.json is damaged")),
  ],
  ids=["nothing", "no dff", "everything"],
)
def test_a_run_with_damaged_files_ends_as_one_left_alone(damage, said, config, workdir, finished, capsys):
  damage(workdir)
  train_and_evaluate(config, workdir)
  assert outcome(workdir) == outcome(finished[1])
  errors = capsys.readouterr().err
  assert all(line in errors for line in said)
  # The evaluation of step 4, which had not been done.
  assert (workdir / "figures" / "parts_000004.png").exists()


def test_a_finished_run_whose_last_checkpoint_is_damaged_does_its_last_steps_again(
  config, finished, tmp_path, capsys
):
  workdir = shutil.copytree(finished[1], tmp_path / "run")
  flip(max((workdir / "checkpoints" / "6" / "state" / "d").iterdir(), key=lambda path: path.stat().st_size))
  train_and_evaluate(config, workdir)
  assert outcome(workdir) == outcome(finished[1])
  assert "checkpoint 6 is damaged" in capsys.readouterr().err
  assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["4", "6"]


def test_damaged_features_are_computed_again(config, finished, workdir, tmp_path, capsys):
  config.data.cache_dir = str(shutil.copytree(config.data.cache_dir, tmp_path / "cache"))
  (path,) = (tmp_path / "cache").rglob("reference_features/*.array_record")
  before = path.read_bytes()
  flip(path)
  train_and_evaluate(config, workdir)
  assert outcome(workdir) == outcome(finished[1])
  assert "features are computed again" in capsys.readouterr().err
  assert path.read_bytes() == before


@pytest.mark.parametrize(
  "line",
  ['{"step": 3, "lo', "\0\0\0", '{"loss": 1.0}', '["step"]', '{"step": 3, "loss": "high"}', "\udcff"],
)
def test_damaged_lines_of_the_metrics_are_left_out_and_counted(line, tmp_path, capsys):
  text = '{"step": 2, "loss": 1.0}\n' + line + '\n{"step": 4, "loss": 0.5}\n{"step": 5'
  (tmp_path / "metrics.jsonl").write_text(text, errors="surrogateescape")
  assert [record["step"] for record in read_metrics(tmp_path)] == [2, 4]
  assert "metrics.jsonl: damaged lines left out: 1" in capsys.readouterr().err


def test_metrics_that_are_a_folder_are_named(tmp_path):
  (tmp_path / "metrics.jsonl").mkdir()
  with pytest.raises(UserError, match=r"metrics\.jsonl can't be read \(Is a directory\): move it away"):
    read_metrics(tmp_path)


def other_digit(text):
  return text.replace('"step": 2, "loss": 1', '"step": 2, "loss": 2')


@pytest.mark.parametrize(
  ("change", "said"), [(lambda text: text, False), (other_digit, True), (lambda text: text[:-9], True)]
)
def test_lines_of_the_metrics_that_have_changed_are_noticed(change, said, tmp_path, capsys):
  log = MetricsLog(tmp_path, start_step=0)
  for step in (1, 2):
    log.write(step, {"loss": 1.5})
  digest = log.digest()
  log.write(3, {"loss": 1.0})  # after the checkpoint
  log.close()
  path = tmp_path / "metrics.jsonl"
  lines = path.read_text().splitlines(keepends=True)
  path.write_text(change("".join(lines[:2])) + lines[2])
  check_metrics(tmp_path, 2, digest)
  assert ("metrics.jsonl is damaged: its lines up to step 2" in capsys.readouterr().err) == said
  check_metrics(tmp_path, 2, None)
  path.unlink()
  check_metrics(tmp_path, 2, digest)
  assert len(capsys.readouterr().err.splitlines()) == 1


def remove(path):
  path.unlink()


def change_a_number(path):
  path.write_text(path.read_text().replace('"image_size": 16', '"image_size": 32'))


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (remove, r"holds results, but no config\.json that says of which settings: restore it"),
    (change_a_number, r"config\.json is damaged: its values have changed"),
    (lambda path: path.write_text("{"), r"config\.json can't be read"),
    (lambda path: path.write_text("[]"), r"config\.json is damaged"),
    (lambda path: path.write_bytes(b"\xff\xfe"), r"config\.json can't be read"),
  ],
  ids=["removed", "changed", "cut", "a list", "not text"],
)
@pytest.mark.parametrize("command", [train_and_evaluate, evaluate_run, "predict"])
def test_results_are_never_taken_for_those_of_another_config(damage, message, command, config, workdir):
  damage(workdir / "config.json")
  config.seed = 1
  with pytest.raises(UserError, match=message):
    load_segmenter(workdir) if command == "predict" else command(config, workdir)


@pytest.fixture
def small_disk(tmp_path):
  """A folder of 8 MB."""
  path = tmp_path / "disk"
  path.mkdir()
  if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", path]).returncode:
    pytest.skip("needs root, to mount a small disk")
  yield path
  subprocess.run(["umount", "--lazy", path], check=True)


def fill(disk):
  with (disk / "filler").open("wb", buffering=0) as file:
    while True:
      try:
        file.write(bytes(4096))
      except OSError:
        return


@pytest.mark.parametrize(
  ("owner", "name"),
  [(train.Checkpoints, "save"), (train.MetricsLog, "write"), (train, "_evaluate")],
  ids=["at a checkpoint", "at a line of the log", "at an evaluation"],
)
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(
  owner, name, config, workdir, finished, small_disk, monkeypatch
):
  on_disk = small_disk / "run"
  shutil.copytree(workdir, on_disk)
  called = getattr(owner, name)

  def full(*args, **kwargs):
    fill(small_disk)
    return called(*args, **kwargs)

  monkeypatch.setattr(owner, name, full)
  with pytest.raises(UserError, match=r"can't be written .*make room") as raised:
    train_and_evaluate(config, on_disk)
  assert "\n" not in str(raised.value)
  monkeypatch.setattr(owner, name, called)
  (small_disk / "filler").unlink()
  train_and_evaluate(config, on_disk)
  assert outcome(on_disk) == outcome(finished[1])


def test_a_disk_that_fills_while_features_are_kept_is_named_and_nothing_stays(
  config, small_disk, tmp_path, monkeypatch
):
  config.data.cache_dir = str(shutil.copytree(config.data.cache_dir, small_disk / "cache"))
  (folder,) = (small_disk / "cache").rglob("reference_features")
  shutil.rmtree(folder)
  monkeypatch.setattr(feature_cache, "_check_space", lambda *_: fill(small_disk))
  with pytest.raises(UserError, match=r"features can't be written to .*reference_features"):
    train_and_evaluate(config, tmp_path / "run")
  assert not folder.exists() or not list(folder.iterdir())
  assert not (tmp_path / "run").exists()
