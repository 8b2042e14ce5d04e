"""Builds the page's sections on rollouts: reward, KL, diversity, samples.

Read from the run directory alone: metrics.jsonl, the rollouts of each iteration and the
held-out samples of each evaluation.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from xpo_jax.config import yaml_file
from xpo_jax.config.sampling import Sampling
from xpo_jax.evaluation import checkpoint_win_rates, optimal_policy, rollout_history
from xpo_jax.evaluation.bootstrap import Interval
from xpo_jax.report import html
from xpo_jax.report.line_chart import Figure, Series
from xpo_jax.report.run_files import RunFiles
from xpo_jax.train import run_directory
from xpo_jax.train.rollouts import RolloutBatch

_POINTS = 24  # of a curve computed from files of samples
_SEGMENTS = 8  # of the run, whose means are drawn as reward against KL
_PROMPTS = 8  # of the table of held-out samples
_GROUPS = 3  # prompts of an iteration that are shown
_DIVERSITY = {
  "different": "different completions of a prompt",
  "distinct_1": "distinct-1",
  "distinct_2": "distinct-2",
  "repeated_2": "repeated pairs",
}


def sections(run: RunFiles) -> list[html.Section]:
  """Builds the sections on a run's samples; none where it has no rollouts."""
  if not run.has_rollouts or not run.lines:
    return []
  data = run.experiment["data"]
  own = yaml_file.from_dict(Sampling, data["sampling"]).own
  training = rollout_history.read(run.directory / run_directory.ROLLOUTS, _POINTS, own)
  held_out = rollout_history.read(run.directory / run_directory.HELD_OUT, _POINTS)
  by_score = data["feedback"]["kind"] == "scores"
  # Win rates within a group are 1/2 on average, whichever policy samples.
  comparable = by_score and data["ref_update_every"] is None
  figures = [
    reward_kl(
      run.lines if comparable else (), held_out, _held_out_kl(run.lines), by_score
    ),
    best_of_n(_first_and_last(held_out or training)) if by_score else None,
    _diversity(training),
  ]
  charts = html.Figures([figure for figure in figures if figure is not None])
  tables = [_held_out_samples(held_out)] if held_out else []
  tables.append(_training_samples(training))
  return [
    html.Section("Reward, distance, diversity", [charts]),
    *_checkpoints(run, held_out, by_score),
    html.Section("Samples over time", tables),
  ]


def _checkpoints(
  run: RunFiles, held_out: Mapping[int, RolloutBatch], by_score: bool
) -> list[html.Section]:
  """Win rates between checkpoints: those of an evaluation, else from the rewards that
  the run recorded."""
  win_rates = checkpoint_win_rates.read(run.directory)
  if win_rates is None and by_score:
    numbers = rollout_history.spread(list(held_out), checkpoint_win_rates.CHECKPOINTS)
    rates = rollout_history.win_rates({n: held_out[n].reward_BK for n in numbers})
    win_rates = "the run's own feedback", rates
  if win_rates is None or len(win_rates[1]) < 2:
    return []
  return [html.Section("Checkpoints against each other", [_matrix(*win_rates)])]


def reward_kl(
  lines: Sequence[Mapping[str, float]],
  held_out: Mapping[int, RolloutBatch],
  kl: Mapping[int, float],
  by_score: bool = True,
) -> Figure | None:
  """Draws reward against sqrt(KL), in which it is about linear at first.

  Args:
    lines: of metrics.jsonl, for the samples that were trained on; () for none.
    held_out: iterations -> held-out samples.
    kl: iterations -> KL of the held-out samples to the start, nats.
    by_score: whether the judge scores; else win rates against the start are drawn.

  Returns:
    The chart, or None where there is nothing to draw.
  """
  with_reward = [line for line in lines if "rollout/reward" in line]
  series = [_training_series(with_reward)] if with_reward else []
  points = {n: rollout_history.mean_reward(held_out[n]) for n in held_out if n in kl}
  points = {n: point for n, point in points.items() if point is not None}
  if points:
    series.append(_held_out_series(points, kl))
  best = _best_of_n(held_out[0]) if by_score and 0 in held_out else []
  if best:
    x, y = [_sqrt(p.kl.mean) for p in best], [p.reward.mean for p in best]
    series.append(Series("best of n samples of the start", x, y, kind="dashed"))
  if not series:
    return None
  note = (
    "By the run's own feedback. KL to the start: the mean log-ratio of the completions "
    "sampled. Numbers are iterations, bars 95 % over prompts. "
  )
  if best:
    note += "Best of n: exact over the start's samples, at most log n - (n - 1)/n nats."
  title = ("Reward" if by_score else "Win rate") + " against distance"
  y_label = "reward" if by_score else "win rate against the start"
  return Figure(title, "sqrt(KL), KL in nats", y_label, series, note=note.strip())


def _training_series(lines: Sequence[Mapping[str, float]]) -> Series:
  """Means over segments of the run: single iterations are mostly noise."""
  segments = np.array_split(np.arange(len(lines)), min(_SEGMENTS, len(lines)))
  kl, reward = (
    [float(np.mean([lines[i][name] for i in segment])) for segment in segments]
    for name in ("rollout/kl", "rollout/reward")
  )
  return Series("trained on", [_sqrt(x) for x in kl], reward, kind="both")


