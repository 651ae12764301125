"""The demo's page in Chromium: photographs in, parts on and off, two networks, download; no other hosts."""

import importlib.util
import io
import os
import signal
import socket
import subprocess
import sys
import urllib.request
import zipfile

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.support.ui import WebDriverWait

from scops_jax.prediction.model_file import write_model
from tests import browser, tiny_run

MISSING = browser.missing() or ("" if importlib.util.find_spec("gradio") else "no gradio, the extra demo")
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

SECONDS = 120  # until something must have appeared


@pytest.fixture(scope="module")
def address(tmp_path_factory):
  folder = tmp_path_factory.mktemp("demo")
  for name in ("one", "two"):
    write_model(tiny_run.efficientnet_segmenter(), folder / f"{name}.scops")
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  workdirs = [f"--workdir={folder}/{name}.scops" for name in ("one", "two")]
  command = [sys.executable, "-m", "scops_jax.demo", *workdirs, f"--port={port}"]
  environment = os.environ | {"TMPDIR": str(folder)}
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
    try:
      assert process.stdout is not None
      yield process.stdout.readline().split()[0]
    finally:
      process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
  assert not list(folder.glob("scops_jax_demo_*"))  # the uploads are gone


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
  with browser.open_browser(tmp_path_factory.mktemp("profile")) as driver:
    yield driver


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  folder = tmp_path_factory.mktemp("photos")
  rng = np.random.default_rng(0)
  for name in ("a.png", "b.png"):
    blocks = np.kron(rng.integers(0, 256, (9, 12, 3)), np.ones((50, 50, 1)))
    Image.fromarray(blocks.astype(np.uint8)).save(folder / name)
  (folder / "c.png").write_text("no image")
  return folder


def find_all(driver, selector):
  return driver.find_elements("css selector", selector)


def until(driver, condition):
  return WebDriverWait(driver, SECONDS).until(lambda _: condition())


def button(driver, text):
  return driver.find_element("xpath", f"//button[contains(., '{text}')]")


def switch(driver, label):
  return driver.find_element("xpath", f"//label[contains(., '{label}')]//input[@type='checkbox']")


def drawn_anew(driver, change):
  """Changes a setting and returns the address of the first network's first picture after it."""
  before = [pictures(driver, index) for index in (0, 1)]
  change()
  until(
    driver,
    lambda: all(len(pictures(driver, i)) == 2 and pictures(driver, i) != before[i] for i in (0, 1)),
  )
  return pictures(driver, 0)[0]


def pictures(driver, index):
  """Returns the addresses of the pictures that a network's gallery shows."""
  sources = [image.get_attribute("src") for image in find_all(driver, f"#results-{index} img")]
  return [source for source in sources if source.startswith("http")]


def download(url):
  with urllib.request.urlopen(url) as answer:
    return answer.read()


def pixels(url):
  return np.asarray(Image.open(io.BytesIO(download(url))).convert("RGB")).astype(int)


def test_a_visit(driver, address, photos):
  browser.set_viewport(driver, 1366, 768)
  driver.get("about:blank")
  browser.requested(driver)
  driver.get(address)
  (chooser,) = until(driver, lambda: find_all(driver, "#photos input[type=file]"))
  chooser.send_keys("\n".join(str(photos / name) for name in ("a.png", "b.png", "c.png")))
  until(driver, lambda: all(len(pictures(driver, index)) == 2 for index in (0, 1)))
  assert "c.png is not" in driver.find_element("tag name", "body").text
  first = pictures(driver, 0)[0]
  marked = pixels(first)
  original = np.asarray(Image.open(photos / "a.png")).astype(int)
  assert marked.shape[1] == 600
  assert marked.shape[0] > 450  # a legend lies below
  assert np.abs(marked[:450] - original).mean() > 20

  button(driver, "No parts").click()
  until(driver, lambda: pictures(driver, 0) and pictures(driver, 0)[0] != first)
  np.testing.assert_allclose(
    pixels(pictures(driver, 0)[0])[25:425:50, 25:575:50], original[25:425:50, 25:575:50], atol=12
  )
  drawn_anew(driver, lambda: button(driver, "All parts").click())
  with_marks = pixels(drawn_anew(driver, lambda: switch(driver, "Legend").click()))
  assert with_marks.shape == (450, 600, 3)
  without_marks = pixels(drawn_anew(driver, lambda: switch(driver, "Numbered centres").click()))
  changed = np.abs(without_marks - with_marks).max(axis=2) > 40
  assert 0 < changed.mean() < 0.1  # eight numbers at most
  refined = pixels(drawn_anew(driver, lambda: switch(driver, "Sharpen along edges").click()))
  assert (np.abs(refined - without_marks).max(axis=2) > 40).any()

  button(driver, "Pack results").click()
  (link,) = until(driver, lambda: find_all(driver, "#packed a[href]"))
  with zipfile.ZipFile(io.BytesIO(download(link.get_attribute("href")))) as archive:
    assert {"one.scops/overlays/01_a.jpg", "two.scops/labels/02_b.png", "parts.csv"} <= set(
      archive.namelist()
    )

  for width, height in ((1366, 768), (390, 844)):
    browser.set_viewport(driver, width, height)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
  addresses = [url for url in browser.requested(driver) if not url.startswith(("data:", "blob:"))]
  assert len(addresses) > 5
  assert [url for url in addresses if not url.startswith(address)] == []
  assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []
