"""Finds the parts in any images: python -m scops_jax.predict --workdir=RUN --images=FOLDER --out=OUT.

RUN is a run's directory, a file NAME.scops of `python -m scops_jax.export`, or toy_faces, a network for drawn
faces that comes with this package. For each image STEM.jpg (or of another format that Pillow reads), OUT
contains:

  labels/STEM.png          index image of the original's size: 0 = background, k = part k, with a palette
  overlays/STEM.jpg        the part colours over the original, with numbered centres and a legend, small
                           images enlarged (--nomarks: of the original's size and without them)
  probabilities/STEM.npz   with --probabilities: probs [S, S, K+1] float16, S = the network's image_size,
                           and centers [K, 2] float32, (x, y) in [-1, 1]

and parts.csv has a line for each image and part: image, part (1..K), x, y (centre of mass of the part's soft
map in pixels of the original; integers are pixel centres, (0, 0) is the top left pixel), area (pixels of the
original with that label) and mean_probability (of the part, over these pixels). A part without pixels has x
and y, but an empty mean_probability. contact_sheet.jpg shows up to 48 of the images. Subfolders of FOLDER are
kept. Where two images differ only in their suffix, STEM is the full name.

Of a video file (--images=CLIP.mp4) OUT gets CLIP_parts.mp4, without sound, and CLIP_parts.csv with a line for
each frame and part; it needs the extra "video": pip install "scops_jax[video]".

A file that can't be read is reported, listed in failed.txt and left out; the exit code is 0 if at least one
image could be read. Run again, an interrupted call labels only what is missing, damaged or has changed since.
OUT is predict's own: a folder that holds files of these names, but was not written by predict, is refused.
--export=DIR writes the network as a program that needs jax and flatbuffers, but not this package, with or
without --images; a .scops file needs this package.
"""

import pathlib
import sys

from absl import flags

from scops_jax import cli
from scops_jax.errors import UserError, printable
from scops_jax.prediction.sources import find_network
from scops_jax.progress import phase

_WORKDIR = flags.DEFINE_string(
  "workdir", None, "A run, whose newest checkpoint is used, a .scops file, or toy_faces.", required=True
)
flags.DEFINE_alias("model", "workdir")
_IMAGES = flags.DEFINE_string(
  "images", None, "An image or video file, a folder (with its subfolders), or a glob."
)
_OUT = flags.DEFINE_string("out", None, "The folder to write, local, gs:// or s3://.")
_PROBABILITIES = flags.DEFINE_bool("probabilities", False, "Also write the soft part maps.")
_CRF = flags.DEFINE_bool("crf", False, "Sharpen the maps along the image's edges with a dense CRF.")
_MARKS = flags.DEFINE_bool("marks", True, "Draw numbered part centres and a legend on overlays.")
_EXPORT = flags.DEFINE_string("export", None, "Write the network as a standalone program to this folder.")
_BATCH_SIZE = flags.DEFINE_integer(
  "batch_size", None, "Images per call of the network. Default: 8 on a CPU, else 32.", lower_bound=1
)
_PROCESSES = flags.DEFINE_integer(
  "processes",
  None,
  "Processes that share a CPU's cores, 0.4 GB each. Default: one per core (at most 16) from 1000 images on.",
  lower_bound=1,
)


def main() -> None:
  """Checks the flags, then exports and predicts."""
  # Not at the top: each of --processes imports this module again without needing these.
  from scops_jax.data.image_files import find_images, is_video, unread_images
  from scops_jax.storage.paths import is_remote

  where, out, export = _IMAGES.value, _OUT.value, _EXPORT.value
  if (where is None) != (out is None) or (where is None and export is None):
    raise UserError("give --images and --out together, or --export, or all three")
  # Before loading anything large: a wrong path shows at once.
  if where is not None and is_remote(where):
    raise UserError(f"--images={where}: images are read from a local folder; copy them there first")
  video = where is not None and is_video(where)
  if video and (_PROBABILITIES.value or _PROCESSES.value is not None):
    raise UserError("--probabilities and --processes are for images, and --images is a video")
  images = find_images(where, outside=pathlib.Path(out)) if where and out and not video else {}
  if where is not None and (others := unread_images(where)):
    more = f" and {len(others) - 3} more" if len(others) > 3 else ""
    print(
      f"left out, because files of these formats are not read: {printable(', '.join(others[:3]))}{more}; "
      "convert them to JPEG",
      file=sys.stderr,
    )
  find_network(_WORKDIR.value)
  with phase("loading the libraries and the network"):
    from scops_jax.prediction.program_file import export_program
    from scops_jax.prediction.restore import load_segmenter
    from scops_jax.prediction.stream import predict_images
    from scops_jax.prediction.video import predict_video

    segmenter = load_segmenter(_WORKDIR.value)
  if export is not None:
    try:
      print(export_program(segmenter, export))
    except OSError as error:
      raise UserError(f"--export={export} can't be written: {error.strerror}") from error
  if out is not None and where is not None and video:
    predict_video(segmenter, where, out, crf=_CRF.value, marks=_MARKS.value, batch_size=_BATCH_SIZE.value)
  elif out is not None:
    predict_images(
      segmenter,
      images,
      out,
      probabilities=_PROBABILITIES.value,
      crf=_CRF.value,
      marks=_MARKS.value,
      batch_size=_BATCH_SIZE.value,
      processes=_PROCESSES.value,
    )


if __name__ == "__main__":
  cli.run(main)
