"""Charts in plain text."""

import numpy as np

from xpo_jax.survey import text_chart


def test_line_is_drawn_at_its_values():
  x = np.linspace(0, 1, 11)
  rows = text_chart.chart(x, x, width=11, height=11, label="x").splitlines()
  assert rows[0] == "1 |          *"
  assert rows[5].endswith("|     *")
  assert rows[10] == "0 |*"
  assert rows[-1].split() == ["0", "x", "1"]


def test_a_flat_line_is_drawn():
  text = text_chart.chart(np.array([0.0, 1.0]), np.ones(2), width=5, height=2)
  assert "*****" in text
