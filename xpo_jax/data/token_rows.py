"""Rows of tokens for display: by kind for a report, as HTML in a notebook."""

import html
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from xpo_jax.data.printable import printable

BREAK = "break"
# Translucent, so that text is legible on a light page and on a dark one.
_BACKGROUND = {
  "prompt": "rgba(90, 140, 255, 0.22)",
  "loss": "rgba(46, 160, 80, 0.40)",
  "free": "rgba(128, 128, 128, 0.22)",
}
_LEGEND = {"prompt": "prompt", "loss": "loss", "free": "no loss"}
_TOKEN = "padding: 1px 3px; margin: 1px; border-radius: 3px; white-space: pre-wrap"
_BEGIN, _END = 200, 100  # characters shown of a long text
_ROW = "font-family: monospace; line-height: 1.9; margin: 8px 0"


class TokenInfo(NamedTuple):
  """One token of a packed row, for display.

  Attributes:
    text: the decoded token.
    segment: 0 on padding, else the index of the group in the row, from 1.
    branch: 0 on the prompt, k + 1 on completion k.
    position: position id.
    loss: whether the token is a training target.
  """

  text: str
  segment: int
  branch: int
  position: int
  loss: bool


class TokenRows(list[list[TokenInfo]]):
  """Rows of tokens; a notebook shows a line for each prompt and completion."""

  def _repr_html_(self) -> str:
    legend = "".join(_span(name, kind) for kind, name in _LEGEND.items())
    rows = "".join(
      f'<div style="{_ROW}">{"".join(_span(*piece) for piece in pieces(row))}</div>'
      for row in self
    )
    return f"<div>{legend}{rows}</div>"


def pieces(row: Sequence[TokenInfo]) -> Iterator[tuple[str, str]]:
  """Yields text and kind of each token of a row.

  A kind is "prompt", "loss", or "free" (of a completion, without loss). A piece of kind
  "break", without text, stands between prompts and completions. Line breaks and empty
  tokens are made visible.
  """
  before = None
  for token in row:
    here = (token.segment, token.branch)
    if before not in (None, here):
      yield "", BREAK
    before = here
    kind = "loss" if token.loss else ("free" if token.branch else "prompt")
    yield token.text.replace("\n", "⏎") or "∅", kind


def lines(rows: Sequence[Sequence[TokenInfo]], groups: int) -> list[str]:
  """Formats prompts and completions as text, a line each, tokens with loss in [ ].

  Of a long text the beginning and the end are shown: what a template writes stands
  there.

  Args:
    rows: packed rows.
    groups: number of prompts to show, with their completions.
  """
  texts = []
  for row in rows:
    for (_, branch), tokens in itertools.groupby(row, lambda t: (t.segment, t.branch)):
      if branch == 0:
        groups -= 1
      if groups < 0:
        return texts
      runs = itertools.groupby(tokens, lambda t: t.loss)
      parts = [(loss, "".join(token.text for token in run)) for loss, run in runs]
      text = "".join(f"[{part}]" if loss else part for loss, part in parts)
      name = f"completion {branch}" if branch else "prompt"
      texts.append(f"{name}: {printable(_shortened(text.replace(chr(10), '⏎')))}")
  return texts


def _shortened(text: str) -> str:
  cut = len(text) - _BEGIN - _END
  return text if cut <= 0 else f"{text[:_BEGIN]} ({cut} characters) {text[-_END:]}"


def _span(text: str, kind: str) -> str:
  """HTML of a token; what the data spell is text, control characters are escaped."""
  if kind == BREAK:
    return "<br>"
  style = f"background: {_BACKGROUND[kind]}; {_TOKEN}"
  return f'<span style="{style}">{html.escape(printable(text))}</span>'
