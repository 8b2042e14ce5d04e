"""Measured numbers stand in `experiments/results/`; prose has none of its own.

What shows them is rendered from there (`experiments/README.md`, the atlas) or says how
they were measured (`experiments/bench/README.md`).
"""

import ast
import re
from pathlib import Path

import pytest

from xpo_jax.studies import experiments_readme

ROOT = Path(__file__).parent.parent
# A number with an interval or an error: 0.64 [0.59, 0.70], 54 % +- 3 %, 1.2 ± 0.1.
MEASURED = re.compile(
  r"\d\s*%?\s*(?:\[\s*[-−]?\.?\d[\d.]*\s*%?,\s+[-−]?\.?\d[\d.]*\s*%?\s*\]|(?:±|\+-)\s*\.?\d)"
)
PROSE = [
  *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
  *sorted((ROOT / "docs").glob("*.rst")),
  *sorted((ROOT / "docs" / "guides").glob("*.rst")),
]
HEADERS = [
  path
  for folder in ("experiments", "experiments/tables", "experiments/papers")
  for path in sorted((ROOT / folder).glob("*.py"))
]


def _name(path: Path) -> str:
  return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", PROSE, ids=_name)
def test_prose_repeats_no_measured_number(path):
  found = MEASURED.findall(path.read_text(encoding="utf-8"))
  assert not found, "say it in words; experiments/README.md shows the number"


def test_claims_hold_no_measured_number():
  for path in sorted((ROOT / "experiments" / "papers").glob("*.py")):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
      if isinstance(node, ast.Constant) and isinstance(node.value, str):
        assert not MEASURED.search(node.value), f"{_name(path)}: {node.value}"


def test_headers_hold_no_measured_number():
  for path in HEADERS:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    found = MEASURED.findall(text)
    result = experiments_readme.header(path).get("Result", "")
    found += re.findall(r"\d\.\d{3}", re.sub(r"\{[^{}]*\}", "", result))
    assert not found, f"{_name(path)}: name its place, {{LABEL | MEASURE}}"


_TIME = re.compile(
  r"\b(?:\d[\d.]*|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve)"
  r"(?: CPU)? (?:s|seconds?|minutes?|hours?)\b"
)


@pytest.mark.parametrize("path", HEADERS, ids=_name)
def test_hardware_holds_no_measured_time(path):
  found = _TIME.findall(experiments_readme.header(path).get("Hardware", ""))
  assert not found, "say seconds, minutes, a quarter of an hour, half an hour, hours"


@pytest.mark.parametrize(
  "text",
  ["19 minutes for 42", "one minute, without", "of 17 CPU minutes", "; 141 s for"],
)
def test_a_measured_time_is_recognised(text):
  assert _TIME.search(text)


@pytest.mark.parametrize(
  "text",
  [
    "accuracy 0.640 [0.585, 0.696] on",
    "0.64 [0.59,\n  0.70]",
    "54 % [50 %, 58 %]",
    "54.2 % +- 3.5 %",
    "-0.018 [-0.043, 0.027]",
    "1.2 ± .1",
  ],
)
def test_a_measured_number_is_recognised(text):
  assert MEASURED.search(text)


@pytest.mark.parametrize(
  "text", ["clipped to +-0.4", "scale [0, 1]", "jnp.array([[-11.0, -14.0]])", "x[0, 1]"]
)
def test_a_range_or_an_array_is_none(text):
  assert not MEASURED.search(text)
