"""Writes each script of this folder as a notebook beside it, by jupytext.

A script in the percent format is what is edited. Its notebook has one cell more, the
first: it installs the package where there is none, as on a hosted runtime. Notebooks
are written without outputs, and equal scripts give equal bytes.

Command: python notebooks/write_ipynb.py, or make notebooks
"""

from pathlib import Path

import jupytext
import nbformat

SCRIPTS = sorted(Path(__file__).parent.glob("[0-9]*.py"))
INSTALL = """\
# Installs xpo_jax where it is missing, as on a hosted runtime.
import pathlib
import shutil

try:
  import xpo_jax.objectives
except ImportError:
  here = pathlib.Path.cwd()
  checkout = [p for p in (here, here.parent) if (p / "xpo_jax/objectives").is_dir()]
  tpu = pathlib.Path("/dev/accel0").exists() or pathlib.Path("/dev/vfio/0").exists()
  extra = "[tpu]" if tpu else "[cuda]" if shutil.which("nvidia-smi") else ""
  package = f"{checkout[0] if checkout else 'xpo_jax'}{extra}"
  %pip install -q "{package}"
import jax

print(jax.devices())"""


def text(script: Path) -> str:
  """The notebook of a script, as the text of its file."""
  notebook = jupytext.read(script)
  notebook.cells.insert(0, nbformat.v4.new_code_cell(INSTALL))
  for cell in notebook.cells:
    del cell["id"]  # drawn at random; format 4.4 has none
    cell.metadata.clear()  # blank lines of the script
  notebook.nbformat_minor = 4
  notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"]}
  return nbformat.writes(notebook) + "\n"


def main() -> None:
  """Writes all notebooks."""
  for script in SCRIPTS:
    script.with_suffix(".ipynb").write_text(text(script), encoding="utf-8")


if __name__ == "__main__":
  main()
