"""Writes the atlas: papers and verdicts, from `experiments/results/` alone."""

import enum
import functools
import html
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xpo_jax.studies.atlas import on_text, pages, paper_scale, worlds
from xpo_jax.studies.atlas.on_text import TextFinding
from xpo_jax.survey import table, taxonomy

RESULTS = Path(__file__).parents[2] / "experiments" / "results"
VERDICTS = ("agrees", "not separable", "contrary", "not testable here")
_FACTS = {
  "design": "Design",
  "contrary": "Contrary would be",
  "departs": "Departs from the paper",
  "revised": "Changed after a first look",
  "paper_scale": "At paper scale",
}
_INTRODUCTION = """\
A row a claim: what a paper says, what would have counted against it, and what came
out here, with 95 % intervals. ``xpo reproduce NAME`` rebuilds a row, ``xpo reproduce
--all`` every one; each says what it cost. These worlds are small and exact: bandits,
trees of a few tokens, games of a dozen completions. They show whether a claim follows
from the method, not how methods rank on large models; each row says what its paper
ran, and ``xpo reproduce NAME --scale paper`` shows the commands of that.

``xpo reproduce NAME --world smollm2`` tests some claims on a pretrained chat model of
135M parameters, with intervals over held-out prompts; a claim whose result is there has
a second panel. Where a small language model was trained on synthetic reviews for a
claim, its row says under "On text" whether the effect survives there.

Values in the survey's 13 directions are a reconstruction, see :doc:`the_survey`.
"""
_SCRIPT = """
const filter = document.getElementById("atlas-filter");
function show() {
  const rows = [...document.querySelectorAll(".atlas-row")];
  for (const row of rows) row.hidden = !row.classList.contains(filter.value);
  const shown = rows.filter(row => row.matches("tr[data-verdict]") && !row.hidden);
  const count = verdict =>
    shown.filter(row => row.dataset.verdict === verdict).length + " " + verdict;
  document.getElementById("atlas-count").textContent =
    VERDICTS.map(count).join(", ") + ", " + count("not yet rebuilt");
}
filter.addEventListener("change", show);
show();
"""
_STYLE = """
.atlas-row[hidden] { display: none; }
.atlas-matrix { width: 100%; border-collapse: collapse; font-size: 0.85em; }
.atlas-matrix td, .atlas-matrix th { padding: 0.25em 0.5em; text-align: left;
  border-bottom: 1px solid var(--color-background-border); }
.atlas-matrix td.mark, .atlas-matrix th.mark { text-align: center; }
.atlas-wide { overflow-x: auto; }
.atlas-row img { max-width: 40em; width: 100%; }
#atlas-filter { max-width: 100%; }
@media (max-width: 46em) {
  .atlas-matrix { font-size: 0.7em; }
  .atlas-matrix td, .atlas-matrix th { padding: 0.25em 0.1em; }
}
"""


def write(folder: Path) -> None:
  """Writes `atlas.rst` and its figures into a folder.

  Args:
    folder: of generated pages.
  """
  found = [pages.read(path.parent) for path in RESULTS.glob(f"*/{pages.FINDING}")]
  order = {paper.name: i for i, paper in enumerate(table.PAPERS)}
  found.sort(key=lambda one: (order[one["paper"]], one["table"]))
  figures = folder / "figures"
  shutil.rmtree(figures, ignore_errors=True)
  figures.mkdir(parents=True)
  for one in found:
    name = one["table"]
    shutil.copy(RESULTS / name / pages.FIGURE, figures / f"{name}.svg")
  (folder / "atlas.rst").write_text(text(found), encoding="utf-8")


def text(found: Sequence[Mapping[str, Any]]) -> str:
  """The page.

  Args:
    found: findings, in the order of the page.
  """
  on_chat = [one for one in found if _world(one) == worlds.CHAT_MODEL]
  exact = [one for one in found if _world(one) == worlds.EXACT]
  panels: dict[str, list[Mapping[str, Any]]] = {}
  for one in on_chat:
    panels.setdefault(one["paper"], []).append(one)
  parts = ["The atlas\n=========\n", _INTRODUCTION, _raw(_overview(found))]
  parts.append(_groups(exact))
  for one in exact:  # a paper's panels stand below the first of its rows
    parts += [_row(one), *map(_panel, panels.pop(one["paper"], ()))]
  parts += [_panel(one) for rest in panels.values() for one in rest]
  script = f"const VERDICTS = {json.dumps(VERDICTS)};{_SCRIPT}"
  return "\n".join([*parts, _raw(f"<script>{script}</script>")])


