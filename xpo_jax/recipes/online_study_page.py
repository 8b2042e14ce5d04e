"""What studies of online runs show: arms on one plane, at equal KL, beside claims."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from xpo_jax.recipes import demo, online_study
from xpo_jax.recipes import sentiment_findings as findings
from xpo_jax.recipes.online_study import Point
from xpo_jax.train import charts, frontier, page

Arms = Mapping[str, Mapping[int, Sequence[Point]]]
"""Label -> seed -> points, as `online_study.by_arm` makes it."""


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


def curve(label: str, seeds: Mapping[int, Sequence[Point]]) -> charts.Series:
  """An arm on the plane: means over its seeds, 95 % intervals of the reward."""
  steps = list(zip(*seeds.values(), strict=True))
  kl = [online_study.mean(step, "kl").mean for step in steps]
  reward = [online_study.mean(step, "reward") for step in steps]
  low, high = [r.low for r in reward], [r.high for r in reward]
  return charts.Series(label, kl, [r.mean for r in reward], low, high, kind="both")


def draw(path: Path, title: str, series: Sequence[charts.Series], note: str) -> None:
  """Writes the plane as SVG."""
  axes = ("KL to the start, nats a completion", "true reward (VADER)")
  figure = charts.Figure(title, *axes, series, note=note)
  path.write_text(charts.svg(figure, standalone=True), encoding="utf-8")


def runs(seeds: Mapping[int, Sequence[Point]]) -> list[frontier.Run]:
  """An arm's points as `train.frontier` compares them."""
  return [
    frontier.Run(p.label, float(p.iteration), p.seed, p.reward_P, p.kl_P)
    for points in seeds.values()
    for p in points
  ]


def show(run_dir: Path, title: str, tables: Mapping[str, page.Table]) -> None:
  """Prints tables, and writes them to `tables.md`."""
  for table in tables.values():
    demo.show(table)
  sections = [page.Section(name, [table]) for name, table in tables.items()]
  text = page.markdown(page.Page(title, "", sections))
  run_dir.mkdir(parents=True, exist_ok=True)
  (run_dir / "tables.md").write_text(text, encoding="utf-8")


def matched(
  arms: Mapping[str, Sequence[frontier.Run]], at: Sequence[float], caption: str
) -> page.Table:
  """Reward at equal KL, a row an arm."""
  rows = []
  for label, found in arms.items():
    reward = [frontier.reward_at_kl(found, kl) for kl in at]
    cells = ["not reached" if x is None else str(x) for x in reward]
    rows.append([label, *cells, findings.span("", found).strip()])
  header = ["", *(f"reward at {kl:g} nats" for kl in at), "its points"]
  return page.Table(header, rows, caption)


def claims(given: Sequence[Claim], arms: Arms, at: Sequence[float]) -> page.Table:
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
  return page.Table(["paper", "claim", "ours", "verdict"], rows, caption)
