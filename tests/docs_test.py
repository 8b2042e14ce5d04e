"""The docs build without a warning; the reference shows every objective's equation."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from xpo_jax import objectives

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  out = tmp_path_factory.mktemp("docs")
  command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", "docs", str(out)]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  return out


@pytest.fixture(scope="module")
def docstrings():
  path = ROOT / "docs" / "_ext" / "docstrings.py"
  spec = importlib.util.spec_from_file_location("docstrings", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize("name", objectives.NAMES)
def test_objective_has_a_page_with_its_equation(built, name):
  page = (built / "api" / f"{name}.html").read_text(encoding="utf-8")
  assert 'display="block"' in page, "no equation: start a line with `L = `"
  assert "In the survey" in page


def test_every_module_of_mathematics_has_a_place(built):
  listed = "".join(
    p.read_text(encoding="utf-8") for p in (built / "api").glob("*.html")
  )
  package = ROOT / "xpo_jax"
  for folder in (".", "ops", "survey", "testing"):
    for path in (package / folder).glob("*.py"):
      name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
      if path.stem not in ("__init__", "__main__", "cli"):
        assert f'id="module-{name}"' in listed, name


def test_plain_letters_become_mathematics(docstrings):
  line = "L = -log sigma(beta a_w) - lambda_D x,   for the rest"
  words = docstrings.tex(line).split()
  assert " ".join(words) == (
    r"L = -\log \sigma (\beta a_{\text{w}} ) - \lambda_{\text{D}} x ,\quad "
    r"\text{ for the rest}"
  )


def test_what_stands_below_a_sum_is_mathematics_too(docstrings):
  assert docstrings.tex("sum_{i, j: r_i > 1} x").split() == (
    r"\sum _{i , j : r_{\text{i}} > 1} x".split()
  )


def test_prose_is_no_equation(docstrings):
  lines = docstrings.to_rest(
    [
      "Name: summary.",
      "",
      "L = x + y",
      "with x = the mean over all rows of the batch, |y| its size.",
      "",
      "Paper: Somebody, arXiv:1.",
      "  and more.",
    ]
  )
  assert ".. math:: L  = x  + y " in lines
  assert sum(".. math" in line for line in lines) == 1
  assert any(r"\|y\|" in line for line in lines)
  assert ":Paper: Somebody, arXiv:1." in lines
