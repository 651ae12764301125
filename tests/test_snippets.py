"""Every shell command and Python snippet of the README, the docs and the loss studies runs as it is pasted.

One directory serves all, with configs/ and docs/ in it. `tests/pasted.py` stands for python and make there:
it says which commands are made small and which end early, and why.
"""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
GUIDES = ("own-images", "training", "networks", "configuration")  # in this order: they use runs made before
FILES = [
  ROOT / "README.md",
  *(ROOT / "docs" / f"{name}.md" for name in GUIDES),
  *sorted(path for path in (ROOT / "docs").glob("*.md") if path.stem not in GUIDES),
  ROOT / "experiments" / "losses" / "README.md",
]
NOT_RUN = ("bibtex", "text")


def blocks():
  """Yields (file, line, language, text) of every fenced block; one that is repeated counts once."""
  seen = set()
  for path in FILES:
    text = path.read_text(encoding="utf-8")
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
      if match[2] not in seen:
        seen.add(match[2])
        yield path, text.count("\n", 0, match.start()) + 1, match[1], match[2]


BLOCKS = list(blocks())
NAMES = [f"{path.relative_to(ROOT)}:{line}" for path, line, *_ in BLOCKS]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
  folder = tmp_path_factory.mktemp("pasted")
  for name in ("configs", "docs"):
    (folder / name).symlink_to(ROOT / name)
  (folder / "bin").mkdir()
  for name in ("python", "make"):
    script = folder / "bin" / name
    script.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT}/tests/pasted.py {name} "$@"\n')
    script.chmod(0o755)
  return folder


def test_every_block_has_a_language():
  languages = {language for _, _, language, _ in BLOCKS}
  assert languages <= {"sh", "python", *NOT_RUN}


def test_the_readme_names_the_commands_of_the_makefile():
  readme = FILES[0].read_text()
  assert re.search(r"^make demo ", readme, re.MULTILINE)
  assert re.search(r"^make test ", readme, re.MULTILINE)


@pytest.mark.parametrize("block", BLOCKS, ids=NAMES)
def test_runs_as_pasted(block, workspace, monkeypatch):
  _, _, language, text = block
  monkeypatch.chdir(workspace)
  if language == "sh":
    path = f"{workspace / 'bin'}:/usr/bin:/bin"
    variables = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
      ["bash", "-e", "-c", text], env=variables, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
  elif language == "python":
    exec(compile(text, "snippet", "exec"), {"__name__": "snippet"})
