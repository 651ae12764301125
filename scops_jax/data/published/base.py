"""The base of the published collections' readers: which files a data set is made from, and its name."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from ml_collections import ConfigDict

from scops_jax.data import source_files as files
from scops_jax.data.builder import CollectionBuilder
from scops_jax.storage.files import file_digest

_SMALL = 1 << 26  # bytes; the content of files up to this size is compared, of others the size and date


class PublishedCollection(CollectionBuilder, skip_registration=True):  # type: ignore[call-arg]
  """A collection that is read from `data.dir`.

  A data set's name ends with two digests. The first is of data.dir and data.saliency_dir as given, not made
  absolute, so that a cache can be copied to another machine. The second is of all files that are read: the
  content of lists and databases up to 64 MiB, and the names, sizes and dates of larger files and of those in
  folders (images, annotations, saliency maps). So another data set is prepared when one of them changes.
  """

  saliency_folders: ClassVar[tuple[str, ...]] = ()  # below data.dir; the first that exists is read

  @classmethod
  def label(cls, config: ConfigDict) -> str:
    """The beginning of the data set's name: what is chosen from the collection."""
    raise TypeError(f"{cls.__name__} must define label")

  @classmethod
  def sources(cls, config: ConfigDict) -> list[str]:
    """The files and folders below data.dir that are read, except those of saliency maps."""
    raise TypeError(f"{cls.__name__} must define sources")

  @classmethod
  def place(cls, config: ConfigDict) -> str:
    """The data set's name without the digest of the files."""
    saliency = f"in {config.data.saliency_dir}" if config.data.saliency == "collection" else "ones"
    digest = hashlib.sha256(f"{config.data.dir}\n{saliency}".encode(errors="surrogateescape"))
    return f"{cls.label(config)}-{digest.hexdigest()[:8]}"

  @classmethod
  def variant(cls, config: ConfigDict) -> str:
    root = Path(config.data.dir)
    paths = [root / name for name in cls.sources(config)]
    if config.data.saliency == "collection" and config.data.saliency_dir:
      paths.append(Path(config.data.saliency_dir))
    elif config.data.saliency == "collection":
      paths += [root / name for name in cls.saliency_folders]
    digest = hashlib.sha256()
    for path in paths:
      for line in _describe(path):
        digest.update(f"{line}\n".encode(errors="surrogateescape"))
    return f"{cls.place(config)}-{digest.hexdigest()[:8]}"

  def open_source(self) -> None:
    root = Path(self.settings.data.dir)
    self._saliency_folder = files.find_saliency_folder(
      self.settings, *(root / name for name in self.saliency_folders)
    )


def _describe(path: Path) -> Iterator[str]:
  """Lines that change with the content of a file or folder, but not with where it is."""
  if path.is_file():
    status = path.stat()
    small = status.st_size <= _SMALL
    yield file_digest(path) if small else f"{status.st_size} {status.st_mtime_ns}"
  for folder, folders, names in os.walk(path):
    folders.sort()
    for name in sorted(names):
      file = os.path.join(folder, name)
      try:
        status = os.stat(file)
      except OSError:  # a link to nothing
        status = os.lstat(file)
      yield f"{os.path.relpath(file, path)} {status.st_size} {status.st_mtime_ns}"
  yield "end"
