"""A digest follows the code that a module runs, and nothing else."""

import pytest

from xpo_jax.studies.atlas import code_digest

FILES = {
  "world.py": '"""World."""\nfrom package import maths\nrun = maths.f\n',
  "maths.py": "def f():\n  from package.parts import deep\n  return deep.X\n",
  "parts/deep.py": "X = 1  # a number\n",
  "other.py": "Y = 2\n",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
  for name, text in FILES.items():
    path = tmp_path / "package" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
  monkeypatch.setattr(code_digest, "PACKAGE", tmp_path / "package")
  monkeypatch.setattr(code_digest, "_NAME", "package")
  _forget()
  yield tmp_path / "package"
  _forget()


def _forget():
  code_digest._imported.cache_clear()
  code_digest._code.cache_clear()


def _digest():
  _forget()
  return code_digest.digest(["package.world"])


def test_closure_is_what_a_module_imports_also_within_functions(package):
  assert code_digest.closure("package.world") == {
    "world.py",
    "maths.py",
    "parts/deep.py",
  }


def test_comments_and_docstrings_do_not_count(package):
  before = _digest()
  (package / "parts" / "deep.py").write_text('"""Deep."""\n\n\nX = 1\n')
  (package / "world.py").write_text(FILES["world.py"].replace('"""World."""', ""))
  assert _digest() == before


@pytest.mark.parametrize(
  ("name", "changes"),
  [("parts/deep.py", True), ("maths.py", True), ("other.py", False)],
)
def test_code_counts_where_it_is_imported(package, name, changes):
  before = _digest()
  with (package / name).open("a") as file:
    file.write("Z = 3\n")
  assert (_digest() != before) == changes


def test_unknown_module_is_refused():
  with pytest.raises(ValueError, match="no_such"):
    code_digest.closure("xpo_jax.no_such")
