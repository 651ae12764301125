"""What commands say while they work."""

import re
import time

import pytest

from scops_jax import progress


@pytest.fixture
def quick(monkeypatch):
  monkeypatch.setattr(progress, "_SECONDS", 0.2)


def test_a_long_phase_speaks_while_it_lasts(capsys, quick):
  with progress.phase("compiling"):
    time.sleep(1.1)
  lines = capsys.readouterr().err.splitlines()
  assert lines[0] == "compiling …"
  assert len([line for line in lines if re.fullmatch(r"compiling … \d\.\d s", line)]) >= 2
  assert re.fullmatch(r"compiling: 1\.\d s", lines[-1])


def test_a_short_phase_is_one_line(capsys):
  with progress.phase("reading"):
    pass
  assert capsys.readouterr().err == "reading …\n"


def test_a_failed_phase_ends_without_a_time(capsys, quick):
  with pytest.raises(ValueError, match="broken"), progress.phase("reading"):
    raise ValueError("broken")
  assert capsys.readouterr().err == "reading …\n"


def test_a_fast_bar_is_one_line_not_hundreds(capsys):
  with progress.Bar(830, "train", unit="step") as bar:
    for _ in range(830):
      bar.update()
      bar.show(loss="3.1")
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) <= 2
  assert re.fullmatch(r"train: 830 of 830 steps, 00:00, 00:00 to go, loss=3\.1", lines[-1])


def test_a_bar_speaks_while_the_first_update_compiles(capsys, quick):
  with progress.Bar(3, "train", unit="step", done=1, first="compiling the step") as bar:
    time.sleep(0.5)
    bar.update()
  assert "train: 1 of 3 steps (compiling the step), 00:00" in capsys.readouterr().err


def test_the_time_to_go_counts_neither_compiling_nor_pauses(capsys, monkeypatch):
  now = time.monotonic() + 1e6
  monkeypatch.setattr(progress.time, "monotonic", lambda: now)
  with progress.Bar(10, "train", unit="step") as bar:
    for seconds in (100, 10, 10):  # the first compiles
      now += seconds
      bar.update()
    now += 500  # an evaluation
    bar.resume()
    now += 10
    bar.update()
  # 3 steps in 30 s were timed, and 6 are left.
  assert capsys.readouterr().err.splitlines()[-1] == "train: 4 of 10 steps, 00:30, 01:00 to go"


def test_tracked_counts_the_images_of_a_smaller_last_batch(capsys):
  assert list(progress.tracked("abc", 20, "evaluating", size=8)) == ["a", "b", "c"]
  assert "evaluating: 20 of 20 images" in capsys.readouterr().err


def test_nothing_is_shown_when_muted(capsys, monkeypatch):
  monkeypatch.setattr(progress, "_muted", False)
  progress.mute()
  with progress.phase("reading"), progress.Bar(1, "train") as bar:
    bar.update()
  assert capsys.readouterr().err == ""
