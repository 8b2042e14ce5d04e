"""Renders a page of text, tables, charts and tokens as HTML or Markdown.

A page is data; `html` and `markdown` render it. Text has three kinds of markup:
`code` in backticks, **strong**, and [words](address); a `Verbatim` has none.
"""

import functools
import html as html_lib
import importlib.resources
import re
from collections.abc import Sequence
from typing import NamedTuple

import jinja2
import markupsafe

from xpo_jax.data.printable import printable
from xpo_jax.report import line_chart


class Verbatim(str):
  """Text of data, in a cell of a table: shown as it is, whatever it spells."""


class Text(NamedTuple):
  """Paragraphs, a blank line between them."""

  text: str


class Table(NamedTuple):
  """Rows of cells; cells that start with a number are right-aligned.

  Attributes:
    header: column titles; empty for a list of facts.
    rows: cells, text or numbers, as many as the header.
    caption: what the columns mean.
  """

  header: Sequence[str]
  rows: Sequence[Sequence]
  caption: str = ""


class Figures(NamedTuple):
  """Charts side by side."""

  figures: Sequence[line_chart.Figure]


class Drawing(NamedTuple):
  """An SVG element, unchanged; Markdown links to its file instead.

  Attributes:
    svg: the element, without a style of its own.
    file: beside the page, for Markdown.
    note: a sentence under it.
  """

  svg: str
  file: str
  note: str = ""


class Callout(NamedTuple):
  """A highlighted remark; level is "good", "note" or "warning"."""

  level: str
  title: str
  text: str


class Code(NamedTuple):
  """Preformatted text; with a title it is collapsed."""

  text: str
  title: str = ""


class Tokens(NamedTuple):
  """One row of tokens.

  A piece's kind is "prompt", "loss", "free" (of a completion, without loss), or
  "break": a new line, its text left out.

  Attributes:
    title: which row.
    pieces: `(text, kind)` of each token.
  """

  title: str
  pieces: Sequence[tuple[str, str]]


class Section(NamedTuple):
  """A title and its blocks."""

  title: str
  blocks: Sequence


class Page(NamedTuple):
  """A title, an introduction and sections."""

  title: str
  lead: str
  sections: Sequence[Section]


_KINDS = (Text, Table, Figures, Drawing, Callout, Code, Tokens)
_NUMBER = re.compile(r"^\**[-+−±~<>≤≥]?\s?[.\d]")


def html(page: Page) -> str:
  """Renders the page as one self-contained HTML document."""
  for section in page.sections:
    for block in section.blocks:
      if not isinstance(block, _KINDS):
        raise ValueError(
          f"section {section.title!r} holds a {type(block).__name__}; allowed: "
          f"{', '.join(kind.__name__ for kind in _KINDS)}"
        )
  return _template().render(page=page, style=_resource("page.css") + line_chart.STYLE)


def markdown(page: Page) -> str:
  """Renders the page as Markdown, charts as their first and last values."""
  parts = [f"# {page.title}", page.lead]
  for section in page.sections:
    parts.append(f"## {section.title}")
    parts += [_MARKDOWN[type(block)](block) for block in section.blocks]
  return "\n\n".join(part for part in parts if part) + "\n"


def cell(value) -> str:
  """Formats a cell: floats to four significant digits, long integers in groups."""
  if value is None:
    return ""
  if isinstance(value, Verbatim):
    return value
  if isinstance(value, int) and abs(value) >= 10_000:
    return f"{value:,}"
  if isinstance(value, float):
    return f"{value:.4g}"
  return str(value)


def counted(number: int, noun: str) -> str:
  """A number of things: "1 seed", "3 seeds"."""
  return f"{number} {noun}" + "s" * (number != 1)


def inline(text: str) -> markupsafe.Markup:
  """Converts text with markup to escaped HTML."""
  out = html_lib.escape(printable(str(text)))
  if isinstance(text, Verbatim):
    return markupsafe.Markup(out)
  out = re.sub(r"`([^`]+)`", r"<code>\1</code>", out)
  out = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", out)
  out = re.sub(r"\[([^\]]+)\]\((https?://[^)\s]+)\)", r'<a href="\2">\1</a>', out)
  return markupsafe.Markup(out)


@functools.cache
def _template() -> jinja2.Template:
  environment = jinja2.Environment(
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  environment.filters["inline"] = inline
  environment.filters["cell"] = cell
  environment.filters["printable"] = printable
  environment.filters["svg"] = lambda figure: markupsafe.Markup(line_chart.svg(figure))
  environment.filters["markup"] = markupsafe.Markup
  environment.tests["numeric"] = _is_numeric
  environment.globals["kind"] = lambda block: type(block).__name__
  return environment.from_string(_resource("page.html"))


def _is_numeric(value) -> bool:
  """Whether a cell starts with a number; text of data that does is text."""
  return not isinstance(value, Verbatim) and bool(_NUMBER.match(cell(value)))


def _resource(name: str) -> str:
  files = importlib.resources.files("xpo_jax.report") / "templates" / name
  return files.read_text(encoding="utf-8")


def _markdown_table(table: Table) -> str:
  width = len(table.header) or max(map(len, table.rows), default=1)
  header = list(table.header) or [""] * width
  lines = [header, ["---"] * width, *table.rows]
  escaped = [list(map(_markdown_cell, line)) for line in lines]
  text = "\n".join(f"| {' | '.join(line)} |" for line in escaped)
  return f"{text}\n\n{table.caption}" if table.caption else text


def _markdown_cell(value) -> str:
  text = cell(value)
  if isinstance(text, Verbatim):
    text = re.sub(r"([\\`*_\[\]<>&~|])", r"\\\1", printable(text))
  else:
    text = text.replace("|", "\\|")
  return text.replace("\n", " ")


def _fenced(text: str) -> str:
  """A block of code, fenced by more backticks than the text has in a row."""
  longest = max(map(len, re.findall("`+", text)), default=0)
  fence = "`" * max(3, longest + 1)
  return f"{fence}\n{text}\n{fence}"


def _markdown_figures(figures: Figures) -> str:
  lines = []
  for figure in figures.figures:
    ends = [
      f"{s.name or figure.y_label} {cell(float(s.y[0]))} to {cell(float(s.y[-1]))}"
      for s in figure.series
      if len(s.y)
    ]
    lines.append(f"- **{figure.title}** ({figure.y_label}): {'; '.join(ends)}")
  return "\n".join(lines)


def _markdown_code(code: Code) -> str:
  block = _fenced(printable(code.text.rstrip()))
  if not code.title:
    return block
  return f"<details><summary>{code.title}</summary>\n\n{block}\n\n</details>"


def _markdown_tokens(tokens: Tokens) -> str:
  marks = {"prompt": "{}", "loss": "[{}]", "free": "({})", "break": "\n"}
  text = " ".join(marks[kind].format(piece) for piece, kind in tokens.pieces)
  return f"{tokens.title}\n\n{_fenced(printable(text))}"


_MARKDOWN = {
  Text: lambda text: text.text,
  Table: _markdown_table,
  Figures: _markdown_figures,
  Drawing: lambda drawing: f"![]({drawing.file})\n\n{drawing.note}",
  Callout: lambda c: f"> **{c.title}** ({c.level})\n> " + c.text.replace("\n", "\n> "),
  Code: _markdown_code,
  Tokens: _markdown_tokens,
}
