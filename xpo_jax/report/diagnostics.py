"""Known patterns in a run's numbers, by name: what was seen, what it means, what helps.

A verdict is a rule over recorded numbers, with its threshold written here. It points;
it does not prove. Changes over training are judged between the first and the last
tenth of the run, against the noise between steps.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

GOOD, NOTE, WARNING = "good", "note", "warning"

FIRST_LOSS_TOLERANCE = 1e-4  # float32 sums over a batch; a wrong reference is 1e-2
CHOSEN_FALL = 0.5  # nats per completion
SATURATED = 0.98  # training accuracy
GAP = 0.1  # training accuracy above held-out accuracy
LENGTH_DRIFT = 1.2  # ratio to the reference's length, or its inverse
REPETITION = 0.7  # distinct-2 over the reference's
UNENDED = 0.1  # share of completions cut, above the reference's
NOISE = 3.0  # standard errors that a change must exceed


class Verdict(NamedTuple):
  """One pattern that was looked for.

  Attributes:
    name: of the pattern.
    level: "good" (looked for and absent, where that is worth saying), "note" or
      "warning".
    seen: the numbers.
    meaning: what they say of the run.
    remedy: settings or objectives that address it.
  """

  name: str
  level: str
  seen: str
  meaning: str = ""
  remedy: str = ""


def judge(
  metrics: Sequence[Mapping[str, float]],
  evaluation: Mapping | None = None,
  first_loss: float | None = None,
) -> list[Verdict]:
  """Every pattern that the numbers allow to be looked for.

  Args:
    metrics: lines of metrics.jsonl, in order.
    evaluation: evaluation.json as a dict, or None.
    first_loss: what the first loss must be because the policy starts as the
      reference (`math.log(2)` for DPO), or None where the objective fixes none.

  Returns:
    Verdicts, warnings first.
  """
  found = [
    _first_loss(metrics, first_loss),
    _chosen_falling(metrics),
    _saturated(metrics),
    _not_moving(metrics),
  ]
  if evaluation and evaluation.get("reference"):
    policy, reference = evaluation["policy"], evaluation["reference"]
    found += [
      length_drift(_mean(policy, "length"), _mean(reference, "length")),
      _repetition(policy, reference),
      unended(_mean(policy, "no_eos"), _mean(reference, "no_eos")),
    ]
  return by_level([v for v in found if v])


def by_level(found: Sequence[Verdict]) -> list[Verdict]:
  """Warnings first, then notes."""
  order = {WARNING: 0, NOTE: 1, GOOD: 2}
  return sorted(found, key=lambda v: order[v.level])


def column(metrics: Sequence[Mapping[str, float]], name: str) -> np.ndarray:
  """The finite values of a column."""
  values = np.array([m[name] for m in metrics if name in m], np.float64)
  return values[np.isfinite(values)]


def ends(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The first and the last tenth, at least one value each."""
  size = max(1, x.size // 10)
  return x[:size], x[-size:]


def change(x: np.ndarray) -> tuple[float, float]:
  """Last tenth minus first tenth, and the standard error from the noise of steps."""
  first, last = ends(x)
  # Half the mean square of successive differences: the noise without the trend.
  noise = np.square(np.diff(x)).mean() / 2
  return float(last.mean() - first.mean()), math.sqrt(2 * noise / first.size)


def _first_loss(metrics, expected) -> Verdict | None:
  if expected is None or not metrics or metrics[0].get("step") != 1:
    return None
  if "loss" not in metrics[0] or metrics[0].get("updates", 1) != 1:
    return None  # an iteration without a step, or a mean over several
  loss = metrics[0]["loss"]
  seen = f"first loss {loss:.6f}; policy = reference demands {expected:.6f}"
  if abs(loss - expected) <= FIRST_LOSS_TOLERANCE * max(1.0, abs(expected)):
    return Verdict("First loss as it must be", GOOD, seen)
  return Verdict(
    "First loss not what policy = reference demands",
    WARNING,
    seen,
    "The policy did not start as the reference: another checkpoint, another template "
    "or truncation for the cached reference, dropout, or a mask that counts other "
    "tokens. Every implicit reward of this run carries that offset.",
    "Start the policy from the reference's own checkpoint and let the run compute the "
    "reference log-probs anew.",
  )


def _chosen_falling(metrics) -> Verdict | None:
  chosen = column(metrics, "logp_chosen")
  rejected = column(metrics, "logp_rejected")
  if chosen.size < 10 or rejected.size != chosen.size:
    return None
  moved, noise = change(chosen)
  seen = (
    f"log-prob of chosen {moved:+.2f} nats per completion (noise {noise:.2f}), of "
    f"rejected {change(rejected)[0]:+.2f}"
  )
  if moved > -CHOSEN_FALL or moved > -NOISE * noise:
    return Verdict("Chosen log-prob holds", GOOD, seen)
  return Verdict(
    "Chosen log-prob falling",
    WARNING,
    seen,
    "The margin grows because rejected answers fall faster; chosen ones fall too, and "
    "the probability goes to answers nobody labelled. Some fall is common in DPO; a "
    "large one goes with drift and degeneration.",
    "Raise `beta` or lower the learning rate; add an NLL term on chosen answers "
    "(`mixture` with `sft`), take `orpo`, which has one, or DPOP, which penalises "
    "the fall itself.",
  )


def _saturated(metrics) -> Verdict | None:
  accuracy = column(metrics, "reward_accuracy")
  if accuracy.size < 10:
    return None
  last = float(ends(accuracy)[1].mean())
  held_out = column(metrics, "eval/reward_accuracy")
  seen = f"training accuracy {last:.3f} at the end"
  if held_out.size:
    seen += f", held-out {held_out[-1]:.3f}"
  overfit = held_out.size and last - held_out[-1] > GAP
  if last < SATURATED and not overfit:
    return Verdict("Accuracy not saturated", GOOD, seen)
  return Verdict(
    "Saturated accuracy" if last >= SATURATED else "Accuracy only on training pairs",
    WARNING,
    seen,
    "Nearly every training pair is ordered right, or far more of them than of unseen "
    "pairs: labels carry noise, so further steps fit it while the margin grows without "
    "bound.",
    "Fewer epochs; `dpo(label_smoothing=...)`, whose margin stays finite; `beta_dpo`, "
    "which sets aside outlying pairs; IPO, which aims at a fixed margin.",
  )


def _not_moving(metrics) -> Verdict | None:
  margin = column(metrics, "reward_margin")
  if margin.size < 10:
    return None
  moved, noise = change(margin)
  if abs(moved) > NOISE * noise:
    return None
  return Verdict(
    "Margin does not move",
    NOTE,
    f"reward margin {moved:+.4f} over the run, noise {noise:.4f}",
    "Over the whole run chosen and rejected answers were not told apart: labels at "
    "random, a learning rate near 0, or columns that are mixed up.",
    "Look at the tokens under Data; raise the learning rate tenfold for a short run.",
  )


def _mean(measures, name: str) -> float | None:
  return measures[name]["mean"] if name in measures else None


def length_drift(
  ours: float | None, theirs: float | None, before: str = "reference"
) -> Verdict | None:
  """Judges mean lengths of completions; `before` names the other side."""
  if ours is None or not theirs:
    return None
  seen = f"{ours:.1f} tokens per completion, {before} {theirs:.1f}"
  ratio = ours / theirs
  if 1 / LENGTH_DRIFT < ratio < LENGTH_DRIFT:
    return Verdict("Length holds", GOOD, seen)
  return Verdict(
    "Length drift",
    WARNING,
    seen,
    f"Completions are {'longer' if ratio > 1 else 'shorter'} by more than a fifth. "
    "Where reward or judge favours length, part of the gain is length.",
    "Compare rewards at equal length; `simpo` divides by length; R-DPO penalises it; "
    "a larger `beta` keeps the reference's lengths.",
  )


def _repetition(policy, reference) -> Verdict | None:
  ours, theirs = _mean(policy, "distinct_2"), _mean(reference, "distinct_2")
  if ours is None or not theirs:
    return None
  seen = f"distinct-2 {ours:.3f}, reference {theirs:.3f}"
  if ours / theirs > REPETITION:
    return Verdict("No repetition beyond the reference's", GOOD, seen)
  return Verdict(
    "Repetition",
    WARNING,
    seen,
    "The policy writes the same word pairs again and again: it has found few phrases "
    "that are rewarded, the usual form of over-optimisation.",
    "Stop earlier or raise `beta`; read the samples before believing the reward.",
  )


def unended(
  ours: float | None, theirs: float | None, before: str = "reference"
) -> Verdict | None:
  """Judges shares of completions that were cut; `before` names the other side."""
  if ours is None or theirs is None or ours - theirs <= UNENDED:
    return None
  return Verdict(
    "Completions do not end",
    WARNING,
    f"{ours:.0%} are cut at the limit, {before} {theirs:.0%}",
    "Either the limit is too low for this policy's length, or it has lost the end "
    "token: truncated training completions carry none.",
    "Check the truncation counts under Data; raise the completion limit.",
  )
