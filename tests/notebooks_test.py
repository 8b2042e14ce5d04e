"""Notebooks are those of the scripts, and run from top to bottom on the CPU."""

import asyncio
from pathlib import Path

import jupytext
import nbclient
import nbformat
import pytest

from notebooks import write_ipynb

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def kernel():
  """One process for all notebooks: what it imports is most of what they cost."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("PYTHONPATH", str(ROOT))
    client = nbclient.NotebookClient(nbformat.v4.new_notebook(), kernel_name="python3")
    manager = client.create_kernel_manager()
    client.start_new_kernel()
  yield manager
  asyncio.run(manager.shutdown_kernel(now=True))


def _execute(notebook, kernel, folder):
  """The outputs of a notebook's cells, run in a folder with no name defined."""
  clean = f"""%reset -f
import os, tempfile
os.chdir({str(folder)!r})
tempfile.tempdir = {str(folder)!r}  # for what a notebook trains
%reset -f"""
  notebook.cells.insert(0, nbformat.v4.new_code_cell(clean))
  nbclient.NotebookClient(notebook, km=kernel, timeout=300).execute()
  return [out for cell in notebook.cells for out in cell.get("outputs", [])]


def test_every_script_has_a_notebook_and_every_notebook_a_script():
  assert NOTEBOOKS
  assert NOTEBOOKS == [path.with_suffix(".ipynb") for path in write_ipynb.SCRIPTS]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_its_script_behind_the_cell_that_installs(path):
  assert path.read_text(encoding="utf-8") == write_ipynb.text(
    path.with_suffix(".py")
  ), "run: make notebooks"
  written = nbformat.read(path, as_version=4)
  nbformat.validate(written)
  script = jupytext.read(path.with_suffix(".py"))
  first, *cells = written.cells
  assert first.source == write_ipynb.INSTALL
  assert [(c.cell_type, c.source) for c in cells] == [
    (c.cell_type, c.source) for c in script.cells
  ]
  # Nothing that a second run of a notebook would change.
  for cell in written.cells:
    assert "id" not in cell and not cell.metadata
    assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, kernel, tmp_path):
  outputs = _execute(nbformat.read(path, as_version=4), kernel, tmp_path)
  assert any("image/png" in out.get("data", {}) for out in outputs), "no plot"
  if path.stem == "07_your_model":
    assert any("text/html" in out.get("data", {}) for out in outputs), "no tokens"


# What a host without the package has, and a `%pip` that says what it is asked for.
_HOST = """\
import pathlib, shutil, sys
sys.modules["xpo_jax.objectives"] = None  # its import fails
files = {files}
pathlib.Path.exists = lambda path: str(path) in files
shutil.which = lambda name: name if name in files else None
get_ipython().register_magic_function(print, magic_name="pip")
"""


def test_first_cell_installs_the_package_where_it_is_missing(tmp_path):
  cases = {
    '-q "xpo_jax"': (tmp_path, ()),
    '-q "xpo_jax[cuda]"': (tmp_path, ("nvidia-smi",)),
    '-q "xpo_jax[tpu]"': (tmp_path, ("/dev/vfio/0", "nvidia-smi")),
    f'-q "{ROOT}"': (ROOT / "notebooks", ()),
    f'-q "{ROOT}[tpu]"': (ROOT, ("/dev/accel0",)),
  }
  notebook = nbformat.v4.new_notebook()
  for folder, files in cases.values():
    host = _HOST.format(files=files) + f"import os; os.chdir({str(folder)!r})"
    cells = (host, write_ipynb.INSTALL)
    notebook.cells += [nbformat.v4.new_code_cell(cell) for cell in cells]
  nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
  outputs = [out for cell in notebook.cells for out in cell.outputs]
  lines = "".join(out.get("text", "") for out in outputs).splitlines()
  asked = [line for line in lines if "xpo" in line or "install" in line]
  assert asked == [f"install {case}" for case in cases]
