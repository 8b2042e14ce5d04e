"""Every notebook runs from top to bottom on the CPU."""

from pathlib import Path

import jupytext
import nbclient
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.py"))


def test_there_are_notebooks():
  assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path):
  notebook = jupytext.read(path)
  nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
  outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
  assert any("image/png" in out.get("data", {}) for out in outputs), "no plot"
