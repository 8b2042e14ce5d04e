"""The study's page: tables and the frontier of its measurements."""

import math
from collections.abc import Sequence

import numpy as np

from xpo_jax.evaluation import bootstrap, frontier, measure_policy, optimal_policy
from xpo_jax.report import html, line_chart
from xpo_jax.studies.sentiment import findings
from xpo_jax.studies.sentiment.settings import ARMS, SentimentResult, TrainedPolicy

CUT = 4.0  # nats beyond which seeds differ by more than methods
BEST_OF = (1, 2, 4, 8, 16, 32)
TILTS = (0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)


def build(result: SentimentResult, reproduce: str) -> html.Page:
  """The whole page.

  Args:
    result: what was measured.
    reproduce: the command that rebuilds it.
  """
  study = result.study
  parameters = result.counts["parameters"]
  lead = (
    f"The controlled-sentiment study of the DPO paper on: {result.corpus}. A model of "
    f"{parameters:,} parameters, {study.num_pairs:,} pairs a seed, labels drawn by "
    f"Bradley-Terry on the VADER compound at temperature {study.temperature:g}, "
    f"{len(study.seeds)} seeds. It shows mechanics, not what any method does at scale."
  )
  return html.Page(
    "Controlled sentiment: reward against KL",
    lead,
    [
      html.Section("Does it hold?", [checks_table(result)]),
      html.Section(
        "The frontier", [html.Figures([figure(result)]), table(result), _caveats(study)]
      ),
      html.Section("Papers' claims, and ours", [claims_table(result)]),
      html.Section("SFT and reward models", [reward_models_table(result)]),
      html.Section("Every setting", [runs_table(result)]),
      html.Section("Samples", [samples_table(result)]),
      html.Section("How to reproduce", [html.Code(reproduce), _facts(result)]),
    ],
  )


def checks_table(result: SentimentResult) -> html.Table:
  """The study's checks and whether they hold."""
  rows = [
    ["yes" if check.holds else "**NO**", check.statement, check.found]
    for check in findings.checks(result)
  ]
  return html.Table(
    ["holds", "what must hold", "found"],
    rows,
    "95 % paired bootstrap over prompts and seeds. A NO fails the command.",
  )


def claims_table(result: SentimentResult) -> html.Table:
  """Papers' orderings beside ours."""
  return html.Table(
    ["paper", "claim", "ours: difference in true reward", "verdict"],
    [list(claim) for claim in findings.claims(result)],
    "At equal KL, paired over prompts and seeds. The papers' claims are about models "
    "thousands of times larger: a verdict here is a finding about this setting.",
  )


def _caveats(study) -> html.Text:
  trials = {len(arm.strengths) for arm in study.arms}
  chosen = "they were set by hand and not tuned"
  if study.arms == ARMS and study.source is None:
    chosen = (
      "they were chosen on the tune split in four rounds of twelve trials a method, "
      "policies are judged on the test split (the "
      "ends of three ranges, of DPO, KTO and Preferred-FT, were moved after one look "
      "at the KLs on the test split, so as to bracket the matched ones)"
    )
  corpus = ""
  if study.source is not None and study.policy is None:
    corpus = (
      "\n\nA small model trained on this corpus alone does not write: read the samples "
      "below first. The page then shows how methods trade reward for KL, and not what "
      "they do to text that makes sense. Reward models near 0.5 say that the pairs "
      "hold little such a model can learn."
    )
  return html.Text(
    f"Every method on pairs had {'/'.join(map(str, sorted(trials)))} settings and the "
    f"same pairs, one pass; {chosen}. No prompt is in two splits. Best of n needs "
    "n samples at inference. "
    "One SFT model serves all seeds, so intervals leave out the noise of pre-training. "
    f"{''.join(map(_online_setting, study.online))}The reward "
    f"grows with the number of positive words, so length is part of it.{corpus}"
  )


def _online_setting(arm) -> str:
  """How a method on its own samples differs from those on pairs."""
  samples = arm.prompts_per_iteration * arm.completions
  return (
    f"{arm.label} learns from samples of its own, {samples} completions an iteration, "
    "with the true reward of each, where the others have one noisy label a pair: its "
    "points lie along one run a seed, at settings tried by hand. "
  )


