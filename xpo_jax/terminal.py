"""A line chart in plain text."""

from collections.abc import Mapping

import numpy as np


def chart(
  x: np.ndarray,
  lines: Mapping[str, np.ndarray],
  *,
  width: int = 64,
  height: int = 12,
  label: str = "",
) -> str:
  """Lines over a common x axis, one letter each: the first of its name.

  Args:
    x: ascending.
    lines: name -> y, of the length of `x`; finite.
    width: columns of the plot.
    height: its rows.
    label: of the x axis.

  Returns:
    Text, the y range at the left, the x range below; a `*` where lines meet.
  """
  low = min(float(np.min(y)) for y in lines.values())
  high = max(float(np.max(y)) for y in lines.values())
  grid = np.full((height, width), " ")
  columns = np.linspace(x[0], x[-1], width)
  for name, y in lines.items():
    at = np.interp(columns, x, y)
    rows = np.round((high - at) / ((high - low) or 1) * (height - 1)).astype(int)
    for column, row in enumerate(rows):
      taken = grid[row, column] not in (" ", name[0])
      grid[row, column] = "*" if taken else name[0]
  side = [f"{high:.3g}", *[""] * (height - 2), f"{low:.3g}"]
  margin = max(map(len, side))
  body = [
    f"{s:>{margin}} |{''.join(row)}".rstrip() for s, row in zip(side, grid, strict=True)
  ]
  left, right = f"{x[0]:g}", f"{x[-1]:g}"
  foot = " " * margin + " +" + "-" * width
  under = f"{left} {label.center(width - len(left) - len(right) - 2)} {right}"
  return "\n".join([*body, foot, " " * (margin + 2) + under])
