"""The comparison's page: one plot, one table, and how its numbers were measured."""

from collections.abc import Sequence
from typing import NamedTuple

from xpo_jax.evaluation import bootstrap, frontier, optimal_policy
from xpo_jax.report import dot_plot, html
from xpo_jax.studies.comparison.settings import ComparedObjective
from xpo_jax.studies.comparison.train_objectives import ComparisonResult
from xpo_jax.studies.sentiment.findings import MATCHED
from xpo_jax.studies.sentiment.sentiment_page import BEST_OF, TILTS, as_runs

PLOT = "comparison.svg"
_SORTED = MATCHED[1]


class ObjectiveRow(NamedTuple):
  """An objective's row.

  Attributes:
    entry: its runs.
    rewards: at each matched KL: an Interval, or why there is none.
    gap: to the baseline at the KL that rows are sorted by, or None.
  """

  entry: ComparedObjective
  rewards: tuple[bootstrap.Interval | str, ...]
  gap: bootstrap.Interval | None


def lines(result: ComparisonResult) -> list[ObjectiveRow]:
  """The objectives that were trained, from the most reward to the least; those whose
  frontier does not reach the KL that decides are last."""
  trained = [entry for entry in result.entries if entry.error is None]
  base = [entry for entry in trained if entry.name == result.comparison.baseline]
  rows = []
  for entry in trained:
    others = [other for other in base if other is not entry]
    gaps = [entry.minus(other, _SORTED) for other in others]
    rows.append(
      ObjectiveRow(entry, tuple(map(entry.at, MATCHED)), gaps[0] if gaps else None)
    )
  return sorted(rows, key=_place)


def _place(line: ObjectiveRow) -> tuple:
  means = [None if isinstance(x, str) else -x.mean for x in line.rewards]
  deciding = means[MATCHED.index(_SORTED)]
  others = [0.0 if x is None else x for x in means]
  return (deciding is None, deciding or 0.0, others)


def build(
  result: ComparisonResult, shown: Sequence[ObjectiveRow], reproduce: str
) -> html.Page:
  """The whole page.

  Args:
    result: the measurements.
    shown: its `lines`.
    reproduce: the command that rebuilds it.
  """
  study = result.comparison
  lead = (
    f"{len(shown)} objectives trained from one start on the same pairs, on: "
    f"{result.corpus}. A model of {result.counts['parameters']:,} parameters, "
    f"{study.num_pairs:,} pairs a seed, labels drawn by Bradley-Terry on the VADER "
    f"compound at temperature {study.temperature:g}, {len(study.seeds)} seeds. It "
    "shows mechanics at toy scale, not how methods rank on large models."
  )
  drawing = html.Drawing(
    dot_plot.svg(plot(result, shown)),
    PLOT,
    f"Sorted by reward at {_SORTED:g} nats. Bars: 95 % over seeds and prompts; prompts "
    "are shared, so differences are surer than two bars suggest (see the table). "
    "Dashed: the start (SFT), best of n, and the optimal policy, the most reward "
    "at that KL.",
  )
  sections = [
    html.Section(
      "Reward at equal KL", [drawing, table(result, shown), _reading(result, shown)]
    ),
    html.Section("How it was done", [_method(result)]),
    html.Section("Every objective's runs", [runs_table(result, shown)]),
    html.Section("Left out", [left_out_table(result)]),
    html.Section("How to reproduce", [html.Code(reproduce), _facts(result)]),
  ]
  failed = [entry for entry in result.entries if entry.error]
  if failed:
    listed = "\n\n".join(f"`{entry.name}`: {entry.error}" for entry in failed)
    title = f"{len(failed)} could not be trained"
    errors = html.Section("Errors", [html.Callout("warning", title, listed)])
    sections.insert(0, errors)
  return html.Page("Objectives side by side", lead, sections)


def plot(result: ComparisonResult, shown: Sequence[ObjectiveRow]) -> dot_plot.Dots:
  """Reward at the matched KLs, a row an objective, a panel a KL."""
  panels = []
  for kl in MATCHED:
    marks = {"SFT": result.pool_PS.mean()}
    for name, curve in _bounds(result):
      at = frontier.reward_at_kl(curve, kl)
      if at is not None:
        marks[name] = at.mean
    panels.append(dot_plot.Panel(f"at {kl:g} nats", marks))
  return dot_plot.Dots(
    "True reward at equal KL to the start",
    "true reward (VADER compound) on held-out prompts",
    panels,
    [
      dot_plot.DotRow(line.entry.name, line.entry.feedback, line.rewards)
      for line in shown
    ],
  )


def table(result: ComparisonResult, shown: Sequence[ObjectiveRow]) -> html.Table:
  """Reward at the matched KLs, and the paired difference from the baseline."""
  header = [
    "objective",
    "learns from",
    *(f"reward at {kl:g} nats" for kl in MATCHED),
    f"minus {result.comparison.baseline} at {_SORTED:g}",
  ]
  rows = []
  for name, curve in _bounds(result):
    cells = [frontier.reward_at_kl(curve, kl) for kl in MATCHED]
    rows.append([name, "", *("not reached" if c is None else str(c) for c in cells)])
    rows[-1].append("")
  for line in shown:
    # Unbroken: two lines in every row would double the table.
    learns = line.entry.feedback.replace(" ", "\N{NO-BREAK SPACE}")
    rows.append([line.entry.name, learns, *map(str, line.rewards), _gap(line)])
  return html.Table(
    header,
    rows,
    "Interpolated on each objective's own frontier between its runs; 95 % intervals "
    "over seeds and prompts. The difference is paired over both, bold where its "
    "interval excludes 0. SFT itself: "
    f"{bootstrap.bootstrap_mean(result.pool_PS.mean(1))}.",
  )


