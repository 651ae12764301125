"""Reading users' images: every pixel format against values known beforehand, damaged files, finding."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from scops_jax.data.image_files import find_images, read_image, resize_pixels, unread_images
from scops_jax.errors import UserError

HEIGHT, WIDTH = 5, 8
RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
GREY = RNG.integers(0, 256, (HEIGHT, WIDTH), np.uint8)
ALPHA = RNG.choice(np.array([0, 255], np.uint8), (HEIGHT, WIDTH))
# Large blocks, so that JPEG keeps the colours.
BLOCKS = np.kron(RNG.integers(40, 216, (2, 3, 3), np.uint8), np.ones((16, 16, 1), np.uint8))


def save(picture, path, **options):
  picture.save(path, **options)
  return read_image(path)


def over_white(pixels, alpha):
  return np.where(alpha[..., None] == 255, pixels, 255)


def png(path, *, depth, color_type, rows, transparency=()):
  """Writes a PNG of a kind that Pillow can't: big-endian samples, one unfiltered scanline a row."""

  def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

  height, width = rows.shape[:2]
  body = b"".join(b"\0" + row.astype(">u2" if depth == 16 else "u1").tobytes() for row in rows)
  header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
  path.write_bytes(
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", header)
    + (chunk(b"tRNS", struct.pack(f">{len(transparency)}H", *transparency)) if len(transparency) else b"")
    + chunk(b"IDAT", zlib.compress(body))
    + chunk(b"IEND", b"")
  )
  return read_image(path)


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_rgb_is_exact(suffix, tmp_path):
  result = save(Image.fromarray(RGB), tmp_path / f"x.{suffix}", lossless=True)
  assert result.pixels.dtype == np.uint8
  np.testing.assert_array_equal(result.pixels, RGB)
  assert result.alpha is None


@pytest.mark.parametrize("suffix", ["bmp", "tif", "tiff"])
def test_tiff_and_bmp_are_exact(suffix, tmp_path):
  result = save(Image.fromarray(RGB), tmp_path / f"x.{suffix}")
  np.testing.assert_array_equal(result.pixels, RGB)
  assert find_images(tmp_path) == {f"x.{suffix}": tmp_path / f"x.{suffix}"}