def samples_table(result: SentimentResult, prompts: int = 6) -> html.Table:
  """SFT beside each method's strongest setting, on the first prompts."""
  best = {}
  for run in result.trained:
    other = best.get(run.label)
    inside = run.draws.kl_PK.mean() <= CUT and run.seed == result.study.seeds[0]
    if inside and (other is None or _reward(run) > _reward(other)):
      best[run.label] = run
  labels = [arm.label for arm in result.study.methods if arm.label in best]
  rows = [
    [
      result.sft.prompts[p],
      result.sft.texts[p][0],
      *(best[label].draws.texts[p][0] for label in labels),
    ]
    for p in range(min(prompts, len(result.sft.prompts)))
  ]
  return html.Table(
    ["prompt", "SFT", *labels],
    rows,
    f"The first sample of the setting with most reward within {CUT:g} nats, seed "
    f"{result.study.seeds[0]}.",
  )


def _reward(run: TrainedPolicy) -> float:
  return float(run.draws.reward_PK.mean())


def _facts(result: SentimentResult) -> html.Table:
  rows = [[name, str(value)] for name, value in result.counts.items()]
  rows += [[f"seconds: {stage}", f"{s:.1f}"] for stage, s in result.seconds.items()]
  return html.Table((), rows)


def table(result: SentimentResult) -> html.Table:
  """Reward at matched KL, a row a method."""
  header = [
    "method",
    *(f"reward at {kl:g} nats" for kl in findings.MATCHED),
    "runs",
    "KL span",
  ]
  rows = []
  tilted = as_runs(optimal_policy.tilted(result.pool_PS, TILTS))
  best = as_runs(optimal_policy.best_of_n(result.pool_PS, _sizes(result)))
  for name, bound in (
    ("optimal policy (tilted SFT samples)", tilted),
    ("best of n", best),
  ):
    if not bound:  # a pool too small to show any KL
      continue
    cells = [_cell(frontier.reward_at_kl(bound, kl)) for kl in findings.MATCHED]
    rows.append([name, *cells, "", findings.span("", bound).strip()])
  for arm in result.study.methods:
    runs = findings.points(result, arm.label)
    cells = [_cell(frontier.reward_at_kl(runs, kl)) for kl in findings.MATCHED]
    rows.append([arm.label, *cells, len(runs), findings.span("", runs).strip()])
  return html.Table(
    header,
    rows,
    "True reward (VADER compound) on held-out prompts, interpolated on each method's "
    "own frontier; 95 % intervals over seeds and prompts. SFT itself: "
    f"{bootstrap.bootstrap_mean(result.pool_PS.mean(1))}.",
  )


def _sizes(result: SentimentResult) -> list[int]:
  return [n for n in BEST_OF if n <= result.study.pool]


def as_runs(points: Sequence[optimal_policy.Point]) -> list[frontier.Run]:
  """Points that need no training, as a frontier of one seed."""
  return [frontier.Run("", p.strength, 0, p.reward_P, p.kl_P) for p in points]


def _cell(reward: bootstrap.Interval | None) -> str:
  return "not reached" if reward is None else str(reward)


def runs_table(result: SentimentResult) -> html.Table:
  """Every setting, mean and standard deviation over seeds."""
  header = [
    "method",
    "strength",
    "reward",
    "KL",
    "KL, log-ratio",
    "length",
    "distinct-2",
    "cut",
    "chosen logp",
    "rejected logp",
  ]
  rows = [["SFT", "", *_measures([result.sft]), "", ""]]
  for label in dict.fromkeys(run.label for run in result.trained):
    mine = findings.runs_of(result, label)
    hparam = next((a.hparam for a in result.study.methods if a.label == label), "beta")
    for strength in sorted({run.strength for run in mine}):
      runs = [run for run in mine if run.strength == strength]
      drift = [
        _over_seeds([_change(run, name) for run in runs])
        for name in ("logp_chosen", "logp_rejected")
      ]
      measured = _measures([run.draws for run in runs])
      rows.append([label, f"{hparam} {strength:g}", *measured, *drift])
  return html.Table(
    header,
    rows,
    "Mean ± standard deviation over seeds. KL in nats: the full-vocabulary KL summed "
    "over visited positions, and the plain mean log-ratio beside it. Cut: share of "
    "samples without an end. The last two: change of the summed log-probability of the "
    "chosen and rejected answers from the first to the last tenth of training, nats.",
  )


