"""An independent float64 NumPy reference of PyTorch's layers, written plainly: loops over output cells."""

import numpy as np


def conv(x, kernel, *, stride=1, padding=0, dilation=1):
  """Convolves [B, H, W, C] with [k, k, C, D]."""
  size = dilation * (kernel.shape[0] - 1) + 1
  padded = np.pad(np.asarray(x, np.float64), ((0, 0), (padding, padding), (padding, padding), (0, 0)))
  height, width = ((n - size) // stride + 1 for n in padded.shape[1:3])
  out = np.zeros((len(x), height, width, kernel.shape[-1]))
  for i in range(height):
    for j in range(width):
      window = padded[:, i * stride : i * stride + size : dilation, j * stride : j * stride + size : dilation]
      out[:, i, j] = np.tensordot(window, np.asarray(kernel, np.float64), axes=3)
  return out


def batch_norm(x, scale, bias, mean, var):
  return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


def max_pool(x, *, kernel_size, stride, padding=0, ceil_mode=False):
  """Takes each window's maximum; in ceil mode a window counts if it begins before the end of x."""

  def starts(size):
    every = range(-padding, size, stride)
    return [start for start in every if ceil_mode or start + kernel_size <= size + padding]

  def window(start, size):
    return slice(max(start, 0), min(start + kernel_size, size))

  height, width = x.shape[1:3]
  rows = [
    np.stack([x[:, window(i, height), window(j, width)].max(axis=(1, 2)) for j in starts(width)], axis=1)
    for i in starts(height)
  ]
  return np.stack(rows, axis=1)