def _held_out_series(points: Mapping[int, Interval], kl: Mapping[int, float]) -> Series:
  return Series(
    "held-out prompts",
    [_sqrt(kl[n]) for n in points],
    [point.mean for point in points.values()],
    [point.low for point in points.values()],
    [point.high for point in points.values()],
    kind="both",
    labels=[str(n) for n in points],
  )


def best_of_n(samples: Mapping[int, RolloutBatch]) -> Figure | None:
  """Draws the expected reward of the best of n samples, n up to K, by iteration."""
  series = []
  for number, batch in samples.items():
    if best := _best_of_n(batch):
      means = [point.reward for point in best]
      series.append(
        Series(
          f"after {number} iterations" if number else "the start",
          [point.strength for point in best],
          [x.mean for x in means],
          [x.low for x in means],
          [x.high for x in means],
          kind="both",
        )
      )
  if not series or len(series[0].x) < 2:
    return None
  note = "Over all subsets of the samples of a prompt; bars 95 % over prompts."
  return Figure("Best of n", "n", "reward of the best", series, note=note)


def _best_of_n(batch: RolloutBatch) -> list[optimal_policy.Point]:
  reward_PK = rollout_history.pool(batch)
  if not reward_PK.size:
    return []
  return optimal_policy.best_of_n(reward_PK, range(1, reward_PK.shape[1] + 1))


def _diversity(samples: Mapping[int, RolloutBatch]) -> Figure:
  measures = [rollout_history.diversity(batch) for batch in samples.values()]
  series = [
    Series(title, list(samples), [values[name] for values in measures])
    for name, title in _DIVERSITY.items()
  ]
  note = (
    "Distinct-n over all samples of an iteration; repeated pairs: of a completion's "
    "token pairs, those it held before."
  )
  return Figure("Diversity of the samples", "iteration", "fraction", series, note=note)


def _matrix(judge: str, rates: Mapping[int, Mapping[int, Interval]]) -> html.Table:
  numbers = list(rates)
  rows = [
    [
      f"after {row}",
      *("0.500" if row == n else str(rates[row].get(n, "")) for n in numbers),
    ]
    for row in numbers
  ]
  caption = (
    "How often the row's held-out sample beats the column's, a tie half, with its 95 % "
    f"interval over prompts. Judged by {judge}."
  )
  return html.Table(["", *(f"after {n}" for n in numbers)], rows, caption)


def _held_out_samples(held_out: Mapping[int, RolloutBatch]) -> html.Table:
  shown = {n: held_out[n] for n in rollout_history.spread(list(held_out), 3)}
  first = next(iter(shown.values()))
  rows = [
    [html.Verbatim(prompt), *(_sample(batch, b, 0) for batch in shown.values())]
    for b, prompt in enumerate(first.prompts[:_PROMPTS])
  ]
  caption = (
    f"Held-out prompts: the first sample on the first {len(rows)} of "
    f"{len(first.prompts)}, not selected, with its reward. All are in "
    f"`{run_directory.HELD_OUT}/`."
  )
  return html.Table(["prompt", *(f"after {n}" for n in shown)], rows, caption)


def _training_samples(samples: Mapping[int, RolloutBatch]) -> html.Table:
  rows = []
  for number in rollout_history.spread(list(samples), 3):
    batch = samples[number]
    for b, prompt in enumerate(batch.prompts[:_GROUPS]):
      reward_K = batch.reward_BK[b]
      best = int(np.where(np.isnan(reward_K), -np.inf, reward_K).argmax())
      worst = int(np.where(np.isnan(reward_K), np.inf, reward_K).argmin())
      samples_of = (_sample(batch, b, k) for k in (best, worst))
      rows.append([number, html.Verbatim(prompt), *samples_of])
  caption = (
    f"What was learned from: the best and the worst sample of the first {_GROUPS} "
    f"prompts of an iteration. All are in `{run_directory.ROLLOUTS}/`."
  )
  return html.Table(("iteration", "prompt", "best", "worst"), rows, caption)


def _sample(batch: RolloutBatch, b: int, k: int) -> html.Verbatim:
  reward = batch.reward_BK[b, k]
  verdict = "no verdict" if math.isnan(reward) else f"{reward:.2f}"
  end = "" if batch.ended_BK[b, k] else " …"
  return html.Verbatim(f"{batch.texts_BK[b][k].strip()}{end} ({verdict})")


def _first_and_last(samples: Mapping[int, RolloutBatch]) -> dict[int, RolloutBatch]:
  return {n: samples[n] for n in rollout_history.spread(list(samples), 2)}


def _held_out_kl(lines: Sequence[Mapping[str, float]]) -> dict[int, float]:
  """KL of the held-out samples to the start; the start's own is 0."""
  return {0: 0.0} | {
    line["step"]: line["eval/kl"] for line in lines if "eval/kl" in line
  }


def _sqrt(kl: float) -> float:
  return math.sqrt(max(kl, 0.0))  # an estimate from samples may be negative
