"""What studies of online runs show: arms on one plane, at equal KL, beside claims."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from xpo_jax.evaluation import frontier
from xpo_jax.report import html, line_chart
from xpo_jax.studies import demo
from xpo_jax.studies.frontier import online_frontier
from xpo_jax.studies.frontier.online_frontier import Point
from xpo_jax.studies.sentiment import findings as findings

Arms = Mapping[str, Mapping[int, Sequence[Point]]]
"""Label -> seed -> points, as `online_frontier.by_arm` makes it."""


class Claim(NamedTuple):
  """A paper's ordering of two arms at equal KL.

  Attributes:
    source: paper and arXiv id.
    claim: in our words.
    more: the arm that has more reward.
    less: than this one.
  """

  source: str
  claim: str
  more: str
  less: str


def curve(label: str, seeds: Mapping[int, Sequence[Point]]) -> line_chart.Series:
  """An arm on the plane: means over its seeds, 95 % intervals of the reward."""
  steps = list(zip(*seeds.values(), strict=True))
  kl = [online_frontier.mean(step, "kl").mean for step in steps]
  reward = [online_frontier.mean(step, "reward") for step in steps]
  low, high = [r.low for r in reward], [r.high for r in reward]
  return line_chart.Series(label, kl, [r.mean for r in reward], low, high, kind="both")


def draw(
  path: Path, title: str, series: Sequence[line_chart.Series], note: str
) -> None:
  """Writes the plane as SVG."""
  axes = ("KL to the start, nats a completion", "true reward (VADER)")
  figure = line_chart.Figure(title, *axes, series, note=note)
  path.write_text(line_chart.svg(figure, standalone=True), encoding="utf-8")


def runs(seeds: Mapping[int, Sequence[Point]]) -> list[frontier.Run]:
  """An arm's points as `evaluation.frontier` compares them."""
  return [
    frontier.Run(p.label, float(p.iteration), p.seed, p.reward_P, p.kl_P)
    for points in seeds.values()
    for p in points
  ]


def show(run_dir: Path, title: str, tables: Mapping[str, html.Table]) -> None:
  """Prints tables, and writes them to `tables.md`."""
  for table in tables.values():
    demo.show(table)
  sections = [html.Section(name, [table]) for name, table in tables.items()]
  text = html.markdown(html.Page(title, "", sections))
  run_dir.mkdir(parents=True, exist_ok=True)
  (run_dir / "tables.md").write_text(text, encoding="utf-8")


def matched(
  arms: Mapping[str, Sequence[frontier.Run]], at: Sequence[float], caption: str
) -> html.Table:
  """Reward at equal KL, a row an arm."""
  rows = []
  for label, found in arms.items():
    reward = [frontier.reward_at_kl(found, kl) for kl in at]
    cells = ["not reached" if x is None else str(x) for x in reward]
    rows.append([label, *cells, findings.span("", found).strip()])
  header = ["", *(f"reward at {kl:g} nats" for kl in at), "its points"]
  return html.Table(header, rows, caption)


def claims(given: Sequence[Claim], arms: Arms, at: Sequence[float]) -> html.Table:
  """Papers' orderings beside ours, where both arms have been run on the same seeds."""
  rows = []
  for one in given:
    seeds = set(arms.get(one.more, ())) & set(arms.get(one.less, ()))
    if not seeds:
      continue
    both = [runs({s: arms[arm][s] for s in seeds}) for arm in (one.more, one.less)]
    found = {kl: frontier.difference_at_kl(*both, kl) for kl in at}
    gaps = {kl: gap for kl, gap in found.items() if gap is not None}
    ours = "; ".join(f"{gap} at {kl:g} nats" for kl, gap in gaps.items())
    verdict = findings.verdict(list(gaps.values()))
    difference = f"{one.more} - {one.less}: {ours or 'no KL that both reach'}"
    rows.append([one.source, one.claim, difference, verdict])
  caption = "Difference in true reward at equal KL, paired over prompts and seeds."
  return html.Table(["paper", "claim", "ours", "verdict"], rows, caption)
