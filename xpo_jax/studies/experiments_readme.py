"""Writes experiments/README.md: paper -> recipe -> command -> result -> hardware.

Everything is read from the headers of the recipes and tables, and from the findings of
the claims, `experiments/results/NAME/`:

    python -m xpo_jax.studies.experiments_readme

A header holds no measured number. Where its `Result` shows one, it names its place in
`experiments/results/NAME.json`: `{LABEL | MEASURE}`, of the row with that label, with
three decimals, or `{LABEL | MEASURE | DECIMALS}`. `{FILE: LABEL | MEASURE}` is of
another file there; `MEASURE.mean` leaves out the interval.
"""

import ast
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from xpo_jax.studies import find_recipe
from xpo_jax.studies.atlas import pages, worlds
from xpo_jax.studies.atlas.worlds import World

ROOT = Path(__file__).parents[2] / "experiments"
README, RESULTS = "README.md", "results"
_FIELD = re.compile(r"^([A-Z][A-Za-z ]*):(?: |$)")
_CITATION = re.compile(
  r"([A-Z][\w'-]+(?: et al\.| and [A-Z][\w'-]+)?) (\d{4})(?: \([^)]*\))?,? "
  r"arXiv:(\d{4}\.\d{4,5})"
)
_ENDS = ("mean", "low", "high", "plus_minus")
_PLACE = re.compile(r"\{(?:(\w+): )?([^{}|]+) \| ([^{}|]+?)(?: \| (\d))?\}")
_INTRODUCTION = """# Experiments

A recipe (`*.py`) is one run or one study of a paper's method; a table (`tables/*.py`)
rebuilds a paper's result from several runs. Both are run by name: `xpo train NAME`,
`xpo list` names them all. A file's header has the paper, the command, the hardware,
what to expect, where it departs from the paper, and which result to show here;
`results/` has the numbers, a JSON file each. `bench/` measures speed.

True rewards are VADER's compound on synthetic reviews, of a model of some 170 thousand
parameters, where nothing else is said. `make docs` writes this page from the headers.
"""
_EXACT_CLAIMS = """
## Claims in exact worlds

`papers/*.py` state what a paper claims, what would count as contrary, and what is run:
bandits, small trees of tokens, games, without a model. `xpo reproduce NAME` rebuilds
one, `xpo reproduce --all` every one; `results/NAME/` has every run, the intervals, the
verdict and a figure, and the documentation has them all on one page, the atlas.

| paper | file | command | verdict | what decides, mean [95 %] over seeds |
|---|---|---|---|---|
"""
_CHAT_CLAIMS = """
## Claims on a chat model

`papers/chat_model/*.py` test claims on SmolLM2-135M-Instruct with LoRA, on the
sentiment of its own answers: small, one seed, intervals over held-out prompts.
`fetch_smollm2.py smollm2` makes the model, `xpo reproduce NAME --world smollm2`
rebuilds a table.

| paper | file | command | verdict | what decides, mean [95 %] over prompts |
|---|---|---|---|---|
"""
_CLAIMS = {worlds.EXACT: _EXACT_CLAIMS, worlds.CHAT_MODEL: _CHAT_CLAIMS}


class PaperRow(NamedTuple):
  """A paper as a header cites it.

  Attributes:
    year: of its first version.
    authors: the first, with "et al.".
    arxiv: its number.
  """

  year: int
  authors: str
  arxiv: str


def text(root: Path = ROOT) -> str:
  """The page.

  Args:
    root: the folder of recipes, tables and results.
  """
  files = [*root.glob("*.py"), *(root / find_recipe.TABLES).glob("*.py")]
  lines = [
    (paper, path.stem, _line(paper, path, fields, root))
    for path in files
    for fields in [header(path)]
    for paper in papers(fields.get("Paper", ""))
  ]
  head = "| paper | file | command | result | hardware |\n|---|---|---|---|---|\n"
  recipes = "".join(line for _, _, line in sorted(lines))
  return f"{_INTRODUCTION}\n{head}{recipes}" + _claims(root)


def _claims(root: Path) -> str:
  """The tables of claims with their findings, of each world that has some."""
  found = [
    pages.read(path.parent) for path in root.glob(f"{RESULTS}/*/{pages.FINDING}")
  ]
  text = ""
  for world, head in _CLAIMS.items():
    own = [one for one in found if one.get("world", worlds.EXACT) == world]
    lines = sorted((one["paper"], one["table"], _claim(one, world)) for one in own)
    text += head + "".join(line for _, _, line in lines) if lines else ""
  return text


