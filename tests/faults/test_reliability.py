"""How experiments/reliability judges what it sees: a judge that lets faults pass would prove nothing."""

import json

import pytest

from experiments.reliability import tables
from experiments.reliability.children import Ended
from experiments.reliability.fault_list import Fault
from experiments.reliability.faults import classify
from experiments.reliability.records import Records

FAULT = Fault("files", "dff.npz flipped", "main", "dff.npz")
TRACEBACK = "Traceback (most recent call last):\n  …\nValueError: dff.npz\n"


def ended(code=0, *, error="", cpu=1.0, peak=0, hung=False):
  return Ended(code=code, seconds=cpu, cpu=cpu, peak=peak, hung=hung, output="", error=error)


@pytest.mark.parametrize(
  ("how", "same", "verdict"),
  [
    (ended(), True, "good"),
    (ended(error="dff.npz is damaged: the baseline is fitted again\n"), False, "good"),
    (ended(1, error="error: run/dff.npz is damaged: restore it\n"), False, "good"),
    (ended(), False, "dangerous"),
    (ended(1, error="error: something is damaged\n"), False, "bad"),
    (ended(1, error="dff.npz\n"), False, "bad"),
    (ended(1, error=TRACEBACK), False, "bad"),
    (ended(error=TRACEBACK), True, "bad"),
    (ended(-11, error="error: dff.npz\n"), False, "bad"),
    (ended(2, error="error: dff.npz\n"), False, "bad"),
    (ended(cpu=11.0), True, "bad"),
    (ended(peak=2 << 30), True, "bad"),
    (ended(-9, hung=True), False, "bad"),
  ],
)
def test_verdicts(how, same, verdict):
  assert classify(FAULT, how, memory=0, same=lambda: same)[0] == verdict


def test_what_must_be_refused_is_dangerous_if_it_is_accepted():
  fault = Fault("config values", "seed=-1", "prepare", "seed", refused=True)
  assert classify(fault, ended(), memory=0, same=lambda: True)[0] == "dangerous"
  assert classify(fault, ended(1, error="error: seed=-1 is not in"), memory=0, same=lambda: True)[0] == "good"


def test_a_phase_goes_on_unless_its_settings_changed(tmp_path):
  path = tmp_path / "kills.json"
  Records(path, seed=0).add({"kills": {"in a save": 1}})
  assert len(Records(path, seed=0).entries) == 1
  assert Records(path, seed=1).entries == []


def test_tables_count_what_the_json_files_hold(tmp_path):
  records = Records(tmp_path / "kills.json", seed=0, commit="abc")
  for wrong in ("", "metrics"):
    records.add({"kills": {"in a save": 2}, "damaged": ["dff.npz"], "starts": 3, "wrong": wrong, "cpu": 60.0})
  readme = tmp_path / "README.md"
  readme.write_text(f"before\n{tables.BEGIN}old\n{tables.END}after\n")
  for _ in range(2):
    tables.update(readme, tmp_path)
    text = readme.read_text()
    assert "4 kills in 2 runs of 6 starts, 2 files damaged between" in text
    assert "| in a save | 4 |" in text
    assert "- run 1: metrics" in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
  assert json.loads((tmp_path / "kills.json").read_text())["settings"] == {"seed": 0, "commit": "abc"}