def _gap(line: ObjectiveRow) -> str:
  if line.gap is None:
    return ""
  return f"**{line.gap}**" if line.gap.low > 0 or line.gap.high < 0 else str(line.gap)


def _reading(result: ComparisonResult, shown: Sequence[ObjectiveRow]) -> html.Text:
  compared = sum(line.gap is not None for line in shown)
  return html.Text(
    f"{compared} objectives are set against {result.comparison.baseline}: were all of "
    f"them equal to it, about {0.05 * compared:.0f} of the differences would be bold "
    "by chance. Not reached: some seed's runs do not bracket the KL; diverged: it "
    "would take a learning rate at which a run's loss was not finite. One start serves "
    "all seeds, so intervals leave out the noise of pre-training."
  )


def _method(result: ComparisonResult) -> html.Text:
  study = result.comparison
  first = study.first_learning_rates
  trials = study.rounds * len(first)
  return html.Text(
    "**Which objectives are compared** is decided from each objective itself: its "
    "layout is one that pairs can be turned into; it reads the policy's probability of "
    "a completion, and beside the policy a scalar head on it and the frozen start, "
    "nothing else; every data column it reads follows from a pair (the chosen "
    "completion is desirable with reward 1, the rejected one is not, with reward 0)."
    "\n\n"
    "**One hyperparameter moves every objective along its frontier: the peak learning "
    "rate.** "
    "All have it, it means the same in each and reaches every KL, while a beta is a "
    "slope for one, an inverse margin for another and absent from a third. All other "
    "hyperparameters stay at their papers' defaults, chosen for models thousands of "
    "times larger: an objective may do better here with others, and the page does not "
    "say by how much.\n\n"
    f"**The same search for all**: {trials} runs a seed, first at rates "
    f"{_listed(first)}, then, {len(first)} at a time, where the line through the "
    "seed's runs so far (log KL over log rate) meets those of the targets "
    f"{_listed(study.targets)} nats that are farthest from any run. The search "
    "sees KL on prompts of the tune split and no reward; all of its runs are the "
    "frontier, judged on the test split.\n\n"
    "**The same budget for all**: one pass over the pairs, one optimiser and schedule, "
    "one compiled program an objective. A step takes about as many pairs in every "
    "layout; chosen answers alone take half the room, and a step of them twice as many."
  )


def _listed(values: Sequence[float]) -> str:
  return ", ".join(f"{value:g}" for value in values)


def runs_table(result: ComparisonResult, shown: Sequence[ObjectiveRow]) -> html.Table:
  """What each objective's search tried, seed by seed."""
  rows = [
    [
      f"`{entry.name}`",
      _hparams(entry),
      *_tried(entry),
      f"{entry.seconds['in all']:.0f}",
    ]
    for entry in (line.entry for line in shown)
  ]
  seeds = [f"seed {seed}" for seed in result.comparison.seeds]
  return html.Table(
    ["objective", "hparams", "rates", *seeds, "diverged", "seconds"],
    rows,
    "Rates: least and most tried. Under each seed the least and most KL of its runs on "
    "the test prompts, nats. Seconds: training (compilation included) and sampling.",
  )


def _hparams(entry: ComparedObjective) -> str:
  return ", ".join(
    f"{k} {html.cell(v)}" for k, v in entry.hparams.items() if k != "name"
  )


def _tried(entry: ComparedObjective) -> list[str]:
  rates = [trial.learning_rate for trial in entry.trials]
  cells = [f"{min(rates):.1g} to {max(rates):.1g}"]
  for seed in dict.fromkeys(trial.seed for trial in entry.trials):
    kl = sorted(run.kl_P.mean() for run in entry.points() if run.seed == seed)
    cells.append(f"{kl[0]:.2g} to {kl[-1]:.2g}" if kl else "")
  bad = sum(trial.diverged is not None for trial in entry.trials)
  return [*cells, f"{bad} of {len(rates)}"]


def left_out_table(result: ComparisonResult) -> html.Table:
  """Objectives that were left out, and why."""
  rows = [[f"`{name}`", reason] for name, reason in result.left_out.items()]
  return html.Table(["objective", "why"], rows or [["none", ""]])


def _facts(result: ComparisonResult) -> html.Table:
  rows = [[name, str(value)] for name, value in result.counts.items()]
  rows += [[f"seconds: {stage}", f"{s:.0f}"] for stage, s in result.seconds.items()]
  return html.Table((), rows)


def _bounds(result: ComparisonResult) -> list[tuple[str, list[frontier.Run]]]:
  """Curves that need no training."""
  sizes = [n for n in (*BEST_OF, 64) if n <= result.pool_PS.shape[1]]
  curves = {
    "optimal policy": as_runs(optimal_policy.tilted(result.pool_PS, TILTS)),
    "best of n": as_runs(optimal_policy.best_of_n(result.pool_PS, sizes)),
  }
  # A pool too small to show any KL has no points of the optimal policy.
  return [(name, runs) for name, runs in curves.items() if runs]
