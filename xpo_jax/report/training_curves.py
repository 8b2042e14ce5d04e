"""Builds charts of a run's metrics: known ones with title and unit, then others."""

from collections.abc import Mapping, Sequence

from xpo_jax.report import line_chart

# Title, unit and columns of each chart; each column is in one chart only.
CHARTS = (
  ("Loss", "nats", ("loss", "eval/loss")),
  ("Reward", "reward", ("rollout/reward", "reward", "eval/reward")),
  ("KL to the reference", "nats per completion", ("rollout/kl", "seq_kl", "eval/kl")),
  (
    "Log-prob of the two sides",
    "nats per completion",
    ("logp_chosen", "logp_rejected"),
  ),
  ("Log-prob", "nats per completion", ("logp", "logp_completion", "logp_mismatched")),
  ("Implicit rewards", "reward", ("reward_chosen", "reward_rejected")),
  ("Reward margin", "reward", ("reward_margin", "eval/reward_margin")),
  ("Accuracy", "fraction", ("reward_accuracy", "eval/reward_accuracy")),
  ("KL estimate on the data", "nats per token", ("kl_k3",)),
  ("KL to the reference, per token", "nats", ("rollout/kl_token", "eval/kl_token")),
  ("KL to the policy that sampled", "nats per token", ("kl_old",)),
  ("Entropy", "nats per token", ("entropy",)),
  (
    "Completion lengths",
    "tokens",
    (
      "length",
      "length_chosen",
      "length_rejected",
      "length_completion",
      "rollout/length",
      "eval/length",
    ),
  ),
  (
    "Prompts whose rewards differ",
    "fraction",
    (
      "rollout/frac_informative_prompts",
      "frac_informative_prompts",
      "eval/frac_informative_prompts",
    ),
  ),
  (
    "Completions sampled for one that is used",
    "completions",
    ("rollout/sampled_per_used",),
  ),
  ("Prompts used", "prompts", ("rollout/prompts_used",)),
  (
    "Spread of the rewards",
    "standard deviation",
    ("rollout/reward_std", "eval/reward_std"),
  ),
  (
    "Spread of the rewards within a prompt",
    "standard deviation",
    ("rollout/reward_std_within", "eval/reward_std_within"),
  ),
  ("Cut before the end", "fraction", ("rollout/no_eos", "eval/no_eos")),
  ("Without a verdict", "fraction", ("rollout/abstained", "eval/abstained")),
  ("Ratio to the policy that sampled", "ratio", ("ratio",)),
  ("KL of the sampler to the policy, per token", "nats", ("sampler_kl",)),
  ("Ratio of the policy to its sampler", "ratio", ("sampler_ratio",)),
  (
    "Tokens whose sampler's ratio is cut",
    "fraction",
    ("sampler_truncated", "sampler_left_out"),
  ),
  ("Clipped tokens", "fraction", ("clip_fraction", "value_clip_fraction")),
  ("Explained variance of the value", "fraction", ("explained_variance",)),
  ("Advantages", "reward", ("advantage_mean", "advantage_std")),
  ("Coefficient of the KL to the reference", "beta", ("beta",)),
  ("Optimiser steps of an iteration", "steps", ("updates",)),
  ("Gradient norm, before clipping", "norm", ("grad_norm",)),
  ("Learning rate", "rate", ("learning_rate",)),
  ("Padding", "share of tokens", ("padding",)),
  ("Idle share of the sampler", "fraction", ("rollout/idle", "eval/idle")),
  (
    "Seconds by phase, without the first (which compiles)",
    "seconds",
    ("time/rollout", "time/feedback", "time/update"),
  ),
  (
    "Seconds in total, without the first (which compiles)",
    "seconds",
    ("time/seconds",),
  ),
  ("Tokens a second, padding included", "tokens", ("time/tokens_per_second",)),
)


def figures(
  lines: Sequence[Mapping[str, float]], axis: str = "step"
) -> list[line_chart.Figure]:
  """Builds the charts of a run: the known ones, then one for every other column.

  A known chart whose values are all 0 is left out.

  Args:
    lines: of metrics.jsonl.
    axis: unit of a line: "step" or "iteration".
  """
  columns: dict[str, tuple[list, list]] = {}
  for line in lines:
    for name, value in line.items():
      steps, values = columns.setdefault(name, ([], []))
      steps.append(line["step"])
      values.append(value)
  for name in ("step", "epoch"):
    columns.pop(name, None)
  for name in columns:
    if name.startswith("time/") and len(columns[name][0]) > 1:
      columns[name] = (columns[name][0][1:], columns[name][1][1:])
  charts = []
  for title, unit, names in CHARTS:
    recorded = {name: columns.pop(name) for name in names if name in columns}
    if any(any(values) for _, values in recorded.values()):
      series = [_series(name, *column) for name, column in recorded.items()]
      charts.append(line_chart.Figure(title, axis, unit, series))
  terms = [name for name in columns if name.startswith("loss/")]
  if len(terms) > 1:  # a single term is the loss
    series = [_series(name, *columns[name]) for name in terms]
    charts.insert(1, line_chart.Figure("Terms of the loss", axis, "nats", series))
  for name in terms:
    del columns[name]
  for name in sorted(columns):
    if not name.startswith("eval/"):
      series = [_series(name, *columns[name])]
      if f"eval/{name}" in columns:
        series.append(_series(f"eval/{name}", *columns[f"eval/{name}"]))
      charts.append(line_chart.Figure(name, axis, "", series))
  return charts


def _series(name: str, steps: Sequence[float], values: Sequence[float]):
  """The series of a column under its display name."""
  kind, slash, metric = name.partition("/")
  titles = {"eval": f"held-out {metric}", "rollout": "samples"}
  title = titles.get(kind, metric) if slash else name
  series = line_chart.condense(steps, values, title)
  return series._replace(kind="both") if kind == "eval" else series