def _world(one: Mapping[str, Any]) -> str:
  """The world of a finding; an exact table's names none."""
  return one.get("world", worlds.EXACT)


def _overview(found: Sequence[Mapping[str, Any]]) -> str:
  """The filter and the matrix of papers and verdicts; papers without a row too."""
  lines = [
    f"<style>{_STYLE}</style>",
    '<p><label for="atlas-filter">Show </label><select id="atlas-filter">',
    '<option value="atlas-all">every paper</option>',
  ]
  for code, direction in taxonomy.DIRECTIONS.items():
    lines.append(f'<optgroup label="{code}: {html.escape(_question(direction))}">')
    for value in direction:
      lines.append(
        f'<option value="{_class(code, value.value)}">{value.value}</option>'
      )
    lines.append("</optgroup>")
  heads = "".join(f'<th class="mark">{verdict}</th>' for verdict in VERDICTS)
  lines += [
    '</select> <span id="atlas-count"></span></p>',
    '<div class="atlas-wide"><table class="atlas-matrix">',
    f"<thead><tr><th>paper</th>{heads}</tr></thead><tbody>",
  ]
  rebuilt = {one["paper"] for one in found}
  for one in found:
    name = one["table"]
    marks = "".join(
      f'<td class="mark">{"&#9679;" if one["verdict"] == verdict else ""}</td>'
      for verdict in VERDICTS
    )
    lines.append(
      f'<tr class="{_classes(one["paper"])}" data-verdict="{one["verdict"]}">'
      f'<td><a href="#{_target(name)}">{html.escape(one["paper"])}</a>'
      f"<br><small>{name}{_of_world(one)}</small></td>{marks}</tr>"
    )
  for paper in table.PAPERS:
    if paper.section and paper.name not in rebuilt:
      lines.append(
        f'<tr class="{_classes(paper.name)}" data-verdict="not yet rebuilt">'
        f"<td>{html.escape(paper.name)}</td>"
        f'<td colspan="{len(VERDICTS)}">not yet rebuilt</td></tr>'
      )
  return "\n".join([*lines, "</tbody></table></div>"])


def _of_world(one: Mapping[str, Any]) -> str:
  return "" if _world(one) == worlds.EXACT else ", on a chat model"


def _groups(found: Sequence[Mapping[str, Any]]) -> str:
  """The verdicts of each group of the survey: papers of one value of a direction."""
  rows = ["   * - question\n     - group\n     - claims\n     - verdicts"]
  for code, direction in taxonomy.DIRECTIONS.items():
    for value in direction:
      own = [one["verdict"] for one in found if value in _values(one["paper"], code)]
      counts = [f"{own.count(v)} {v}" for v in VERDICTS if v in own]
      rows.append(
        f"   * - {code}: {_question(direction)}\n     - {value.value}\n"
        f"     - {len(own)}\n     - {', '.join(counts) or 'none'}"
      )
  return "\n".join(
    [
      "Groups of the survey",
      "--------------------",
      "",
      "The verdicts of the claims below, by the values that their papers have in each",
      "direction. A paper of both values of a direction stands in both groups.",
      "",
      ".. list-table::",
      "   :header-rows: 1",
      "   :widths: 45 15 10 30",
      "",
      *rows,
      "",
      "Claims",
      "------",
      "",
    ]
  )


def _values(paper: str, code: str) -> frozenset[enum.Enum]:
  """The values of a paper in a direction."""
  (row,) = (row for row in table.PAPERS if row.name == paper)
  return row.cells[code].values if code in row.cells else frozenset()


def _panel(one: Mapping[str, Any]) -> str:
  """A claim on a chat model."""
  return _row(one, what=f"{one['paper']}, on a chat model")