def test_tiff_of_16_bits_and_several_pages(tmp_path):
  values = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 1600
  expected = np.rint(values / 257)[..., None].repeat(3, axis=-1)
  np.testing.assert_array_equal(save(Image.fromarray(values), tmp_path / "16.tif").pixels, expected)
  pages = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
  result = save(pages[0], tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
  np.testing.assert_array_equal(result.pixels[..., 0], GREY)
  for name, pixels, message in (
    ("float.tif", np.zeros((4, 4), np.float32), "floating-point"),
    ("32.tif", np.full((4, 4), 70000, np.int32), "more than 16 bits"),
  ):
    Image.fromarray(pixels).save(tmp_path / name)
    with pytest.raises(UserError, match=f"{name} can't be decoded: .*{message}"):
      read_image(tmp_path / name)


def test_the_first_frame_of_a_gif(tmp_path):
  frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
  result = save(frames[0], tmp_path / "x.gif", save_all=True, append_images=frames[1:])
  np.testing.assert_array_equal(result.pixels, np.repeat(GREY[..., None], 3, -1))


def test_formats_of_phones_are_named(tmp_path):
  (tmp_path / "x.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
  with pytest.raises(UserError, match=r"x\.heic is a HEIC or AVIF image, which is not read: convert"):
    read_image(tmp_path / "x.heic")
  with pytest.raises(UserError, match=r"no image is found at .* \(there are \.heic files\)"):
    find_images(tmp_path)


def test_the_content_tells_the_format_not_the_name(tmp_path):
  Image.fromarray(RGB).save(tmp_path / "x.jpg", format="PNG")
  np.testing.assert_array_equal(read_image(tmp_path / "x.jpg").pixels, RGB)


def test_jpeg_in_colour_grey_and_cmyk(tmp_path):
  colour = Image.fromarray(BLOCKS)
  for mode in ("RGB", "L", "CMYK"):
    result = save(colour.convert(mode), tmp_path / f"{mode}.jpg", quality=95)
    assert result.alpha is None
    expected = np.asarray(colour.convert("L").convert("RGB") if mode == "L" else colour)
    assert np.abs(result.pixels.astype(int) - expected).mean() < 3, mode
  exif = Image.Exif()
  exif[0x0112] = 6
  turned = save(Image.fromarray(np.rot90(BLOCKS)), tmp_path / "turned.jpg", quality=95, exif=exif)
  assert np.abs(turned.pixels.astype(int) - BLOCKS).mean() < 3


def test_greyscale_bilevel_and_palette(tmp_path):
  grey = save(Image.fromarray(GREY), tmp_path / "grey.png")
  np.testing.assert_array_equal(grey.pixels, np.repeat(GREY[..., None], 3, -1))
  bilevel = save(Image.fromarray(GREY > 99), tmp_path / "bilevel.png")
  np.testing.assert_array_equal(bilevel.pixels[..., 1], np.where(GREY > 99, 255, 0))
  palette = Image.fromarray(GREY % 4, mode="P")
  palette.putpalette([1, 2, 3, 40, 50, 60, 7, 8, 9, 200, 100, 0])
  colours = np.array([[1, 2, 3], [40, 50, 60], [7, 8, 9], [200, 100, 0]])
  result = save(palette, tmp_path / "palette.png")
  np.testing.assert_array_equal(result.pixels, colours[GREY % 4])
  assert result.alpha is None
  # Transparency of palettes: one index, or an alpha a colour.
  for transparency, alphas in ((2, [255, 255, 0, 255]), (b"\0\xff\xff\0", [0, 255, 255, 0])):
    result = save(palette, tmp_path / "transparent.png", transparency=transparency)
    alpha = np.array(alphas)[GREY % 4]
    np.testing.assert_array_equal(result.alpha, alpha)
    np.testing.assert_array_equal(result.pixels, over_white(colours[GREY % 4], alpha))


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_alpha_is_returned_and_what_is_transparent_is_white(suffix, tmp_path):
  picture = Image.fromarray(np.dstack([RGB, ALPHA]))
  result = save(picture, tmp_path / f"x.{suffix}", lossless=True, exact=True)
  np.testing.assert_array_equal(result.alpha, ALPHA)
  np.testing.assert_array_equal(result.pixels, over_white(RGB, ALPHA))


def test_half_transparent_is_blended(tmp_path):
  picture = Image.fromarray(np.full((1, 1, 4), (100, 0, 200, 51), np.uint8))
  result = save(picture, tmp_path / "x.png")
  # 0.2 times the colour and 0.8 times white.
  np.testing.assert_allclose(result.pixels[0, 0], [224, 204, 244], atol=1)


def test_grey_with_alpha_and_colour_keys(tmp_path):
  grey = save(Image.fromarray(np.dstack([GREY, ALPHA])), tmp_path / "la.png")
  np.testing.assert_array_equal(grey.alpha, ALPHA)
  np.testing.assert_array_equal(grey.pixels, over_white(np.repeat(GREY[..., None], 3, -1), ALPHA))
  key = int(GREY[1, 2])
  keyed = save(Image.fromarray(GREY), tmp_path / "l.png", transparency=key)
  np.testing.assert_array_equal(keyed.alpha, np.where(np.equal(GREY, key), 0, 255))
  keyed = save(Image.fromarray(RGB), tmp_path / "rgb.png", transparency=tuple(RGB[3, 4].tolist()))
  np.testing.assert_array_equal(keyed.alpha, np.where(np.equal(RGB, RGB[3, 4]).all(-1), 0, 255))


def test_16_bits_are_scaled(tmp_path):
  values = RNG.integers(0, 65536, (HEIGHT, WIDTH, 4))
  scaled = values * 255 / 65535
  grey = png(tmp_path / "grey.png", depth=16, color_type=0, rows=values[..., 0])
  np.testing.assert_allclose(grey.pixels, np.repeat(scaled[..., :1], 3, -1), atol=0.5)
  assert grey.alpha is None
  keyed = png(
    tmp_path / "key.png", depth=16, color_type=0, rows=values[..., 0], transparency=(values[2, 3, 0],)
  )
  assert np.argwhere(keyed.alpha == 0).tolist() == [[2, 3]]
  assert keyed.pixels[2, 3].tolist() == [255] * 3
  colour = png(tmp_path / "colour.png", depth=16, color_type=2, rows=values[..., :3])
  np.testing.assert_allclose(colour.pixels, scaled[..., :3], atol=1)
  keyed = png(
    tmp_path / "key.png", depth=16, color_type=2, rows=values[..., :3], transparency=values[1, 5, :3]
  )
  assert np.argwhere(keyed.alpha == 0).tolist() == [[1, 5]]
  with_alpha = png(tmp_path / "alpha.png", depth=16, color_type=6, rows=values)
  np.testing.assert_allclose(with_alpha.alpha, scaled[..., 3], atol=1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_the_exif_orientation_is_applied(orientation, suffix, tmp_path):
  # What a camera does: the upright scene is stored so that the tag's operation brings it back.
  stored = {
    1: RGB,
    2: RGB[:, ::-1],
    3: RGB[::-1, ::-1],
    4: RGB[::-1],
    5: RGB.swapaxes(0, 1),
    6: np.rot90(RGB, 1),
    7: RGB[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90(RGB, -1),
  }[orientation]
  exif = Image.Exif()
  exif[0x0112] = orientation
  picture = Image.fromarray(np.ascontiguousarray(stored))
  result = save(picture, tmp_path / f"x.{suffix}", exif=exif, lossless=True)
  np.testing.assert_array_equal(result.pixels, RGB)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_matter(tmp_path):
  result = save(Image.fromarray(RGB), tmp_path / "x.png", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01")
  np.testing.assert_array_equal(result.pixels, RGB)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_truncated_file_is_an_error_that_names_it(suffix, tmp_path):
  buffer = io.BytesIO()
  noise = Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8))
  noise.save(buffer, format={"jpg": "JPEG"}.get(suffix, suffix))
  path = tmp_path / f"cut.{suffix}"
  for kept in (0.02, 0.5, 0.9):
    path.write_bytes(buffer.getvalue()[: int(kept * len(buffer.getvalue()))])
    with pytest.raises(UserError, match=rf"cut\.{suffix}"):
      read_image(path)


def test_what_is_no_image_is_an_error_that_names_it(tmp_path):
  (tmp_path / "text.png").write_text("hello")
  (tmp_path / "empty.jpg").touch()
  Image.fromarray(RGB).save(tmp_path / "other.jpg", format="PPM")
  for name in ("text.png", "empty.jpg", "other.jpg"):
    with pytest.raises(UserError, match=f"{name} is not a JPEG, PNG, WebP, TIFF, BMP or GIF image"):
      read_image(tmp_path / name)
  with pytest.raises(UserError, match=r"missing\.png can't be decoded: No such file"):
    read_image(tmp_path / "missing.png")
  with pytest.raises(UserError, match="can't be decoded: Is a directory"):
    read_image(tmp_path)


def test_a_png_of_wrong_checksum_is_an_error(tmp_path):
  save(Image.fromarray(RGB), tmp_path / "x.png")
  data = bytearray((tmp_path / "x.png").read_bytes())
  data[60] ^= 0xFF
  (tmp_path / "x.png").write_bytes(data)
  with pytest.raises(UserError, match=r"x\.png"):
    read_image(tmp_path / "x.png")


@pytest.fixture
def folder(tmp_path):
  for name in ("b.PNG", "a.jpg", "sub/a.jpg", "sub/notes.txt", ".hidden/c.png", "sub/.x.png", "out/d.png"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
  return tmp_path


def test_a_folder_is_searched_with_its_subfolders(folder):
  found = find_images(folder, outside=folder / "out")
  assert list(found) == ["a.jpg", "b.PNG", "sub/a.jpg"]
  assert found["sub/a.jpg"] == folder / "sub" / "a.jpg"
  assert "out/d.png" in find_images(folder)


@pytest.mark.parametrize("kind", ["link to itself", "link to nothing", "pipe", "link to a device"])
def test_what_is_no_file_is_found_and_reported(kind, tmp_path):
  path = tmp_path / "x.png"
  if kind == "pipe":
    os.mkfifo(path)
  else:
    path.symlink_to({"link to itself": path, "link to nothing": "no", "link to a device": "/dev/zero"}[kind])
  assert find_images(tmp_path, outside=tmp_path / "out") == {"x.png": path}
  with pytest.raises(UserError, match=r"x\.png"):
    read_image(path)


def test_image_files_of_other_formats_are_named(folder):
  (folder / "sub" / "c.HEIC").touch()
  (folder / "d.avif").touch()
  assert unread_images(folder) == ["d.avif", "sub/c.HEIC"]
  assert unread_images(folder / "d.avif") == []


def test_a_file_or_a_glob_is_taken_as_it_is(folder):
  assert find_images(folder / "sub" / "notes.txt") == {"notes.txt": folder / "sub" / "notes.txt"}
  assert list(find_images(f"{folder}/*.jpg")) == ["a.jpg"]
  assert list(find_images(f"{folder}/s*/*.jpg")) == ["sub/a.jpg"]
  assert list(find_images(f"{folder}/sub/*")) == ["a.jpg", "notes.txt"]
  assert list(find_images(f"{folder}/**/a.jpg")) == ["a.jpg", "sub/a.jpg"]


def test_a_file_with_a_wildcard_in_its_name_is_found(folder):
  (folder / "x[1].png").touch()
  assert list(find_images(folder / "x[1].png")) == ["x[1].png"]


def test_a_relative_glob(folder, monkeypatch):
  monkeypatch.chdir(folder)
  assert list(find_images("*.jpg")) == ["a.jpg"]


@pytest.mark.parametrize("where", ["nothing", "*.gif", "empty"])
def test_no_image_is_an_error(where, folder):
  (folder / "empty").mkdir()
  with pytest.raises(UserError, match="no image is found"):
    find_images(folder / where)


def test_resize_leaves_the_right_size_alone_and_averages():
  np.testing.assert_array_equal(resize_pixels(BLOCKS[:32, :32], 32), BLOCKS[:32, :32])
  flat = resize_pixels(np.full((40, 10, 3), 77, np.uint8), 16)
  np.testing.assert_array_equal(flat, np.full((16, 16, 3), 77))
