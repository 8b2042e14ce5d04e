"""Writes a page for each notebook, with the outputs of its cells where it is run."""

import base64
import os
import re
import tempfile
from pathlib import Path
from typing import NamedTuple

import jupytext
import nbclient
from nbformat import NotebookNode

ROOT = Path(__file__).parents[2]
_TITLES = {1: "=", 2: "-", 3: "~"}  # of a heading's level
_OTHER_MARKUP = re.compile(r"\]\(|\$|```|^ *>|^####|^\|", flags=re.M)
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_STYLE = """\
.. raw:: html

   <style>
   .cell-output { border-left: 3px solid var(--color-background-border);
     padding-left: 1em; overflow-x: auto; }
   .cell-output .highlight { background: none; }
   </style>

"""
_NOT_RUN = "The cells' outputs are on the page that ``make docs`` builds.\n\n"


class Page(NamedTuple):
  """A notebook as a page.

  Attributes:
    text: reStructuredText.
    images: PNG files that the text names, by file name.
  """

  text: str
  images: dict[str, bytes]


def write(folder: Path, *, run: bool) -> None:
  """Fills `folder` with pages; files of an earlier run are removed.

  Args:
    folder: of generated pages, two levels below the root of the repository.
    run: whether notebooks are executed, and their outputs shown.

  Raises:
    nbclient.exceptions.CellExecutionError: a cell raised.
    ValueError: Markdown that is not converted; see `page`.
  """
  folder.mkdir(exist_ok=True)
  for stale in (*folder.glob("*.rst"), *folder.glob("*.png")):
    stale.unlink()
  for script in sorted((ROOT / "notebooks").glob("[0-9]*.py")):
    notebook = jupytext.read(script)
    if run:
      execute(notebook)
    text, images = page(notebook, script.stem)
    link = f"../../notebooks/{script.stem}.ipynb"
    head = f":download:`{script.stem}.ipynb <{link}>`\n\n{'' if run else _NOT_RUN}"
    title, underline, body = text.split("\n", 2)
    parts = (title, underline, "", _STYLE + head + body)
    (folder / f"{script.stem}.rst").write_text("\n".join(parts), encoding="utf-8")
    for name, content in images.items():
      (folder / name).write_bytes(content)


def execute(notebook: NotebookNode) -> None:
  """Runs the cells from top to bottom in an empty directory; outputs are added to them.

  Raises:
    nbclient.exceptions.CellExecutionError: a cell raised.
  """
  paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
  with tempfile.TemporaryDirectory() as home:
    environment = os.environ | {
      "PYTHONPATH": os.pathsep.join(paths),
      "TMPDIR": home,  # for what a notebook trains
    }
    nbclient.NotebookClient(
      notebook,
      timeout=600,
      kernel_name="python3",
      resources={"metadata": {"path": home}},
    ).execute(env=environment)


def page(notebook: NotebookNode, name: str) -> Page:
  """Converts a notebook with or without outputs.

  An output is shown in the richest form there is of PNG, HTML and text. What a cell
  writes to standard error is left out: warnings of the machine that built the page.

  Args:
    notebook: of format 4; its first cell begins with the title.
    name: of the page, for its images.

  Raises:
    ValueError: Markdown beyond headings of three levels, paragraphs, lists, emphasis
      and inline code, which is other markup in reStructuredText.
  """
  parts: list[str] = []
  images: dict[str, bytes] = {}
  for cell in notebook.cells:
    if cell.cell_type == "markdown":
      parts.append(_prose(cell.source, name))
    else:
      parts.append(_block("code-block:: python", cell.source))
      parts += _outputs(cell.get("outputs", []), name, images)
  return Page("\n".join(parts), images)


def _prose(source: str, name: str) -> str:
  """Markdown as reStructuredText, which differs in headings alone."""
  if other := _OTHER_MARKUP.search(source):
    line = source.count("\n", 0, other.start())
    raise ValueError(
      f"{name}: {source.splitlines()[line]!r} has Markdown that is not converted; use "
      "headings of three levels, paragraphs, lists, emphasis and inline code"
    )
  return re.sub(
    r"^(#{1,3}) (.*)$",
    lambda match: f"{match[2]}\n{_TITLES[len(match[1])] * len(match[2])}",
    source + "\n",
    flags=re.M,
  )


def _outputs(
  outputs: list[NotebookNode], name: str, images: dict[str, bytes]
) -> list[str]:
  """The outputs of a cell; its images are added to `images`."""
  blocks: list[str] = []
  printed = ""
  for output in outputs:
    if output.output_type == "stream":
      printed += output.text if output.name == "stdout" else ""
      continue
    blocks += _text(printed)
    printed = ""
    data = output.get("data", {})
    if "image/png" in data:
      file = f"{name}-{len(images) + 1}.png"
      images[file] = base64.b64decode(data["image/png"])
      blocks.append(f".. image:: {file}\n   :alt: output of the cell above\n")
    elif "text/html" in data:
      blocks.append(_block("raw:: html", data["text/html"]))
    elif "text/plain" in data:
      blocks += _text(data["text/plain"])
  blocks += _text(printed)
  return [_block("container:: cell-output", block) for block in blocks]


def _text(text: str) -> list[str]:
  text = _ANSI.sub("", text).strip("\n")
  return [_block("code-block:: text", text)] if text.strip() else []


def _block(directive: str, body: str) -> str:
  """A directive with a body."""
  lines = (f"   {line}".rstrip() for line in body.strip("\n").splitlines())
  return f".. {directive}\n\n" + "\n".join(lines) + "\n"
