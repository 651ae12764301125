"""The documentation: the site builds without a warning, links nowhere wrong, and its table has every file."""

import pathlib
import re
import subprocess
import sys

import pytest

from scops_jax.catalogue.published import COLLECTIONS
from scops_jax.catalogue.weights import WEIGHTS

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory):
  pytest.importorskip("mkdocs")
  pytest.importorskip("mkdocstrings")
  folder = tmp_path_factory.mktemp("site")
  command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", f"--site-dir={folder}"]
  result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
  assert result.returncode == 0, result.stdout + result.stderr
  return folder


def test_the_site_builds_without_a_warning_and_has_the_api(site):
  api = (site / "api" / "index.html").read_text()
  for name in ("losses.semantic_consistency_loss", "geometry.part_centers", "warp.thin_plate_grid"):
    assert f'id="scops_jax.{name}"' in api
  assert "PartPredictor" in api or "load_predictor" in api


def test_the_site_loads_nothing_from_other_hosts(site):
  for page in site.rglob("*.html"):
    loaded = re.findall(
      r'<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)="(https?:[^"]*)', page.read_text()
    )
    assert loaded == [], page


def test_the_readme_links_to_what_is_there():
  text = (ROOT / "README.md").read_text()
  for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
    assert (ROOT / target).exists(), target
  headings = {
    re.sub(r"[^\w -]", "", line[3:]).strip().lower().replace(" ", "-") for line in text.splitlines()
  }
  for anchor in re.findall(r"\]\(#([^)]+)\)", text):
    assert anchor in headings, anchor


def test_the_table_of_files_has_every_file():
  text = (ROOT / "docs" / "reproduce.md").read_text()
  for name, files in {**COLLECTIONS, **{name: (file,) for name, file in WEIGHTS.items()}}.items():
    rows = [line for line in text.splitlines() if line.startswith(f"| `{name}`")]
    for wanted in files:
      facts = (f"`{wanted.names[0]}`", wanted.source, wanted.size, wanted.licence)
      assert any(all(fact in row for fact in facts) for row in rows), (name, wanted)
