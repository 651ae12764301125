"""The report's text: complete, escaped, self-contained; its behaviour is tested in a browser next door."""

import html.parser
import json
import re

import numpy as np
import pytest

from scops_jax import config as config_module
from scops_jax.report import images, markup
from scops_jax.report.page import write_report
from tests import pages

VOID = {"meta", "link", "img", "input"}


class Structure(html.parser.HTMLParser):
  """Checks that tags nest, and keeps ids, references and text."""

  def __init__(self, text):
    super().__init__()
    self.open, self.ids, self.references, self.texts = [], [], [], []
    self.feed(text)
    self.close()
    assert not self.open

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    self.ids += [attrs["id"]] if "id" in attrs else []
    self.references += [value for name, value in attrs.items() if name in ("src", "href", "srcset", "action")]
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.handle_starttag(tag, attrs)
    if tag not in VOID:
      self.open.pop()

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] not in ("style", "script"):
      self.texts.append(data)

  @property
  def text(self):
    return re.sub(r"\s+", " ", " ".join(self.texts))


def write(tmp_path, *, results=None, records=pages.RECORDS, config=None, gallery=None):
  path = tmp_path / "report" / "index.html"
  write_report(
    path,
    results=pages.RESULTS | (results or {}),
    records=records,
    config=config or pages.config(),
    gallery=gallery or pages.gallery(),
  )
  return path.read_text(encoding="utf-8")


def read(tmp_path, **options):
  return Structure(write(tmp_path, **options)).text


def test_the_page_is_whole_and_needs_nothing_else(tmp_path):
  page = write(tmp_path)
  structure = Structure(page)
  assert len(structure.ids) == len(set(structure.ids))
  assert structure.references
  assert all(reference.startswith("data:") for reference in structure.references)
  assert not re.search(r"https?:|@import|url\(|//[a-z]", re.sub(r"data:[^\"]*", "", page))
  assert "default-src 'none'" in page
  assert [path.name for path in (tmp_path / "report").iterdir()] == ["index.html"]


def test_the_same_input_gives_the_same_bytes(tmp_path):
  assert write(tmp_path / "a") == write(tmp_path / "b")


def test_results_are_shown_with_their_baselines(tmp_path):
  text = read(tmp_path, results={"foreground_iou_crf": 0.91})
  for shown in ("SCOPS 21.0 %", "DFF 30.0 %", "Mean shape 60.0 %", "Foreground IoU with CRF 0.91"):
    assert shown in text
  assert "The landmark error is 30 % below DFF’s and 65 % below the mean shape’s." in text
  assert "Parts: ARI –" not in text
  assert "Parts: ARI, ARI with background: no such ground truth." in text
  assert "of each landmark , test images left eye 20.0 % right eye 22.0 % tail –" in text
  assert "In other units: 31.0 % of the longer edge of the object’s box; 11.0 % of the image’s edge." in text
  assert "Pixels that keep their part when the image is turned, shrunk and moved 92.0 %" in text
  assert "should have moved to 1.25 pixels" in text
  assert "those that keep it when the image is moved: 0.9, 0.8, – (parts 1 to 3)." in text
  assert "NMI 0.7 ARI 0.65 NMI of the likeliest part 0.8 ARI of the likeliest part 0.75" in text


def test_a_worse_error_is_called_above(tmp_path):
  assert "10 % above DFF’s" in read(tmp_path, results={"landmark_error_test": 0.33})


def test_bars_are_in_proportion(tmp_path):
  widths = re.findall(r'<tr class="[a-z]*">.*?width:([\d.]+)%', write(tmp_path))
  assert [float(width) for width in widths] == [
    *(35.0, 50.0, 100.0),
    *(90.91, 100.0, 0.0),
    *(70.0, 65.0, 80.0, 75.0),
    *(90.0, 88.0, 50.0, 60.0),
  ]


def test_a_collection_without_ground_truth(tmp_path):
  missing = dict.fromkeys(
    (
      "landmark_error_train",
      "landmark_error_test",
      "mean_shape_error_test",
      "dff_error_test",
      "landmark_errors_test",
      "nmi",
      "ari",
      "keypoint_nmi",
      "keypoint_ari",
      "keypoint_fg_nmi",
      "keypoint_fg_ari",
    )
  )
  gallery = pages.gallery(annotated=False)
  text = read(tmp_path, results=missing, gallery=gallery, records=[])
  assert "the collection has no annotated landmarks" in text
  assert "of each landmark" not in text
  assert "Foreground IoU 0.9" in text
  assert "1 − foreground IoU" in text
  assert "Annotated landmarks" not in text
  assert "No step has been logged." in text
  assert "nan" not in text.lower()


@pytest.mark.parametrize("normalizer", config_module._CHOICES["data.landmark_normalizer"])
def test_every_normalizer_has_its_words(tmp_path, normalizer):
  assert "per cent of the" in read(tmp_path, config=pages.config(**{"data.landmark_normalizer": normalizer}))


def test_dead_and_dominating_parts_are_named(tmp_path):
  text = read(tmp_path)
  assert "Part 1 dominates: it has more than half of the foreground." in text
  assert "Part 3 is nearly unused: it has less than 1 % of the foreground." in text
  assert "Part 2 dominates" not in text
  assert "Every part is in use" in read(tmp_path, results={"part_area_fractions": [0.5, 0.49, 0.01]})


