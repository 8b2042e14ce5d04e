"""Tables and plots of studies of online runs: equal KL, papers' claims, the plane."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from xpo_jax.data import sealed_files
from xpo_jax.evaluation import frontier, optimal_policy
from xpo_jax.evaluation.bootstrap import Interval
from xpo_jax.report import html, line_chart
from xpo_jax.studies import demo
from xpo_jax.studies.frontier import online_frontier
from xpo_jax.studies.frontier.online_frontier import ArmPoints, FrontierPoint
from xpo_jax.studies.sentiment import findings

PLOT, TABLES = "frontier.svg", "tables.md"
CLAIM_HEADER = ("paper", "claim", "ours", "verdict")


class OrderingClaim(NamedTuple):
  """A paper's claim that one arm has more of a measure than another.

  Attributes:
    source: paper and arXiv id.
    claim: in our words.
    more: the arm that has more.
    less: than this one.
    column: of what; see `FrontierPoint.column`.
  """

  source: str
  claim: str
  more: str
  less: str
  column: str = "reward"


def show_frontier(
  run_dir: Path,
  title: str,
  arms: ArmPoints,
  claims: Sequence[OrderingClaim],
  matched_kl: Sequence[float],
  *,
  caption: str,
  note: str = "Bars: 95 % over prompts and seeds.",
  best_of_n: Sequence[optimal_policy.Point] = (),
) -> None:
  """Draws arms on the reward-KL plane, prints reward at equal KL and claims.

  Args:
    run_dir: the plot and the tables are written to it.
    title: of the plot.
    arms: points of `online_frontier.read`.
    claims: at equal KL.
    matched_kl: KLs that arms are compared at, nats.
    caption: of the table.
    note: under the plot.
    best_of_n: of the start's samples, a further curve.
  """
  series = [curve(label, seeds) for label, seeds in arms.items()]
  runs = {label: frontier_runs(seeds) for label, seeds in arms.items()}
  if best_of_n:
    kl, reward = [p.kl.mean for p in best_of_n], [p.reward.mean for p in best_of_n]
    series.append(line_chart.Series("best of n", kl, reward, kind="dashed"))
    runs["best of n"] = [
      frontier.Run("best of n", p.strength, 0, p.reward_P, p.kl_P) for p in best_of_n
    ]
  axes = ("KL to the start, nats a completion", "true reward")
  figure = line_chart.Figure(title, *axes, series, note=note)
  text = line_chart.svg(figure, standalone=True)
  sealed_files.write_text(run_dir / PLOT, text)
  tables = {
    "Equal KL": matched_table(runs, matched_kl, caption),
    "Claims": matched_claims_table(claims, arms, matched_kl),
  }
  show(run_dir, title, tables)


def curve(
  label: str, seeds: Mapping[int, Sequence[FrontierPoint]]
) -> line_chart.Series:
  """An arm on the plane: means over its seeds, 95 % intervals of the reward."""
  steps = by_strength(seeds)
  kl = [online_frontier.mean(step, "kl").mean for step in steps]
  reward = [online_frontier.mean(step, "reward") for step in steps]
  low, high = [r.low for r in reward], [r.high for r in reward]
  return line_chart.Series(label, kl, [r.mean for r in reward], low, high, kind="both")


def by_strength(
  seeds: Mapping[int, Sequence[FrontierPoint]],
) -> list[tuple[FrontierPoint, ...]]:
  """The points of each strength of an arm, one a seed."""
  return list(zip(*seeds.values(), strict=True))


def frontier_runs(
  seeds: Mapping[int, Sequence[FrontierPoint]],
) -> list[frontier.Run]:
  """An arm's points as `evaluation.frontier` compares them."""
  return [
    frontier.Run(p.label, p.strength, p.seed, p.reward_P, p.kl_P)
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
  sealed_files.write_text(run_dir / TABLES, text)


def matched_table(
  arms: Mapping[str, Sequence[frontier.Run]], kls: Sequence[float], caption: str
) -> html.Table:
  """Reward at equal KL, a row an arm."""
  rows = []
  for label, runs in arms.items():
    rewards = [frontier.reward_at_kl(runs, kl) for kl in kls]
    cells = ["not reached" if x is None else str(x) for x in rewards]
    rows.append([label, *cells, findings.span("", runs).strip()])
  header = ["", *(f"reward at {kl:g} nats" for kl in kls), "KL span"]
  return html.Table(header, rows, caption)


def matched_claims_table(
  claims: Sequence[OrderingClaim], arms: ArmPoints, kls: Sequence[float]
) -> html.Table:
  """Papers' orderings of reward at equal KL, of arms that were run on the same
  seeds."""
  rows = []
  for claim in claims:
    seeds = set(arms.get(claim.more, ())) & set(arms.get(claim.less, ()))
    if not seeds:
      continue
    more, less = (
      frontier_runs({seed: arms[arm][seed] for seed in seeds})
      for arm in (claim.more, claim.less)
    )
    differences = {kl: frontier.difference_at_kl(more, less, kl) for kl in kls}
    gaps = {kl: gap for kl, gap in differences.items() if gap is not None}
    ours = "; ".join(f"{gap} at {kl:g} nats" for kl, gap in gaps.items())
    verdict_text = findings.verdict(list(gaps.values()))
    difference = f"{claim.more} - {claim.less}: {ours or 'no KL that both reach'}"
    rows.append([claim.source, claim.claim, difference, verdict_text])
  caption = "Difference in true reward at equal KL, paired over prompts and seeds."
  return html.Table(CLAIM_HEADER, rows, caption)


def final_claims_table(claims: Sequence[OrderingClaim], arms: ArmPoints) -> html.Table:
  """Papers' orderings of the policies after the last step, at whatever KL."""
  last = {arm: [points[-1] for points in seeds.values()] for arm, seeds in arms.items()}
  rows = []
  for claim in claims:
    if claim.more not in last or claim.less not in last:
      continue
    more, less = last[claim.more], last[claim.less]
    difference = online_frontier.gap(more, less, claim.column)
    kls = [online_frontier.mean(points, "kl").mean for points in (more, less)]
    ours = (
      f"{claim.column}, {claim.more} - {claim.less}: {difference}; {kls[0]:.2f} and "
      f"{kls[1]:.2f} nats"
    )
    rows.append([claim.source, claim.claim, ours, verdict(difference)])
  caption = (
    "Of the policies after the last iteration, paired over prompts and seeds, at the "
    "recipes' own strengths: where the KLs differ, so may the verdict at equal KL. "
    "Steps, samples and hyperparameters were not tuned method by method."
  )
  return html.Table(CLAIM_HEADER, rows, caption)


def verdict(difference: Interval | None) -> str:
  """What a difference says of the claim that it is positive."""
  if difference is None:
    return "cannot be compared: no seed that both have"
  if difference.low > 0:
    return "reproduces here"
  if difference.high < 0:
    return "does not reproduce here: the other way"
  return "not separable here: the interval contains 0"
