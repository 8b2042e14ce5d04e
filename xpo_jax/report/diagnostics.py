"""Diagnoses a run: looks for known failure patterns in its metrics.

A diagnostic is a rule over recorded numbers with a fixed threshold; it indicates a
problem and does not prove one. Changes over training are measured between the first and
the last tenth of the run, against the noise between steps.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

GOOD, NOTE, WARNING = "good", "note", "warning"
_ORDER = {WARNING: 0, NOTE: 1, GOOD: 2}

FIRST_LOSS_TOLERANCE = 1e-4  # float32 sums over a batch; a wrong reference is 1e-2
CHOSEN_FALL = 0.5  # nats per completion
SATURATED = 0.98  # training accuracy
GAP = 0.1  # training accuracy above held-out accuracy
LENGTH_DRIFT = 1.2  # ratio to the reference's length, or its inverse
REPETITION = 0.7  # distinct-2 over the reference's
UNENDED = 0.1  # share of completions cut, above the reference's
NOISE = 3.0  # standard errors that a change must exceed
KL_PER_TOKEN = 0.5  # nats: a token is e^0.5 times as likely as by the reference
INFORMATIVE = 0.1  # share of prompts
ENTROPY = 0.5  # of the entropy at the start
ABSTAINED = 0.1  # share of completions
CLIPPED = 0.3  # share of tokens
_LEAST = 10  # lines, before a change is interpreted

Lines = Sequence[Mapping[str, float]]


class Diagnosis(NamedTuple):
  """Result of a diagnostic on a run.

  Attributes:
    name: of the pattern.
    level: "good" (the pattern is absent, where that is reported), "note" or
      "warning".
    seen: the numbers.
    meaning: their interpretation.
    remedy: settings or objectives that address it.
  """

  name: str
  level: str
  seen: str
  meaning: str = ""
  remedy: str = ""


class Numbers(NamedTuple):
  """Recorded numbers of a run.

  Attributes:
    lines: of metrics.jsonl, in order.
    policy: means of evaluation.json by measure; empty without an evaluation.
    reference: the same of the reference.
    first_loss: what the first loss must be because the policy starts as the
      reference (`math.log(2)` for DPO), or None where the objective fixes none.
  """

  lines: Lines
  policy: Mapping[str, float]
  reference: Mapping[str, float]
  first_loss: float | None


class Diagnostic(NamedTuple):
  """A rule for one pattern, applied where the numbers it reads are recorded.

  Attributes:
    rule: `numbers -> diagnosis`; None where they are too few, or where the absence of
      the pattern is not reported.
    metrics: columns of metrics.jsonl that it needs.
    measures: of evaluation.json, that it needs of the policy and of the reference.
  """

  rule: Callable[[Numbers], Diagnosis | None]
  metrics: Collection[str] = ()
  measures: Collection[str] = ()


def diagnose(
  lines: Lines,
  evaluation: Mapping[str, Any] | None = None,
  first_loss: float | None = None,
  ignored: Collection[str] = (),
) -> list[Diagnosis]:
  """Applies every diagnostic whose numbers a run recorded.

  Args:
    lines: of metrics.jsonl, in order.
    evaluation: evaluation.json as a dict, or None.
    first_loss: see `Numbers`.
    ignored: metrics that are not interpreted; see `ignored_metrics`.

  Returns:
    Diagnoses, warnings first.
  """
  policy, reference = (
    {name: x["mean"] for name, x in ((evaluation or {}).get(side) or {}).items()}
    for side in ("policy", "reference")
  )
  numbers = Numbers(lines, policy, reference, first_loss)
  recorded = {name for line in lines for name in line}.difference(ignored)
  compared = policy.keys() & reference.keys()
  diagnoses: dict[str, Diagnosis] = {}
  for diagnostic in DIAGNOSTICS:
    if recorded.issuperset(diagnostic.metrics) and compared >= set(diagnostic.measures):
      diagnosis = diagnostic.rule(numbers)
      if diagnosis is not None:
        # A pattern that the evaluation has is not reported again of the rollouts.
        diagnoses.setdefault(diagnosis.name, diagnosis)
  return sorted(diagnoses.values(), key=lambda diagnosis: _ORDER[diagnosis.level])


def ignored_metrics(experiment: Mapping[str, Any]) -> frozenset[str]:
  """Metrics that are not interpreted in an experiment.

  Win rates compare a policy with opponents that change too; with one completion of each
  prompt, rewards within a prompt cannot differ.

  Args:
    experiment: as in config.yaml.
  """
  data, ignored = experiment["data"], set()
  if data.get("feedback", {}).get("kind") == "win_rates":
    ignored.add("rollout/reward")
  if data.get("sampling", {}).get("completions") == 1:
    ignored.add("rollout/frac_informative_prompts")
  return frozenset(ignored)


def _column(lines: Lines, name: str) -> np.ndarray:
  """The finite values of a column."""
  values = np.array([line[name] for line in lines if name in line], np.float64)
  return values[np.isfinite(values)]


def _ends(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The first and the last tenth, at least one value each."""
  size = max(1, x.size // 10)
  return x[:size], x[-size:]


def _end_means(x: np.ndarray) -> tuple[float, float]:
  """Means of the first and of the last tenth."""
  first, last = _ends(x)
  return float(first.mean()), float(last.mean())


def _last(x: np.ndarray) -> float:
  return _end_means(x)[1]


def _change(x: np.ndarray) -> tuple[float, float]:
  """Last tenth minus first tenth, and the standard error from the noise of steps."""
  first, last = _ends(x)
  # Half the mean square of successive differences: the noise without the trend.
  noise = np.square(np.diff(x)).mean() / 2
  return float(last.mean() - first.mean()), math.sqrt(2 * noise / first.size)


def _first_loss(numbers: Numbers) -> Diagnosis | None:
  expected, first = numbers.first_loss, numbers.lines[0]
  if expected is None or first.get("step") != 1:
    return None
  if "loss" not in first or first.get("updates", 1) != 1:
    return None  # an iteration without a step, or a mean over several
  loss = first["loss"]
  seen = f"first loss {loss:.6f}; policy = reference demands {expected:.6f}"
  if abs(loss - expected) <= FIRST_LOSS_TOLERANCE * max(1.0, abs(expected)):
    return Diagnosis("First loss as it must be", GOOD, seen)
  return Diagnosis(
    "First loss not what policy = reference demands",
    WARNING,
    seen,
    "The policy did not start as the reference: another checkpoint, another template "
    "or truncation for the cached reference, dropout, or a mask that counts other "
    "tokens. Every implicit reward of this run carries that offset.",
    "Start the policy from the reference's own checkpoint and let the run compute the "
    "reference log-probs anew.",
  )


def _chosen_falling(numbers: Numbers) -> Diagnosis | None:
  chosen = _column(numbers.lines, "logp_chosen")
  rejected = _column(numbers.lines, "logp_rejected")
  if chosen.size < _LEAST or rejected.size != chosen.size:
    return None
  moved, noise = _change(chosen)
  seen = (
    f"log-prob of chosen {moved:+.2f} nats per completion (noise {noise:.2f}), of "
    f"rejected {_change(rejected)[0]:+.2f}"
  )
  if moved > -CHOSEN_FALL or moved > -NOISE * noise:
    return Diagnosis("Chosen log-prob holds", GOOD, seen)
  return Diagnosis(
    "Chosen log-prob falling",
    WARNING,
    seen,
    "The margin grows because rejected completions fall faster; chosen ones fall too, "
    "and the probability goes to completions nobody labelled. Some fall is common in "
    "DPO; a large one goes with drift and degeneration.",
    "Raise `beta` or lower the learning rate; add an NLL term on chosen completions "
    "(`mixture` with `sft`), take `orpo`, which has one, or DPOP, which penalises "
    "the fall itself.",
  )


def _saturated(numbers: Numbers) -> Diagnosis | None:
  accuracy = _column(numbers.lines, "reward_accuracy")
  if accuracy.size < _LEAST:
    return None
  last = _last(accuracy)
  held_out = _column(numbers.lines, "eval/reward_accuracy")
  seen = f"training accuracy {last:.3f} at the end"
  if held_out.size:
    seen += f", held-out {held_out[-1]:.3f}"
  overfit = held_out.size and last - held_out[-1] > GAP
  if last < SATURATED and not overfit:
    return Diagnosis("Accuracy not saturated", GOOD, seen)
  return Diagnosis(
    "Saturated accuracy" if last >= SATURATED else "Accuracy only on training pairs",
    WARNING,
    seen,
    "Nearly every training pair is ordered right, or far more of them than of unseen "
    "pairs: labels are noisy, so further steps fit it while the margin grows without "
    "bound.",
    "Fewer epochs; `dpo(label_smoothing=...)`, whose margin stays finite; `beta_dpo`, "
    "which sets aside outlying pairs; IPO, which aims at a fixed margin.",
  )


def _margin_not_moving(numbers: Numbers) -> Diagnosis | None:
  margin = _column(numbers.lines, "reward_margin")
  if margin.size < _LEAST:
    return None
  moved, noise = _change(margin)
  if abs(moved) > NOISE * noise:
    return None
  return Diagnosis(
    "Margin does not move",
    NOTE,
    f"reward margin {moved:+.4f} over the run, noise {noise:.4f}",
    "Over the whole run chosen and rejected completions were not separated: random "
    "labels, a learning rate near 0, or swapped columns.",
    "Look at the tokens under Data; raise the learning rate tenfold for a short run.",
  )


def _length_against_reference(numbers: Numbers) -> Diagnosis | None:
  return _length_drift(
    numbers.policy["length"],
    numbers.reference["length"],
    "reference",
    "Compare rewards at equal length; `simpo` divides by length; R-DPO penalises it; "
    "a larger `beta` keeps the reference's lengths.",
  )


def _length_over_the_run(numbers: Numbers) -> Diagnosis | None:
  length = _column(numbers.lines, "rollout/length")
  if length.size < _LEAST:
    return None
  first, last = _end_means(length)
  return _length_drift(
    last,
    first,
    "at the start",
    "Compare rewards at equal length; take length out of the reward; raise `beta`.",
  )


def _length_drift(
  length: float, before: float, before_name: str, remedy: str
) -> Diagnosis | None:
  if not before:
    return None
  seen = f"{length:.1f} tokens per completion, {before_name} {before:.1f}"
  ratio = length / before
  if 1 / LENGTH_DRIFT < ratio < LENGTH_DRIFT:
    return Diagnosis("Length holds", GOOD, seen)
  return Diagnosis(
    "Length drift",
    WARNING,
    seen,
    f"Completions are {'longer' if ratio > 1 else 'shorter'} by more than a fifth. "
    "Where reward or judge favours length, part of the gain is length.",
    remedy,
  )


def _repetition(numbers: Numbers) -> Diagnosis | None:
  policy, reference = numbers.policy["distinct_2"], numbers.reference["distinct_2"]
  if not reference:
    return None
  seen = f"distinct-2 {policy:.3f}, reference {reference:.3f}"
  if policy / reference > REPETITION:
    return Diagnosis("No repetition beyond the reference's", GOOD, seen)
  return Diagnosis(
    "Repetition",
    WARNING,
    seen,
    "The policy repeats the same word pairs: few phrases are rewarded, the usual form "
    "of over-optimisation.",
    "Stop earlier or raise `beta`; read the samples before believing the reward.",
  )


def _unended_against_reference(numbers: Numbers) -> Diagnosis | None:
  return _unended(
    numbers.policy["no_eos"],
    numbers.reference["no_eos"],
    "reference",
    "Check the truncation counts under Data; raise the completion limit.",
  )


def _unended_over_the_run(numbers: Numbers) -> Diagnosis | None:
  cut = _column(numbers.lines, "rollout/no_eos")
  if cut.size < _LEAST:
    return None
  first, last = _end_means(cut)
  return _unended(
    last,
    first,
    "at the start",
    "Set `Feedback.missing_eos`; raise `Sampling.max_completion_tokens`.",
  )


def _unended(
  share: float, before: float, before_name: str, remedy: str
) -> Diagnosis | None:
  if share - before <= UNENDED:
    return None
  return Diagnosis(
    "Completions do not end",
    WARNING,
    f"{share:.0%} are cut at the limit, {before_name} {before:.0%}",
    "Either the limit is too low for this policy's length, or the policy no longer "
    "writes the end token: truncated training completions carry none.",
    remedy,
  )


def _kl_runaway(numbers: Numbers) -> Diagnosis | None:
  kl = _column(numbers.lines, "rollout/kl")
  length = _column(numbers.lines, "rollout/length")
  if kl.size < _LEAST or not _last(length):
    return None
  each = _last(kl) / _last(length)
  seen = f"{_last(kl):.2f} nats per completion at the end, {each:.2f} per token"
  if each < KL_PER_TOKEN:
    return Diagnosis("KL within bounds", GOOD, seen)
  return Diagnosis(
    "KL runaway",
    WARNING,
    seen,
    "The samples are improbable under the reference: the reward is evaluated out of "
    "distribution, where a learned one is least reliable.",
    "Raise `beta`, or steer it (`kl_control.adaptive_kl`); lower the learning rate; "
    "stop where held-out true reward turns.",
  )


def _entropy_collapse(numbers: Numbers) -> Diagnosis | None:
  entropy = _column(numbers.lines, "entropy")
  if entropy.size < _LEAST:
    return None
  first, last = _end_means(entropy)
  seen = f"{last:.2f} nats per token, {first:.2f} at the start"
  if last > ENTROPY * first:
    return Diagnosis("Entropy holds", GOOD, seen)
  return Diagnosis(
    "Entropy collapse",
    WARNING,
    seen,
    "The samples of a prompt are nearly the same; without differences between them "
    "there is nothing to learn.",
    "Raise `beta`; a higher upper clip (`dapo`); stop earlier; look at the diversity "
    "of the samples.",
  )


def _abstaining_judge(numbers: Numbers) -> Diagnosis | None:
  share = _column(numbers.lines, "rollout/abstained")
  if not share.size or share.mean() <= ABSTAINED:
    return None
  return Diagnosis(
    "Judge abstains",
    WARNING,
    f"no verdict on {share.mean():.0%} of the completions",
    "Completions without a verdict are left out; if they are of one kind, the policy "
    "never learns about that kind.",
    "Read them in `rollouts/` (reward null); fix the judge's prompt or its format.",
  )


def _clipped_updates(numbers: Numbers) -> Diagnosis | None:
  share = _column(numbers.lines, "clip_fraction")
  if not share.size or _last(share) <= CLIPPED:
    return None
  return Diagnosis(
    "Updates beyond the clip",
    WARNING,
    f"the clip decides on {_last(share):.0%} of the tokens at the end",
    "The policy is far from the one that sampled; most of the gradient is cut off.",
    "Fewer passes over an iteration, a lower learning rate, less staleness.",
  )


def _explained_variance(numbers: Numbers) -> Diagnosis | None:
  explained = _column(numbers.lines, "explained_variance")
  if explained.size < _LEAST:
    return None
  seen = f"the value explains {_last(explained):.0%} of the returns' variance"
  if _last(explained) > 0:
    return Diagnosis("Value informs", GOOD, f"{seen} at the end")
  return Diagnosis(
    "Value explains nothing",
    NOTE,
    f"{seen} at the end",
    "Advantages are as noisy as without it, or noisier.",
    "A larger `value_weight`; the value started from the reward model; or a method "
    "without one (`rloo`, `grpo`).",
  )


def _reward(numbers: Numbers) -> Diagnosis | None:
  reward = _column(numbers.lines, "rollout/reward")
  if reward.size < _LEAST:
    return None
  gain, noise = _change(reward)
  seen = f"reward of the samples {gain:+.3f} over the run, noise {noise:.3f}"
  if gain > NOISE * noise:
    return Diagnosis("Reward rises", GOOD, seen)
  if gain < -NOISE * noise:
    return Diagnosis(
      "Reward falls",
      WARNING,
      seen,
      "Training makes the samples worse by the feedback that it learns from.",
      "Lower the learning rate; look for a wrong sign or swapped columns.",
    )
  return Diagnosis(
    "Reward does not move",
    NOTE,
    seen,
    "No gain that exceeds the noise between iterations: too few of them, a learning "
    "rate near 0, a large `beta`, or a reward already at its maximum.",
    "Compare held-out reward; raise the learning rate for a short run.",
  )


def _kl_without_reward(numbers: Numbers) -> Diagnosis | None:
  lines = [line for line in numbers.lines if "rollout/reward" in line]
  kl, reward = _column(lines, "rollout/kl"), _column(lines, "rollout/reward")
  half = kl.size // 2
  if half < _LEAST or reward.size != kl.size:
    return None
  (more, noise), (gain, noise_gain) = map(_change, (kl[half:], reward[half:]))
  if more < NOISE * noise or gain > NOISE * noise_gain:
    return None
  return Diagnosis(
    "KL grows, reward does not",
    NOTE,
    f"in the second half KL {more:+.2f} nats per completion (noise {noise:.2f}), "
    f"reward {gain:+.3f} (noise {noise_gain:.3f})",
    "The policy moves away from the reference without a higher reward by this "
    "feedback; with a misspecified reward the true reward often falls here.",
    "Stop earlier, or decay the learning rate.",
  )


def _informative_groups(numbers: Numbers) -> Diagnosis | None:
  share = _column(numbers.lines, "rollout/frac_informative_prompts")
  if not share.size:
    return None
  idle = sum("loss" not in line for line in numbers.lines)
  seen = f"rewards differ on {_last(share):.0%} of the prompts at the end"
  seen += f"; {idle} iterations had nothing to learn from" if idle else ""
  if _last(share) >= INFORMATIVE and not idle:
    return Diagnosis("Groups inform", GOOD, seen)
  return Diagnosis(
    "Few informative groups",
    WARNING,
    seen,
    "Where all completions of a prompt have the same reward, baselines of the group "
    "leave nothing to learn.",
    "More completions or a higher temperature; prompts that are neither solved nor "
    "hopeless; a finer reward.",
  )


DIAGNOSTICS = (
  Diagnostic(_first_loss, metrics={"loss"}),
  Diagnostic(_chosen_falling, metrics={"logp_chosen", "logp_rejected"}),
  Diagnostic(_saturated, metrics={"reward_accuracy"}),
  Diagnostic(_margin_not_moving, metrics={"reward_margin"}),
  Diagnostic(_length_against_reference, measures={"length"}),
  Diagnostic(_repetition, measures={"distinct_2"}),
  Diagnostic(_unended_against_reference, measures={"no_eos"}),
  Diagnostic(_kl_runaway, metrics={"rollout/kl", "rollout/length"}),
  Diagnostic(_length_over_the_run, metrics={"rollout/length"}),
  Diagnostic(_unended_over_the_run, metrics={"rollout/no_eos"}),
  # On the policy's own samples only: on records it does not measure diversity.
  Diagnostic(_entropy_collapse, metrics={"entropy", "rollout/length"}),
  Diagnostic(_abstaining_judge, metrics={"rollout/abstained"}),
  Diagnostic(_clipped_updates, metrics={"clip_fraction"}),
  Diagnostic(_explained_variance, metrics={"explained_variance"}),
  Diagnostic(_reward, metrics={"rollout/reward"}),
  Diagnostic(_kl_without_reward, metrics={"rollout/kl", "rollout/reward"}),
  Diagnostic(_informative_groups, metrics={"rollout/frac_informative_prompts"}),
)
