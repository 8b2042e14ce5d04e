"""This project's docstrings as reStructuredText, equations as mathematics.

A docstring is: a summary; lines of equations and what their letters mean; labelled
paragraphs (Paper, Departs from the paper, Reduction); Google's sections. Equations are
written in plain letters there, so that a terminal shows them; here they become TeX, and
TeX becomes MathML, which a browser draws without any script.
"""

import re

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.application import Sphinx

_LABELS = ("Paper", "Departs from the paper", "Reduction")
_SECTIONS = ("Args:", "Attributes:", "Returns:", "Raises:", "Example:")
_GREEK = (
  "alpha beta gamma delta epsilon zeta eta theta kappa lambda mu nu xi pi rho sigma "
  "tau phi chi psi omega Delta Lambda Sigma Phi Psi Omega"
).split()
_NAMED = {
  "log": r"\log",
  "exp": r"\exp",
  "max": r"\max",
  "min": r"\min",
  "sum": r"\sum",
  "sum_t": r"\sum_t",
  "sum_i": r"\sum_i",
  "sum_j": r"\sum_j",
  "sum_k": r"\sum_k",
  "sqrt": r"\sqrt",
  "inf": r"\infty",
}
_MARKS = {
  "||": r"\,\|\,",
  "<=": r"\le ",
  ">=": r"\ge ",
  "!=": r"\ne ",
  "->": r"\to ",
  "*": r"\cdot ",
  "{": r"\{",
  "}": r"\}",
  "%": r"\%",
  "#": r"\#",
  "&": r"\&",
}
_TOKEN = re.compile(
  r"(?P<word>[A-Za-z]+(?:-[A-Za-z]+)*(?:_[A-Za-z0-9]+)?'?)"
  r"|_\{(?P<below>[^}]*)\}"
  r"|(?P<gap> {2,})"
  r"|(?P<mark>\|\||<=|>=|!=|->)"
  r"|(?P<other>.)"
)


def tex(line: str) -> str:
  """One line of plain-letter mathematics as TeX; words that name no symbol stay."""
  out, prose = [], False
  for match in _TOKEN.finditer(line.strip()):
    word = match["word"]
    spaced = line.strip()[: match.start()].endswith(" ")
    if word and (_is_prose(word) or (word == "a" and prose)):
      if prose:  # one run of words is one piece of text
        out[-1] = out[-1].removesuffix("}") + f"{word}}}"
      else:
        out.append(rf"\text{{{' ' * spaced}{word}}}")
      prose = True
      continue
    if match[0] == " " and prose:
      out[-1] = out[-1].removesuffix("}") + " }"
      continue
    prose = False
    if word:
      out.append(_symbol(word))
    elif match["below"]:
      out.append(f"_{{{tex(match['below'])}}}")
    elif match["gap"]:
      out.append(r"\quad ")
    else:
      out.append(_MARKS.get(match[0], match[0]))
  return "".join(out)


def _is_prose(word: str) -> bool:
  stem = word.removesuffix("'").partition("_")[0]
  return len(stem) > 1 and "_" not in word and stem not in {*_NAMED, *_GREEK}


def _symbol(word: str) -> str:
  prime = "'" if word.endswith("'") else ""
  stem, _, below = word.removesuffix("'").partition("_")
  if word in _NAMED:
    return _NAMED[word] + " "
  if stem in _NAMED:
    head = _NAMED[stem]
  elif stem in _GREEK:
    head = "\\" + stem
  else:
    head = stem if len(stem) == 1 else rf"\text{{{stem}}}"
  if not below:
    return head + prime + " "
  below = "\\" + below if below in _GREEK else rf"\text{{{below}}}"
  return f"{head}_{{{below}}}{prime} "


def _is_equation(line: str) -> bool:
  """Starts as a loss, or sets a symbol and is more symbols than words."""
  left, equals, _ = line.partition(" = ")
  if not equals:
    return False
  words = [m["word"] for m in _TOKEN.finditer(line) if m["word"]]
  prose = sum(_is_prose(word) or word == "a" for word in words)
  return bool(re.match(r"L\b", line)) or (len(left) < 16 and 3 * prose < len(words))


def _story(lines: list[str]) -> list[str]:
  """What stands between summary and labels: equations, and prose between them."""
  out, before = [], False
  for line in lines:
    if line.strip() and (_is_equation(line) or (line.startswith(" ") and before)):
      out += ["", f".. math:: {tex(line)}", ""]
      before = True
    else:
      out.append(_escape(line.strip()))
      before = False
  return out


def _labelled(lines: list[str]) -> list[str]:
  """`Label: text` with a hanging indent as a field list."""
  out = [""]
  for line in lines:
    label = next((one for one in _LABELS if line.startswith(f"{one}:")), None)
    if label:
      out.append(f":{label}: {line.removeprefix(f'{label}:').strip()}")
    elif line.strip():
      out.append(f"   {line.strip()}")
  return [*out, ""]


def to_rest(lines: list[str]) -> list[str]:
  """A docstring's lines as reStructuredText; Google's sections are left to napoleon."""
  first = next((i for i, x in enumerate(lines) if x.strip() in _SECTIONS), len(lines))
  head, sections = lines[:first], lines[first:]
  sections = _escaped(sections)
  label = next(
    (i for i, x in enumerate(head) if any(x.startswith(f"{one}:") for one in _LABELS)),
    None,
  )
  if label is None:
    return [*_escaped(head), *sections]
  summary, story, labelled = head[:1], head[1:label], _labelled(head[label:])
  return [*_escaped(summary), "", *_story(story), *_escaped(labelled), *sections]


def _escaped(lines: list[str]) -> list[str]:
  """Marks that mean something in reStructuredText, as themselves; examples as is."""
  out, example = [], False
  for line in lines:
    example = example or line.strip() in ("Example:", "Examples:") or ">>>" in line
    out.append(line if example else _escape(line))
  return out


def _escape(line: str) -> str:
  parts = line.split("`")
  parts[::2] = [re.sub(r"([|*]|_(?!\w))", r"\\\1", part) for part in parts[::2]]
  return "`".join(parts)


def _process(app, what, name, obj, options, lines: list[str]) -> None:
  lines[:] = to_rest(list(lines))


def _mathml(self, node: nodes.math | nodes.math_block) -> None:
  block = isinstance(node, nodes.math_block)
  element = latex2mathml.tex2mathml(node.astext(), as_block=block)
  self.body.append(str(element))
  raise nodes.SkipNode


def setup(app: Sphinx) -> dict:
  """Registers both with Sphinx; before napoleon, which reads what is left."""
  app.connect("autodoc-process-docstring", _process, priority=400)
  app.add_html_math_renderer("native", (_mathml, None), (_mathml, None))
  return {"parallel_read_safe": True, "parallel_write_safe": True}
