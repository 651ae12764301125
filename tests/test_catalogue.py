"""What is said of files that people must get."""

import pytest

from scops_jax import models
from scops_jax.catalogue import check_files, missing_files, weight_file
from scops_jax.catalogue.published import COLLECTIONS
from scops_jax.catalogue.weights import WEIGHTS
from scops_jax.config import default_config, release_config
from scops_jax.data.collection import BUILDERS
from scops_jax.data.published.base import PublishedCollection
from scops_jax.errors import UserError
from scops_jax.weights.published import imagenet_weights_path


def celeba(tmp_path):
  config = release_config()
  config.data.name, config.data.dir = "celeba_wild", str(tmp_path / "celeba")
  config.data.cache_dir = str(tmp_path / "cache")
  return config


def test_all_missing_files_are_in_one_message_with_source_size_and_licence(tmp_path):
  with pytest.raises(UserError, match=r"6 of the config's files are missing") as caught:
    check_files(celeba(tmp_path))
  weights = [line for line in caught.value.details if "vgg19" in line]
  assert len(weights) == 1
  assert "download.pytorch.org/models; 575 MB; BSD-3-Clause" in weights[0]
  lists = [line for line in caught.value.details if "list_bbox_celeba.txt" in line]
  assert "list_landmarks_celeba.txt" in lists[0]
  assert "mmlab.ie.cuhk.edu.hk" in lists[0]


def test_files_that_are_there_or_not_read_are_not_missing(tmp_path):
  config = celeba(tmp_path)
  config.segmenter_weights = config.reference_weights = "random"
  config.data.saliency = "auto"
  for wanted in COLLECTIONS["celeba_wild"]:
    path = tmp_path / "celeba" / wanted.names[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    if not wanted.is_saliency:
      path.touch()
  assert list(missing_files(config)) == []
  config.data.saliency = "collection"
  assert len(list(missing_files(config))) == 1
  config.data.saliency_dir = str(tmp_path)
  assert list(missing_files(config)) == []


def test_a_prepared_data_set_needs_no_files(tmp_path):
  config = celeba(tmp_path)
  config.segmenter_weights = config.reference_weights = "random"
  prepared = tmp_path / "cache" / "celeba_wild" / "wild-1-2" / "2.0.0"
  prepared.mkdir(parents=True)
  (prepared / "dataset_info.json").touch()
  assert list(missing_files(config)) == []


def test_remote_files_are_not_looked_for(tmp_path):
  config = celeba(tmp_path)
  config.segmenter_weights = config.reference_weights = "gs://bucket/weights.pth"
  config.data.dir = "gs://bucket/celeba"
  config.data.saliency = "ones"
  assert list(missing_files(config)) == []


def test_own_images_need_their_folder(tmp_path):
  config = default_config()
  config.data.name, config.data.dir = "image_folder", str(tmp_path / "none")
  with pytest.raises(UserError, match="there is no such folder"):
    check_files(config)


@pytest.mark.parametrize("name", sorted(COLLECTIONS))
def test_the_catalogue_names_what_the_readers_read(name):
  builder, config = BUILDERS[name], default_config()
  assert issubclass(builder, PublishedCollection)
  listed = {path.format(category=config.pascal.category) for w in COLLECTIONS[name] for path in w.names}
  assert listed <= {*builder.sources(config), *builder.saliency_folders}


def test_every_network_has_a_file_or_a_package():
  names = {*models._SEGMENTERS, *models._REFERENCES}
  for name in names:
    assert weight_file(name) or imagenet_weights_path(name).exists(), name
  assert set(WEIGHTS) <= names
