"""Runs of checkouts in turns, with stand-ins for the trainings."""

import pytest

from experiments.benchmarks import versions

STEPS = """
import itertools, pathlib, sys, time
options = dict(argument.split("=", 1) for argument in sys.argv[1:])
workdir = pathlib.Path(options["--workdir"])
workdir.mkdir()
with (workdir / "metrics.jsonl").open("w") as metrics:
  for _ in itertools.count():
    time.sleep({seconds})
    metrics.write("\\n")
    metrics.flush()
"""


def checkout(folder, code):
  package = folder / "scops_jax"
  package.mkdir(parents=True)
  (package / "__init__.py").touch()
  (package / "main.py").write_text(code)
  return str(folder)


def test_the_faster_checkout_is_faster_by_as_much(tmp_path, capsys):
  slow, fast = (checkout(tmp_path / str(seconds), STEPS.format(seconds=seconds)) for seconds in (0.04, 0.01))
  versions.main([fast, slow, "--rounds=3", "--seconds=0.4", "--batch_size=2"])
  *_, first, second = capsys.readouterr().out.splitlines()
  assert first.startswith(f"| {fast} |")
  assert first.endswith("| 1 (1–1) |")
  assert second.startswith(f"| {slow} |")
  images_per_second, ratio = (float(cell.split()[0]) for cell in second.split("|")[2:4])
  assert images_per_second == pytest.approx(2 / 0.04, rel=0.3)
  assert 2 < ratio < 6  # 4, less what the system takes


def test_a_run_that_ends_is_named_with_what_it_said(tmp_path):
  broken = checkout(tmp_path, 'raise SystemExit("error: no such key")')
  with pytest.raises(SystemExit, match=r"ended: error: no such key"):
    versions.main([broken])


def test_the_table_has_medians_and_extremes():
  speeds = [[90.0, 30.0], [60.0, 20.0], [80.0, 40.0]]
  assert versions.table(["here", "first"], speeds).splitlines()[2:] == [
    "| here | 80 (60–90) | 1 (1–1) |",
    "| first | 30 (20–40) | 3 (2–3) |",
  ]
