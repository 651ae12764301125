"""Overlays: exact colours, outlines, marks, legends in rows, contact sheets."""

import numpy as np
import pytest
from PIL import Image

from scops_jax.report.overlays import contact_sheet, display_size, draw_legend, draw_overlay
from scops_jax.report.palette import part_colors

HEIGHT, WIDTH = 400, 600
GREY = Image.new("RGB", (WIDTH, HEIGHT), (100, 100, 100))
COLORS = part_colors(3).astype(int)


@pytest.fixture
def labels():
  """Part 1 left, part 2 right of it, no part 3, background around."""
  labels = np.zeros((HEIGHT, WIDTH), np.uint8)
  labels[100:300, 100:300] = 1
  labels[100:300, 300:500] = 2
  return labels


CENTERS = np.array([(200, 200), (400, 200), (50, 50)])


def test_colours_blend_and_outlines_are_solid(labels):
  plain = np.asarray(draw_overlay(GREY, labels, CENTERS, opacity=0.4, numbers=False, legend=False)).astype(
    int
  )
  assert (plain[labels == 0] == 100).all()
  np.testing.assert_allclose(plain[200, 150], 60 + 0.4 * COLORS[0], atol=1)
  np.testing.assert_allclose(plain[200, 450], 60 + 0.4 * COLORS[1], atol=1)
  for y, x, part in ((100, 200, 1), (200, 100, 1), (200, 299, 1), (200, 300, 2), (299, 400, 2)):
    np.testing.assert_array_equal(plain[y, x], COLORS[part - 1])


def test_marks_stand_at_the_centres_of_parts_with_pixels(labels):
  options = {"opacity": 0.4, "legend": False}
  plain = np.asarray(draw_overlay(GREY, labels, CENTERS, numbers=False, **options)).astype(int)
  marked = np.asarray(draw_overlay(GREY, labels, CENTERS, **options)).astype(int)
  y, x = np.nonzero((marked != plain).any(axis=-1))
  for low, high, center in ((0, 300, 200), (300, 600, 400)):
    chosen = (x >= low) & (x < high)
    assert abs(x[chosen].mean() - center) < 2
    assert abs(y[chosen].mean() - 200) < 2
    assert np.ptp(x[chosen]) < 60
  assert (marked[40:60, 40:60] == 100).all()  # part 3 has no pixels
  hidden = np.asarray(draw_overlay(GREY, labels, CENTERS, shown=[2], **options)).astype(int)
  np.testing.assert_array_equal(hidden[:, :300], 100)
  np.testing.assert_array_equal(hidden[110:290, 320:490], marked[110:290, 320:490])


def test_a_legend_takes_the_rows_it_needs(labels):
  picture = draw_overlay(GREY, labels, CENTERS, names=("head", "body", "tail"))
  assert picture.width == WIDTH
  legend = np.asarray(picture)[HEIGHT:]
  for color in COLORS:
    assert (legend == color).all(axis=-1).any()
  names = tuple("a long name of a part" for _ in range(8))
  parts = tuple(range(1, 9))
  narrow, wide = draw_legend(parts, names, 300, 12), draw_legend(parts, names, 2000, 12)
  assert narrow.height > 3 * wide.height
  assert draw_legend((), (), 300, 12).height == 0


def test_small_images_are_enlarged():
  assert display_size(128, 100) == (384, 300)
  assert display_size(300, 1) == (300, 1)
  assert display_size(1, 1) == (300, 300)


def test_a_contact_sheet_holds_every_picture():
  pictures = [Image.new("RGB", (100 + i, 50), (i, 0, 0)) for i in range(8)]
  captions = [f"{'very long ' * 20}{i}.jpg" for i in range(8)]
  sheet = np.asarray(contact_sheet(pictures, captions, legend=(3, ()), title="8 images"))
  for i in range(1, 8):
    assert (sheet == (i, 0, 0)).all(axis=-1).sum() == (100 + i) * 50