def _claim(one: Mapping[str, Any], world: World) -> str:
  name, decides = one["table"], one["predictions"]
  cells = [
    f"{one['paper']}, [{one['arxiv']}](https://arxiv.org/abs/{one['arxiv']})",
    f"[{name}]({worlds.FOLDERS[world]}/{name}.py)",
    f"`{one['command']}`",
    one["verdict"],
    "; ".join(f"{x['text']}: {pages.value(x)} ({x['verdict']})" for x in decides),
  ]
  return _row(cells)


def header(path: Path) -> dict[str, str]:
  """The fields of a file's docstring by name; lines of a field are kept apart."""
  fields: dict[str, list[str]] = {}
  name = ""
  docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
  for line in docstring.splitlines():
    begins = _FIELD.match(line)
    if begins:
      name = begins[1]
      fields[name] = [line[begins.end() :].strip()]
    elif line.startswith(" ") and name:
      fields[name].append(line.strip())
    else:
      name = ""
  return {name: "\n".join(lines) for name, lines in fields.items()}


def papers(field: str) -> list[PaperRow]:
  """The papers that a header's field cites, each once."""
  citations = _CITATION.findall(" ".join(field.split()))
  found = [PaperRow(int(year), authors, arxiv) for authors, year, arxiv in citations]
  return list(dict.fromkeys(found))


def headline(fields: Mapping[str, str], results: Path) -> str:
  """A file's result: of its header, else of the first row of its results.

  Args:
    fields: of the header.
    results: the file of its results.

  Raises:
    ValueError: the header names a place that the results do not have.
  """
  if "Result" in fields:
    result = filled(" ".join(fields["Result"].split()), results)
    return "not run" if result.startswith("not run") else result.rstrip(".")
  if not results.exists():
    return "see the file"
  row = json.loads(results.read_text(encoding="utf-8"))[0]
  measures = {n: x for n, x in row.items() if isinstance(x, dict | float)}
  measure, value = next(iter(measures.items()))
  return f"{row['label']}: {measure} {_value(value)}"


def filled(text: str, results: Path) -> str:
  """A text, each `{LABEL | MEASURE}` replaced by what results have there.

  Args:
    text: on one line.
    results: the file of results; others are beside it.

  Raises:
    ValueError: no such file, not one row of that label, or no such measure in it.
  """

  def number(place: re.Match[str]) -> str:
    file, label, measure, decimals = place.groups()
    path = results.with_name(f"{file}.json") if file else results
    if not path.exists():
      raise ValueError(f"{place[0]}: no results {path.name}")
    rows = json.loads(path.read_text(encoding="utf-8"))
    found = [row for row in rows if row["label"] == label]
    if len(found) != 1:
      known = ", ".join(row["label"] for row in rows)
      raise ValueError(
        f"{place[0]}: {len(found)} rows of that label in {path.name}; labels: {known}"
      )
    measure, _, part = measure.partition(".")
    if measure not in found[0]:
      raise ValueError(f"{place[0]}: measures there: {', '.join(found[0])}")
    value = found[0][measure]
    return _with_decimals(value[part] if part else value, int(decimals or 3))

  return _PLACE.sub(number, text)


def _with_decimals(value: Any, decimals: int) -> str:
  if not isinstance(value, dict):
    return f"{value:.{decimals}f}"
  shown = {name: f"{x:.{decimals}f}" for name, x in value.items() if name in _ENDS}
  if "plus_minus" in shown:
    return f"{shown['mean']} +- {shown['plus_minus']}"
  return f"{shown['mean']} [{shown['low']}, {shown['high']}]"


def _line(paper: PaperRow, path: Path, fields: Mapping[str, str], root: Path) -> str:
  link = f"[{paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})"
  command = fields["Command"].partition("\n")[0]
  cells = [
    f"{paper.authors} {paper.year}, {link}",
    f"[{path.stem}]({path.relative_to(root).as_posix()})",
    f"`{command}`",
    headline(fields, root / RESULTS / f"{path.stem}.json"),
    " ".join(fields["Hardware"].split()).rstrip("."),
  ]
  return _row(cells)


def _row(cells: Sequence[str]) -> str:
  return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def _value(value: Any) -> str:
  if isinstance(value, dict):
    return f"{value['mean']:g} [{value['low']:g}, {value['high']:g}]"
  return f"{value:g}"


def main() -> int:
  """Writes the page of the checkout."""
  path = ROOT / README
  path.write_text(text(), encoding="utf-8")
  print(path.relative_to(ROOT.parent))
  return 0


if __name__ == "__main__":
  sys.exit(main())