def _text_fact(found: TextFinding) -> str:
  """A measure of a small language model on synthetic reviews."""
  claim = found.claim
  expected = pages.expected(pages.ends(claim.expected, claim.unit))
  return (
    f"{_plain(claim.text)}: {found.interval} {claim.unit}, expected {expected}: "
    f"{found.verdict.value} (``xpo train {claim.recipe}``)"
  )


def _row(one: Mapping[str, Any], what: str = "") -> str:
  """A claim, its predictions, figure, cost and command.

  Args:
    one: the finding.
    what: heads it; "": the paper.
  """
  name = one["table"]
  say = {key: _plain(one[key]) for key in ("claim", "where", "see", *_FACTS)}
  predictions = [
    f"   * - {_plain(prediction['text'])}\n     - {pages.expected(prediction)}\n"
    f"     - {pages.value(prediction)}\n     - {prediction['verdict']}"
    for prediction in one["predictions"]
  ]
  address = f"https://arxiv.org/abs/{one['arxiv']}"
  facts = {label: say[key] for key, label in _FACTS.items()}
  facts["Changed after a first look"] = say["revised"] or "nothing"
  if one["not_finite"]:
    facts["Not finite"] = _plain("; ".join(one["not_finite"]))
  facts |= {
    "Command": f"``{one['command']}``",
    "Cost": f"{pages.cost(one)}, {', '.join(one['hardware'])}",
    "Commit": ", ".join(commit[:12] for commit in one["commits"]),
  }
  if _world(one) == worlds.EXACT:
    if shown := on_text.findings(RESULTS).get(one["paper"]):
      facts["On text"] = "; ".join(map(_text_fact, shown))
    facts["Command at paper scale"] = (
      f"``xpo reproduce {name} --scale paper``, not run; "
      f"{_cost_at_paper_scale(one['paper'])}"
    )
  body = [
    f".. rubric:: {what or one['paper']}: {one['verdict']}",
    f"{say['claim']} (`{one['arxiv']} <{address}>`__, {say['where']}; survey "
    f"{one['section'] or 'does not discuss it'})",
    ".. list-table::\n   :header-rows: 1\n   :widths: 40 18 27 15\n\n"
    "   * - prediction\n     - expected\n     - found [95 %]\n     - verdict\n"
    + "\n".join(predictions),
    f".. image:: figures/{name}.svg\n   :alt: {one['see']}",
    say["see"],
    "\n".join(f":{label}: {fact}" for label, fact in facts.items()),
  ]
  inner = _indented("\n\n".join(body))
  classes = f".. container:: {_classes(one['paper'])}"
  return f".. _{_target(name)}:\n\n{classes}\n\n{inner}\n"


@functools.cache
def _cost_at_paper_scale(paper: str) -> str:
  recipe = paper_scale.recipes()[paper]
  if not recipe.commands:
    return _plain(recipe.departs)
  hours = sum(map(paper_scale.chip_hours, recipe.commands))
  chips = f"{recipe.chips} x {paper_scale.CHIP}"
  return f"{chips}, an estimate of at most {hours:,.1f} chip-hours"


def _plain(text: str) -> str:
  """Text in which nothing is markup."""
  return re.sub(r"([\\`*_|])", r"\\\1", text)


def _classes(paper: str) -> str:
  """Classes of a row: one for each value that its paper has in a direction."""
  (row,) = (row for row in table.PAPERS if row.name == paper)
  values = [
    _class(code, value.value)
    for code, cell in row.cells.items()
    for value in sorted(cell.values, key=lambda value: value.value)
  ]
  return " ".join(["atlas-row", "atlas-all", *values])


def _class(code: str, value: str) -> str:
  return f"atlas-{code}-{value}".lower().replace(" ", "-").replace("/", "-")


def _target(name: str) -> str:
  return f"atlas-{name}".replace("_", "-")


def _question(direction: type) -> str:
  return (direction.__doc__ or "").partition(": ")[2]


def _raw(text: str) -> str:
  return f".. raw:: html\n\n{_indented(text)}\n"


def _indented(text: str) -> str:
  return "\n".join(f"   {line}" if line else "" for line in text.splitlines())
