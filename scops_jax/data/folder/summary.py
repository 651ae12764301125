"""Says in words what was found in a folder of own images."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_FEW_IMAGES = 200  # training images below which parts are seldom consistent
_EMPTY, _FULL = 0.005, 0.95  # shares of an image beyond which a mask says nothing


class Finding(NamedTuple):
  """What was found of one image."""

  split: str
  height: int  # of the file, upright
  width: int
  reduced: bool
  foreground: float | None  # mean of the mask, 0..1; None: no mask
  part_indices: tuple[int, ...] | None  # that its map of parts holds; None: no map
  visible: tuple[bool, ...]  # of each landmark
  outside: int  # landmarks that count as hidden because they lie outside the image


def summarize(
  findings: Sequence[Finding], *, landmark_names: Sequence[str], part_names: Sequence[str]
) -> list[str]:
  """Returns lines about images, masks, landmarks and parts; what asks for attention starts with "warning"."""
  splits = {split: [f for f in findings if f.split == split] for split in ("train", "test")}
  lines = [
    f"images: {len(splits['train'])} to train on, {len(splits['test'])} to test on; {_sizes(findings)}"
  ]
  if len(splits["train"]) < _FEW_IMAGES:
    lines.append(
      f"warning: {len(splits['train'])} training images are few; with {_FEW_IMAGES} or more, parts mean the "
      "same in every image more reliably"
    )
  lines += _masks(findings)
  lines += _landmarks(findings, splits, landmark_names)
  if part_names:
    count = sum(finding.part_indices is not None for finding in findings)
    lines.append(f"ground-truth parts: {len(part_names) - 1}, in {count} images; used by the evaluation only")
  else:
    lines.append("ground-truth parts: none")
  return lines


def _sizes(findings: Sequence[Finding]) -> str:
  def text(finding: Finding) -> str:
    return f"{finding.width} × {finding.height}"

  ordered = sorted(findings, key=lambda finding: finding.width * finding.height)
  smallest, largest = text(ordered[0]), text(ordered[-1])
  words = f"all {smallest}" if smallest == largest else f"from {smallest} to {largest} pixels"
  reduced = sum(finding.reduced for finding in findings)
  return words + (f", {reduced} of them kept smaller (folder.max_edge)" if reduced else "")


def _masks(findings: Sequence[Finding]) -> list[str]:
  shares = np.asarray([finding.foreground for finding in findings if finding.foreground is not None])
  if not shares.size:
    return ["masks: none"]
  lines = [f"masks: {len(shares)}, the object covers {np.median(shares):.0%} of an image (median)"]
  for what, count in (("empty", (shares < _EMPTY).sum()), ("nearly full", (shares > _FULL).sum())):
    if count:
      lines.append(f"warning: {count} masks are {what}; white is the object, black the background")
  return lines


def _landmarks(
  findings: Sequence[Finding], splits: dict[str, list[Finding]], names: Sequence[str]
) -> list[str]:
  if not names:
    return ["landmarks: none, so no landmark error"]
  counts = {split: np.sum([f.visible for f in found], axis=0) for split, found in splits.items() if found}
  lines = [f"landmarks: {len(names)}; visible in (training, test) images:"]
  for index, name in enumerate(names):
    lines.append(f"  {name}: " + ", ".join(str(count[index]) for count in counts.values()))
  outside = sum(finding.outside for finding in findings)
  if outside:
    lines.append(f"warning: {outside} landmarks lie outside their image and count as hidden")
  return lines
