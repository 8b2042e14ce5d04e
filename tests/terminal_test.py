"""Charts in plain text."""

import numpy as np

from xpo_jax import terminal


def test_lines_stand_where_their_values_are():
  x = np.linspace(0, 1, 11)
  text = terminal.chart(x, {"up": x, "down": 1 - x}, width=11, height=11, label="x")
  rows = text.splitlines()
  assert rows[0] == "1 |d         u"
  assert rows[5].endswith("|     *")  # where they cross
  assert rows[10] == "0 |u         d"
  assert rows[-1].split() == ["0", "x", "1"]


def test_a_flat_line_is_drawn():
  text = terminal.chart(np.array([0.0, 1.0]), {"flat": np.ones(2)}, width=5, height=2)
  assert "fffff" in text
