"""The docs build without a warning; the reference shows every objective's equation."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from nbformat import v4

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


@pytest.fixture(scope="module")
def notebook_pages():
  return _extension("notebook_pages")


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


def test_every_notebook_has_a_page_of_its_cells(built):
  index = (built / "index.html").read_text(encoding="utf-8")
  scripts = sorted((ROOT / "notebooks").glob("[0-9]*.py"))
  assert scripts
  for script in scripts:
    page = (built / "notebooks" / f"{script.stem}.html").read_text(encoding="utf-8")
    code = script.read_text(encoding="utf-8").count("\n# %%\n")
    assert page.count('class="highlight-python') == code
    assert "the page that" in page, "its outputs are missing and the page says so"
    assert f'href="notebooks/{script.stem}.html"' in index


def test_notebook_is_run_and_its_outputs_are_on_the_page(notebook_pages):
  image = b"a picture"
  cells = [
    "import sys\nprint('out', 6 * 7)\nprint('err', 6 * 7, file=sys.stderr)",
    "from IPython.display import HTML, Image\nHTML('<b>bo' + 'ld</b>')",
    f"Image(data={image!r}, format='png')",
    "'a' + 'b'",
  ]
  notebook = v4.new_notebook(cells=[v4.new_markdown_cell("# A `title`\n\n## Part")])
  notebook.cells += [v4.new_code_cell(cell) for cell in cells]
  bare = notebook_pages.page(notebook, "one")
  assert bare.text.startswith("A `title`\n=========\n\nPart\n----\n")
  assert "cell-output" not in bare.text and not bare.images
  notebook_pages.execute(notebook)
  text, images = notebook_pages.page(notebook, "one")
  assert "      out 42\n" in text and "err 42" not in text
  assert ".. raw:: html\n\n      <b>bold</b>\n" in text
  assert images == {"one-1.png": image} and ".. image:: one-1.png\n" in text
  assert "      'ab'\n" in text
  assert text.count(".. container:: cell-output") == 4


def test_colours_of_a_terminal_are_left_out(notebook_pages):
  (block,) = notebook_pages._text("\x1b[1;31mred\x1b[0m text\n")
  assert block == ".. code-block:: text\n\n   red text\n"


@pytest.mark.parametrize("line", ["[a](b)", "$x$", "```python", "> said", "#### deep"])
def test_markdown_that_is_not_converted_is_refused(notebook_pages, line):
  cell = v4.new_markdown_cell(f"# Title\n\nwords\n{line}")
  with pytest.raises(ValueError, match=r"one: .* is not converted"):
    notebook_pages.page(v4.new_notebook(cells=[cell]), "one")
