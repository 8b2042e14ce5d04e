"""Text of data has no meaning on a page: neither markup, nor escapes, nor fences."""

import html as html_lib
import re

from xpo_jax.report import html

HOSTILE = (
  "**bold** `code` [x](https://e.x) <script>a</script> | \x1b[31m \u202eabc _i_ ```\nb"
)


def _page():
  table = html.Table(("prompt",), [[html.Verbatim(HOSTILE)]])
  tokens = html.Tokens("row", [(HOSTILE, "loss")])
  return html.Page("t", "", [html.Section("s", [table, tokens, html.Code(HOSTILE)])])


def test_text_of_data_is_shown_as_it_is_in_html():
  page = html.html(_page())
  (cell,) = re.findall(r"<td>(.*?)</td>", page, flags=re.S)
  assert "<" not in cell
  assert html_lib.unescape(cell) == HOSTILE.replace("\x1b", "\\x1b").replace(
    "\u202e", "\\u202e"
  )
  assert "\x1b" not in page and "<script>a" not in page


def test_text_of_data_that_starts_with_a_number_is_wrapped_as_text():
  table = html.Table(("a", "b"), [[html.Verbatim("3 men in a boat"), "3"]])
  page = html.html(html.Page("t", "", [html.Section("s", [table])]))
  assert "<td>3 men in a boat</td>" in page and '<td class="number">3</td>' in page


def test_text_of_data_is_escaped_in_markdown():
  page = html.markdown(_page())
  (row,) = [line for line in page.splitlines() if line.startswith("| \\*")]
  # Every character with a meaning in Markdown stands after a backslash.
  bare = re.sub(r"\\.", "", row.removeprefix("|").removesuffix("|"))
  assert not re.search(r"[`*_\[\]<>|]", bare) and "\x1b" not in page
  # A fence is longer than any run of backticks within.
  for fence, inside in re.findall(r"^(`{3,})\n(.*?)\n\1$", page, flags=re.S | re.M):
    assert max(map(len, re.findall("`+", inside)), default=0) < len(fence)
  assert page.count("````\n") == 4


def test_markup_of_our_own_text_stays():
  page = html.Page("t", "**strong**", [html.Section("s", [html.Table((), [["`c`"]])])])
  assert "<strong>strong</strong>" in html.html(page)
  assert "<code>c</code>" in html.html(page)
