"""What is known of a file that people get from others."""

from typing import NamedTuple


class WantedFile(NamedTuple):
  """A file or folder, or one of several that serve alike."""

  names: tuple[str, ...]  # paths below data.dir, or a weight file's name; the first is the usual one
  source: str
  size: str
  licence: str
  is_saliency: bool = False  # read only with data.saliency=collection

  def __str__(self) -> str:
    return f"{self.names[0]} ({self.source}; {self.size}; {self.licence})"
