"""Rows of tokens are shown by what they are, whatever they spell."""

import html.parser

from xpo_jax.data import token_rows
from xpo_jax.data.token_rows import TokenInfo, TokenRows

HOSTILE = "<script>alert('&amp;')</script>\x1b[31m"


class _Page(html.parser.HTMLParser):
  """Reads a page as a browser does: tags, then lines of (style, text)."""

  def __init__(self, page):
    super().__init__(convert_charrefs=True)
    self.tags, self.open, self.lines = set(), [], [[]]
    self.feed(page)
    self.close()

  def handle_starttag(self, tag, attrs):
    self.tags.add(tag)
    if tag in ("div", "br"):
      self.lines.append([])
    if tag != "br":
      self.open.append(dict(attrs).get("style", ""))

  def handle_endtag(self, tag):
    self.open.pop()

  def handle_data(self, data):
    self.lines[-1].append((self.open[-1], data))


def _row():
  return [
    TokenInfo("ask", 1, 0, 0, False),
    TokenInfo("good", 1, 1, 1, True),
    TokenInfo("tool", 1, 1, 2, False),
    TokenInfo("bad", 1, 2, 1, True),
    TokenInfo("next", 2, 0, 0, False),
  ]


def test_notebook_shows_a_line_for_each_prompt_and_completion():
  page = _Page(TokenRows([_row(), _row()[:1]])._repr_html_())
  _, legend, *lines = page.lines
  texts = [[text for _, text in line] for line in lines]
  assert texts == [["ask"], ["good", "tool"], ["bad"], ["next"], ["ask"]]
  assert not any(page.open)  # every tag is closed
  assert page.tags == {"div", "span", "br"}
  # The legend's style is what tokens of its kind have.
  styles = {text: style for style, text in legend}
  assert len(set(styles.values())) == 3
  shown = {text: style for line in lines for style, text in line}
  assert shown["ask"] == shown["next"] == styles["prompt"]
  assert shown["good"] == shown["bad"] == styles["loss"]
  assert shown["tool"] == styles["no loss"]


def test_lines_bracket_tokens_with_loss_and_shorten_the_middle():
  assert token_rows.lines([_row()], groups=1) == [
    "prompt: ask",
    "completion 1: [good]tool",
    "completion 2: [bad]",
  ]
  assert token_rows.lines([_row(), _row()], groups=3)[3:5] == [
    "prompt: next",
    "prompt: ask",
  ]
  long = [TokenInfo("a" * 200 + "b" * 7 + "c" * 100, 1, 0, 0, False)]
  expected = "prompt: " + "a" * 200 + " (7 characters) " + "c" * 100
  assert token_rows.lines([long], groups=1) == [expected]


def test_what_the_data_spell_is_text():
  row = [TokenInfo(text, 1, 0, 0, False) for text in (HOSTILE, "\n", "", " a")]
  page = _Page(TokenRows([row])._repr_html_())
  shown = [text for _, text in page.lines[-1]]
  assert shown == [HOSTILE.replace("\x1b", "\\x1b"), "⏎", "∅", " a"]
  assert page.tags == {"div", "span"}
