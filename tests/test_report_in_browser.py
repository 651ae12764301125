"""The report in Chromium: parts, opacity and order; nothing loaded, no error, no sideways scrolling."""

import io

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from scops_jax.report.comparison import Run, write_comparison
from scops_jax.report.page import write_report
from scops_jax.report.palette import part_colors
from tests import browser, pages

pytestmark = pytest.mark.skipif(bool(browser.missing()), reason=browser.missing())

VISIBLE = """
  return [...document.querySelectorAll("#gallery [class^='part-']")].map(
    (element) => [element.classList[0], getComputedStyle(element).display !== "none"]);
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
  path = tmp_path_factory.mktemp("report") / "index.html"
  write_report(
    path, results=pages.RESULTS, records=pages.RECORDS, config=pages.config(), gallery=pages.gallery()
  )
  return path.as_uri()


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
  with browser.open_browser(tmp_path_factory.mktemp("profile")) as driver:
    yield driver


@pytest.fixture
def page(driver, address):
  """The page as it opens on a laptop; afterwards nothing may have gone wrong or been loaded."""
  browser.set_viewport(driver, 1280, 800)
  driver.get(address)
  yield driver
  assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []
  assert driver.execute_script("return performance.getEntriesByType('resource').map((e) => e.name)") == []


def find(page, selector):
  return page.find_element("css selector", selector)


def picture(page, index=0):
  """Returns the pixels of a tile's picture, without its marks, `[h, w, 3]`."""
  page.execute_script("for (const marks of document.querySelectorAll('.marks')) marks.style.opacity = 0")
  element = find(page, f'.tile[data-index="{index}"] .picture')
  pixels = np.asarray(Image.open(io.BytesIO(element.screenshot_as_png)).convert("RGB"))
  return pixels.astype(int)


def inside(pixels, part):
  """Returns the pixels of a screenshot well inside a part of the first image of pages.scene."""
  height, width = pixels.shape[:2]
  top, bottom, left, right = {1: (12, 28, 7, 23), 2: (12, 28, 37, 53), 3: (34, 36, 8, 52)}[part]
  rows, columns = (
    slice(int(a / n * size), int(b / n * size))
    for a, b, n, size in ((top, bottom, pages.HEIGHT, height), (left, right, pages.WIDTH, width))
  )
  return pixels[rows, columns].reshape(-1, 3)


def blend(part, opacity):
  return (1 - opacity) * 128 + opacity * part_colors(3)[part - 1].astype(float)


@pytest.mark.parametrize("part", [1, 2, 3])
def test_a_button_hides_exactly_its_part(page, part):
  button = find(page, f'[data-shows="part-{part}"]')
  before = page.execute_script(VISIBLE)
  assert all(shown for _, shown in before)
  button.click()
  assert button.get_attribute("aria-pressed") == "false"
  after = page.execute_script(VISIBLE)
  assert after == [[name, name != f"part-{part}"] for name, _ in before]
  pixels = picture(page)
  for other in (1, 2, 3):
    expected = blend(other, 0.0 if other == part else 0.55)
    np.testing.assert_allclose(
      inside(pixels, other), np.broadcast_to(expected, inside(pixels, other).shape), atol=3
    )
  button.send_keys(Keys.SPACE)
  assert button.get_attribute("aria-pressed") == "true"
  assert page.execute_script(VISIBLE) == before


def test_all_and_none(page):
  find(page, "#no-parts").click()
  assert not any(shown for _, shown in page.execute_script(VISIBLE))
  pixels = picture(page)[5:-5, 5:-5]  # within the rounded corners
  np.testing.assert_allclose(pixels, np.full_like(pixels, 128), atol=3)
  find(page, "#all-parts").send_keys(Keys.ENTER)
  assert all(shown for _, shown in page.execute_script(VISIBLE))


def test_the_slider_changes_the_blend(page):
  slider = find(page, "#opacity")
  for key, opacity in ((Keys.HOME, 0.0), (Keys.END, 1.0), (Keys.ARROW_LEFT, 0.99)):
    slider.send_keys(key)
    pixels = inside(picture(page), 2)
    np.testing.assert_allclose(pixels, np.broadcast_to(blend(2, opacity), pixels.shape), atol=3)
  assert find(page, "#opacity-value").text == "99 %"