def _measures(draws: Sequence[measure_policy.Draws]) -> list[str]:
  tokens = [[row for rows in d.tokens for row in rows] for d in draws]
  columns = (
    [d.reward_PK.mean() for d in draws],
    [d.kl_PK.mean() for d in draws],
    [d.log_ratio_PK.mean() for d in draws],
    [d.length_PK.mean() for d in draws],
    [measure_policy.distinct(rows, 2) for rows in tokens],
    [1 - d.ended_PK.mean() for d in draws],
  )
  return [_over_seeds(column) for column in columns]


def _over_seeds(values: Sequence[float]) -> str:
  values = np.asarray(values, np.float64)
  if not np.isfinite(values).all():
    return ""
  if values.size == 1:
    return f"{values[0]:.3f}"
  return f"{values.mean():.3f} ± {values.std(ddof=1):.3f}"


def _change(run: TrainedPolicy, name: str) -> float:
  if name not in run.curve:
    return math.nan
  tenth = max(len(run.curve[name]) // 10, 1)
  return float(run.curve[name][-tenth:].mean() - run.curve[name][:tenth].mean())


def figure(result: SentimentResult, cut: float = CUT) -> line_chart.Figure:
  """The reward-KL frontier of every method, with best of n and the optimal policy."""
  series = []
  for name, points in (
    ("optimal policy", optimal_policy.tilted(result.pool_PS, TILTS)),
    ("best of n", optimal_policy.best_of_n(result.pool_PS, _sizes(result))),
  ):
    x = [p.kl.mean for p in points]
    series.append(
      line_chart.Series(name, x, [p.reward.mean for p in points], kind="dashed")
    )
  for arm in result.study.methods:
    runs = findings.points(result, arm.label)
    x, y, low, high = [], [], [], []
    for strength in arm.strengths:
      same = [run for run in runs if run.strength == strength]
      x.append(np.mean([run.kl_P.mean() for run in same]))
      reward = bootstrap.bootstrap_seeds(np.stack([run.reward_P for run in same]))
      y.append(reward.mean)
      low.append(reward.low)
      high.append(reward.high)
    order = np.argsort(x)
    x, y, low, high = (np.asarray(v)[order] for v in (x, y, low, high))
    series.append(line_chart.Series(arm.label, x, y, low, high, kind="both"))
  return line_chart.Figure(
    "True reward against KL to the SFT policy",
    "KL(policy || SFT), nats per completion",
    "true reward",
    series,
    x_range=(0.0, cut),
    note="Points: settings, mean over seeds; bars: 95 % over seeds and prompts. "
    f"Settings beyond {cut:g} nats are in the table only.",
  )


def reward_models_table(result: SentimentResult) -> html.Table:
  """SFT's and the reward models' own rows."""
  nll = bootstrap.bootstrap_mean(result.sft_nll_P)
  rows = [["sft", "held-out nats a token", str(nll), ""]]
  for model in result.reward_models:
    rows += [
      [
        f"bradley_terry, seed {model.seed}",
        "held-out pairs in the true order",
        str(bootstrap.bootstrap_mean(model.correct_P)),
        "1",
      ],
      [
        f"bradley_terry, seed {model.seed}",
        "agreement with noisy labels",
        str(bootstrap.bootstrap_mean(model.agrees_P)),
        f"{model.optimum:.3f}",
      ],
    ]
  return html.Table(
    ["objective", "measure", "found", "known optimum"],
    rows,
    "Ties left out. The optimum of the second measure is the share of Bradley-Terry "
    "labels that agree with the true order: no model can agree more often.",
  )