def test_strings_are_escaped(tmp_path):
  nasty = "<script>alert('$&\"')</script>"
  page = write(tmp_path, config=pages.config(**{"data.name": nasty, "data.dir": f"${{style}}{nasty}"}))
  assert page.count("<script>") == 1
  assert "alert(&#x27;$&amp;" in page
  assert json.dumps(f"${{style}}{nasty}") in Structure(page).text


def test_the_foreground_s_truth_is_named(tmp_path):
  assert "compared with the ground-truth parts" in read(tmp_path)
  for saliency, expected in (
    ("auto", "were computed from the images, without labels"),
    ("ones", "every pixel counts as foreground"),
    ("collection", "compared with the collection’s saliency maps"),
  ):
    text = read(tmp_path, results={"nmi": None}, config=pages.config(**{"data.saliency": saliency}))
    assert expected in text, saliency
  own = pages.config(**{"data.name": "image_folder", "data.dir": "data/my_cats"})
  text = read(tmp_path, results={"nmi": None}, config=own)
  assert "compared with your masks, or the images’ transparency" in text
  assert "SCOPS on my_cats" in text


def test_few_images_and_chance_are_named(tmp_path):
  text = read(tmp_path)
  assert "Only 6 test images: the measures are rough." in text
  # The five errors' standard deviation is 0.1432, over the root of 5 0.0640.
  assert "landmark error of 5 test images is uncertain by ± 6.4 % (one standard error)" in text
  assert (
    "Few images with landmarks: each landmark coordinate is a sum with 6 coefficients, fitted to 20" in text
  )
  assert "training images: parts may" not in text
  text = read(tmp_path, results={"landmark_error_test": None})
  assert "Only 20 training images: parts may suit these better than any others." in text
  text = read(tmp_path, results={"num_test": 400, "num_train": 2000})
  assert "Only" not in text
  assert "Few images" not in text


def test_names_and_masks_are_shown(tmp_path):
  page = write(tmp_path)
  assert page.count('title="folder/a long name of the image number 3.jpg"') == 1
  assert page.count('class="picture mask"') == 6
  assert 'data-shows="mask"' in page
  images_, labels, centers = pages.scene()
  builder = pages.GalleryBuilder(pages.NUM_PARTS)
  builder.add(images_, labels, centers, foreground=labels >= 0)
  page = write(tmp_path, gallery=builder.build())
  assert 'class="picture mask"' not in page
  assert 'data-shows="mask"' not in page


def test_every_config_key_is_listed(tmp_path):
  text = read(tmp_path)
  for shown in ("num_parts 3", "spatial.scale_low 0.7", 'reference_layers ["block10_depthwise"]'):
    assert shown in text


def test_the_page_says_how_many_images_it_shows(tmp_path):
  assert "All 6 test images." in read(tmp_path)
  images_, labels, centers = pages.scene()
  builder = pages.GalleryBuilder(pages.NUM_PARTS)
  builder.add(images_, labels, centers, foreground=labels > 0)
  chosen = builder.build(errors=pages.ERRORS, max_images=4, max_worst=2)
  expected = (
    "4 of 6 test images: 2 spread evenly over all, and the 2 with the largest landmark error of the others."
  )
  assert expected in read(tmp_path, gallery=chosen)


def test_tiles_come_worst_first_and_unscored_last(tmp_path):
  page = write(tmp_path)
  assert re.findall(r'data-index="(\d+)"', page) == pages.WORST_FIRST
  assert page.count("not scored") == 1
  assert re.findall(r'data-error="([^"]*)"', page)[-1] == ""


def test_only_parts_of_an_image_have_a_layer_and_a_centre(tmp_path):
  page = write(tmp_path)
  assert [page.count(f'<img class="part-{part}"') for part in (1, 2, 3)] == [6, 6, 1]
  assert [page.count(f'<circle class="part-{part}"') for part in (1, 2, 3)] == [6, 6, 1]


def test_landmarks_that_are_hidden_or_not_predicted_have_no_mark(tmp_path):
  tile = next(tile for tile in write(tmp_path).split("<figure")[1:] if 'data-index="0"' in tile)
  for name, shape in (("annotated", "<circle"), ("predicted", "<path")):  # two of three each
    group = re.search(rf'<g class="{name}">(.*?)</g>', tile).group(1)
    assert group.count(shape) == 2
    assert "nan" not in group


def test_a_mismatch_of_parts_raises_and_writes_nothing(tmp_path):
  with pytest.raises(ValueError, match="the config has 4 parts, the results have 3"):
    write(tmp_path, config=pages.config(num_parts=4))
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("value", "expected"),
  [
    (None, "–"),
    (0.0, "0"),
    (12345.6, "12,346"),
    (0.00012, "1.2e-4"),
    (4e-4, "4e-4"),
    (3.14159, "3.14"),
    (np.inf, "inf"),
  ],
)
def test_numbers(value, expected):
  assert markup.number(value) == expected


def test_part_flags_at_their_limits():
  assert [images.part_flag(share) for share in (0.0099, 0.01, 0.5, 0.51)] == [
    images.UNUSED,
    "",
    "",
    images.DOMINATING,
  ]
