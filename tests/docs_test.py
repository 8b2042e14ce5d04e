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


def _extension(name):
  path = ROOT / "docs" / "_ext" / f"{name}.py"
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope="module")
def docstrings():
  return _extension("docstrings")


@pytest.fixture(scope="module")
def equations():
  return _extension("equation_numbers")


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


def test_numbers_of_equations_are_read_from_any_form(equations):
  text = "Eq. 7. Survey 3.3. Eq. 14 and 15; Eq. 8\n  to 10, Sec. 2; Eq. 4.7, Eq. 3 (2)."
  assert equations.printed_in(text) == {"7", "14", "15", "8", "9", "10", "4.7", "3"}


def test_every_printed_equation_number_has_a_source(equations):
  package = ROOT / "xpo_jax"
  table = {}
  for one in equations.PRINTED:
    numbers = equations.spelled_out(one.numbers)
    assert one.source, one
    table[one.file] = table.get(one.file, set()) | numbers
  files = {
    path.relative_to(package).as_posix(): path.read_text(encoding="utf-8")
    for path in package.rglob("*.py")
  }
  printed = {file: equations.printed_in(text) for file, text in files.items()}
  assert {file: numbers for file, numbers in printed.items() if numbers} == table, (
    "docs/_ext/equation_numbers.py names the source of every number that a file prints"
  )


def test_the_table_of_equation_numbers_names_every_objective(built):
  page = (built / "api" / "equation_numbers.html").read_text(encoding="utf-8")
  for name in objectives.NAMES:
    assert f'href="{name}.html"' in page, name
