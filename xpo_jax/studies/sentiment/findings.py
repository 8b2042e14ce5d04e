"""What the controlled-sentiment study found: its checks, and papers' claims.

A check is a statement the study must keep, or the program is wrong; it decides the
exit code. A claim is a paper's, set beside our interval; it may fail to reproduce.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from xpo_jax.evaluation import bootstrap, frontier, measure_policy
from xpo_jax.studies.sentiment.settings import SentimentResult, TrainedPolicy

MATCHED = (0.5, 1.3, 2.5)  # nats at which methods are compared


class Check(NamedTuple):
  """A statement that must hold.

  Attributes:
    statement: what must hold.
    found: the numbers.
    holds: whether it does.
  """

  statement: str
  found: str
  holds: bool


class ClaimVerdict(NamedTuple):
  """A paper's claim beside what was measured.

  Attributes:
    source: paper and arXiv id.
    claim: in our words.
    ours: the measured difference.
    verdict: what the interval says.
  """

  source: str
  claim: str
  ours: str
  verdict: str


def points(result: SentimentResult, label: str) -> list[frontier.Run]:
  """An arm's runs as points of its frontier."""
  return [
    frontier.Run(
      run.label,
      run.strength,
      run.seed,
      measure_policy.per_prompt(run.draws.reward_PK),
      measure_policy.per_prompt(run.draws.kl_PK),
    )
    for run in result.trained
    if run.label == label
  ]


def checks(result: SentimentResult) -> list[Check]:
  """What the study must show, unless something is broken."""
  study = result.study
  dpo = [
    r for r in result.trained if r.label == "DPO" and r.strength == study.control_beta
  ]
  first = [float(r.curve["loss"][0]) for r in result.trained if r.label == "DPO"]
  worst = max((abs(x - math.log(2)) for x in first), default=math.nan)
  gain = _gain(result, dpo)
  flipped = _gain(result, runs_of(result, "flipped"))
  chance = _gain(result, runs_of(result, "random"))
  return [
    Check("DPO's true reward exceeds SFT's", f"{gain} over SFT", gain.low > 0),
    Check(
      "with flipped labels it falls below SFT's",
      f"{flipped} over SFT",
      flipped.high < 0,
    ),
    Check(
      "with random labels it does not move",
      f"{chance} over SFT",
      chance.low <= 0 <= chance.high,
    ),
    Check(
      "the first DPO loss is ln 2 to 1e-5",
      f"largest difference of {len(first)} runs: {worst:.1e}",
      worst <= 1e-5,
    ),
  ]


def runs_of(result: SentimentResult, label: str) -> list[TrainedPolicy]:
  return [run for run in result.trained if run.label == label]


def _gain(result: SentimentResult, runs: Sequence[TrainedPolicy]) -> bootstrap.Interval:
  reward_SP = np.stack([measure_policy.per_prompt(r.draws.reward_PK) for r in runs])
  return bootstrap.paired_bootstrap(reward_SP, result.pool_PS.mean(1))


_CLAIMS = (
  (
    "DPO, arXiv:2305.18290, Fig. 2",
    "more reward at equal KL than fine-tuning on the preferred answers",
    "DPO",
    "Preferred-FT",
  ),
  (
    "DPO, arXiv:2305.18290, Fig. 2",
    "more reward at equal KL than PPO with the true reward; RLOO stands for PPO",
    "DPO",
    "RLOO",
  ),
  (
    "beta-DPO, arXiv:2407.08639",
    "a beta that follows the batch, on filtered pairs, improves on DPO",
    "beta-DPO",
    "DPO",
  ),
  (
    "SimPO, arXiv:2405.14734",
    "better than DPO without a reference",
    "SimPO",
    "DPO",
  ),
  (
    "ORPO, arXiv:2403.07691",
    "better than fine-tuning on the preferred answers, without a reference",
    "ORPO",
    "Preferred-FT",
  ),
  (
    "KTO, arXiv:2402.01306",
    "matches or exceeds DPO from thumbs up and down",
    "KTO",
    "DPO",
  ),
)


def claims(result: SentimentResult) -> list[ClaimVerdict]:
  """Papers' orderings beside ours, at each matched KL that both methods reach."""
  out = []
  for source, claim, better, worse in _CLAIMS:
    a, b = points(result, better), points(result, worse)
    if not a or not b:
      continue
    gaps = {kl: frontier.difference_at_kl(a, b, kl) for kl in MATCHED}
    reached = {kl: gap for kl, gap in gaps.items() if gap is not None}
    ours = f"{better} - {worse}: " + "; ".join(
      f"{gap} at {kl:g} nats" for kl, gap in reached.items()
    )
    if not reached:
      spans = ", ".join(span(label, p) for label, p in ((better, a), (worse, b)))
      ours = f"no matched KL that both reach ({spans})"
    out.append(ClaimVerdict(source, claim, ours, verdict(list(reached.values()))))
  return out


def span(label: str, runs: Sequence[frontier.Run]) -> str:
  kl = [run.kl_P.mean() for run in runs]
  return f"{label} {min(kl):.2f}-{max(kl):.2f} nats"


def verdict(gaps: Sequence[bootstrap.Interval]) -> str:
  """What the differences at the matched KLs say of a claim that they are positive."""
  if not gaps:
    return "cannot be compared here: the frontiers do not overlap"
  above = sum(gap.low > 0 for gap in gaps)
  below = sum(gap.high < 0 for gap in gaps)
  if above and below:
    return "depends on the KL"
  if above:
    return f"reproduces at {above} of {len(gaps)} matched KLs"
  if below:
    return f"does not reproduce here: the other way at {below} of {len(gaps)}"
  return "not separable here: every interval contains 0"
