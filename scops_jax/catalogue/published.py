"""The files of the published collections, in the order in which people get them."""

from scops_jax.catalogue.wanted import WantedFile

_RESEARCH = "for non-commercial research"
_CELEBA = "mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
_MAFL = "MAFL, mmlab.ie.cuhk.edu.hk/projects/TCDCN.html"
_CUB = "www.vision.caltech.edu/datasets/cub_200_2011, CUB_200_2011.tgz"
_VOC = "host.robots.ox.ac.uk/pascal/VOC/voc2010, VOCtrainval_03-May-2010.tar"
# The release's masks are the authors' (github.com/NVlabs/SCOPS, CC BY-NC-SA); this project has none of them.
_SALIENCY = "the authors' masks (github.com/NVlabs/SCOPS), or none with data.saliency=auto"


def _files(names: tuple[str, ...], source: str, size: str, licence: str) -> tuple[WantedFile, ...]:
  """Returns files that come together."""
  return tuple(WantedFile((name,), source, size, licence) for name in names)


COLLECTIONS: dict[str, tuple[WantedFile, ...]] = {
  "celeba_wild": (
    WantedFile(("img_celeba",), f"{_CELEBA}, In-The-Wild Images", "202 599 images, about 10 GB", _RESEARCH),
    *_files(
      ("list_landmarks_celeba.txt", "list_bbox_celeba.txt"), f"{_CELEBA}, Anno", "about 10 MB", _RESEARCH
    ),
    *_files(("MAFL/training.txt", "MAFL/testing.txt"), _MAFL, "under 1 MB", _RESEARCH),
    WantedFile(("Saliency_Wild",), _SALIENCY, "one PNG an image", "CC BY-NC-SA", is_saliency=True),
  ),
  "aflw": (
    WantedFile(
      ("data/aflw.sqlite", "aflw.sqlite"),
      "on request from www.tugraz.at/institute/icg/research/team-bischof/lrs/downloads/aflw",
      "about 60 MB",
      _RESEARCH,
    ),
    WantedFile(("data/flickr",), "with the database", "21 997 images, several GB", _RESEARCH),
    WantedFile(("saliency",), _SALIENCY, "one PNG an image", "CC BY-NC-SA", is_saliency=True),
  ),
  "cub_parts": (
    *_files(
      tuple(
        f"CUB_200_2011/{name}"
        for name in (
          "images",
          "classes.txt",
          "images.txt",
          "train_test_split.txt",
          "bounding_boxes.txt",
          "parts/parts.txt",
          "parts/part_locs.txt",
        )
      ),
      _CUB,
      "all in one archive of 1.1 GB",
      _RESEARCH,
    ),
    WantedFile(
      ("segmentations", "CUB_200_2011/segmentations"),
      "www.vision.caltech.edu/datasets/cub_200_2011, segmentations.tgz",
      "37 MB",
      _RESEARCH,
      is_saliency=True,
    ),
  ),
  "pascal_parts": (
    *_files(
      (
        "VOCdevkit/VOC2010/JPEGImages",
        "VOCdevkit/VOC2010/ImageSets/Main/{category}_train.txt",
        "VOCdevkit/VOC2010/ImageSets/Main/{category}_val.txt",
      ),
      _VOC,
      "all in one archive of 1.3 GB",
      "Flickr's terms of use",
    ),
    WantedFile(
      ("Annotations_Part",), "roozbehm.info/pascal-parts, trainval.tar.gz", "about 80 MB", "not stated"
    ),
  ),
}
