"""Line charts in plain text."""

import numpy as np


def chart(
  x: np.ndarray, y: np.ndarray, *, width: int = 64, height: int = 12, label: str = ""
) -> str:
  """Plots a line over an x axis.

  Args:
    x: ascending.
    y: values at `x`; finite.
    width: number of columns of the plot.
    height: number of rows.
    label: label of the x axis.

  Returns:
    Text with the y range at the left and the x range below.
  """
  low, high = float(np.min(y)), float(np.max(y))
  columns = np.linspace(x[0], x[-1], width)
  depth = (high - np.interp(columns, x, y)) / ((high - low) or 1)
  grid = np.full((height, width), " ")
  grid[np.round(depth * (height - 1)).astype(int), np.arange(width)] = "*"
  side = [f"{high:.3g}", *[""] * (height - 2), f"{low:.3g}"]
  margin = max(map(len, side))
  body = [
    f"{s:>{margin}} |{''.join(row)}".rstrip() for s, row in zip(side, grid, strict=True)
  ]
  left, right = f"{x[0]:g}", f"{x[-1]:g}"
  axis = " " * margin + " +" + "-" * width
  labels = f"{left} {label.center(width - len(left) - len(right) - 2)} {right}"
  return "\n".join([*body, axis, " " * (margin + 2) + labels])
