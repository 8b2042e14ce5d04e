"""Dots stand where their numbers say, and what is missing is said in words."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from xpo_jax.evaluation.bootstrap import Interval
from xpo_jax.report import dot_plot

NAME = "{http://www.w3.org/2000/svg}"


def found(mean):
  return Interval(mean, mean - 0.1, mean + 0.1, 0.05, 8)


CHART = dot_plot.Dots(
  "title",
  "reward",
  [dot_plot.Panel("near", {"start": 0.0}), dot_plot.Panel("far", {"start": 0.0})],
  [
    dot_plot.DotRow("one & two", "pairs", [found(0.2), "not reached"]),
    dot_plot.DotRow("three", "thumbs", [found(0.5), found(0.8)]),
    dot_plot.DotRow("four", "pairs", [found(0.8), found(0.2)]),
  ],
)


def test_equal_steps_of_the_value_are_equal_steps_on_paper():
  tree = ElementTree.fromstring(dot_plot.svg(CHART, standalone=True))
  marks = [mark for mark in tree.iter(f"{NAME}circle") if mark.get("cx")]
  x = [float(mark.get("cx")) for mark in marks[2:5]]  # after the legend's two
  assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.02) and x[1] > x[0]


def test_rows_of_a_group_share_a_colour_and_names_are_escaped():
  text = dot_plot.svg(CHART)
  assert "one &amp; two" in text and text.count(">not reached<") == 1
  colours = re.findall(r'<g class="(c\d)"><line class="bar', text)
  assert colours == ["c0", "c1", "c0", "c1", "c0"]


def test_row_without_a_cell_for_every_panel_is_refused():
  short = CHART._replace(rows=[dot_plot.DotRow("one", "pairs", [found(0.2)])])
  with pytest.raises(ValueError, match="'one' has 1 cells for 2 panels"):
    dot_plot.svg(short)
