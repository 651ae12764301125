"""The colours of parts."""

import numpy as np

# Distinct on skin, fur and feathers, the most different ones first. PASCAL VOC's are dark, and its first and
# eighth are similar.
_PART_COLORS = np.frombuffer(
  bytes.fromhex(
    "e6194b 3cb44b ffe119 006edc f58230 911eb4 46f0f0 f032e6 "
    "aaff50 008080 965a1e fab4d7 1e1e8c 800014 787d14 c8b4ff"
  ),
  np.uint8,
).reshape(-1, 3)


def part_colors(num_parts: int) -> np.ndarray:
  """Returns the colours of parts in pictures.

  Args:
    num_parts: K; after 16 parts the colours repeat.

  Returns:
    `[K, 3]` uint8 RGB; row k - 1 is part k.
  """
  return _PART_COLORS[np.arange(num_parts) % len(_PART_COLORS)]