def test_marks_are_switched_apart(page):
  shown = "return getComputedStyle(document.querySelector('.marks .{}')).display !== 'none'"
  names = ("centers", "annotated", "predicted")
  for name in names:
    find(page, f'[data-shows="{name}"]').click()
    assert [page.execute_script(shown.format(other)) for other in names] == [other != name for other in names]
    find(page, f'[data-shows="{name}"]').click()


def test_the_order_of_images(page):
  def order():
    return page.execute_script("return [...document.querySelectorAll('.tile')].map((t) => t.dataset.index)")

  assert order() == pages.WORST_FIRST
  select = Select(find(page, "#order"))
  select.select_by_value("index")
  assert order() == ["0", "1", "2", "3", "4", "5"]
  select.select_by_value("best")
  assert order() == ["5", "0", "3", "4", "1", "2"]
  select.select_by_value("worst")
  assert order() == pages.WORST_FIRST


def test_the_configuration_unfolds(page):
  table = find(page, ".config")
  assert not table.is_displayed()
  find(page, "summary").click()
  assert table.is_displayed()


def test_masks_are_beside_the_parts_and_can_be_hidden(page):
  def places():
    return [find(page, f'.tile[data-index="0"] .picture:nth-child({i})').rect for i in (1, 2)]

  parts, mask = places()
  assert parts["y"] == mask["y"]
  assert parts["x"] + parts["width"] < mask["x"]
  assert parts["width"] == pytest.approx(mask["width"], abs=1)
  find(page, '[data-shows="mask"]').click()
  assert not find(page, ".mask").is_displayed()


def test_without_landmarks_no_half_is_blank(page, tmp_path):
  missing = {name: None for name in pages.RESULTS if "landmark" in name or "shape" in name or "dff" in name}
  missing |= {name: None for name in pages.RESULTS if name.startswith("keypoint")}
  path = tmp_path / "index.html"
  write_report(
    path,
    results=pages.RESULTS | missing,
    records=[],
    config=pages.config(),
    gallery=pages.gallery(annotated=False),
  )
  browser.set_viewport(page, 1366, 768)
  page.get(path.as_uri())
  blocks = [block.rect for block in page.find_elements("css selector", ".block")]
  left, right = ([block for block in blocks if (block["x"] < 600) == is_left] for is_left in (True, False))
  bottoms = [max(block["y"] + block["height"] for block in side) for side in (left, right)]
  top = min(block["y"] for block in blocks)
  assert (min(bottoms) - top) > 0.3 * (max(bottoms) - top)


@pytest.mark.parametrize("width", [390, 1366])
def test_two_runs_side_by_side(page, tmp_path, width):
  path = tmp_path / "comparison.html"
  runs = (
    Run(name, pages.RESULTS, pages.RECORDS, pages.config(), pages.gallery())
    for name in ("a_run_with_a_long_name_" * 3, "other")
  )
  write_comparison(path, *runs)
  browser.set_viewport(page, width, 844)
  page.get(path.as_uri())
  assert page.execute_script("return document.documentElement.scrollWidth") <= width
  one, other = (find(page, f'.tile[data-index="1"] .picture:nth-child({i})').rect for i in (1, 2))
  assert one["y"] == other["y"]
  assert one["width"] == pytest.approx(other["width"], abs=1)
  assert one["width"] > 100
  find(page, '[data-shows="part-2"]').click()
  assert all(shown == (name != "part-2") for name, shown in page.execute_script(VISIBLE))


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_scrolls_sideways(page, width):
  browser.set_viewport(page, width, 844)
  find(page, "summary").click()
  assert page.execute_script("return document.documentElement.scrollWidth") <= width
  assert page.execute_script("return innerWidth") == width


def test_the_dark_scheme_is_dark(page):
  color = "return getComputedStyle(document.body).backgroundColor"
  assert page.execute_script(color) == "rgb(255, 255, 255)"
  browser.set_viewport(page, 1280, 800, dark=True)
  assert page.execute_script(color) == "rgb(23, 24, 26)"
