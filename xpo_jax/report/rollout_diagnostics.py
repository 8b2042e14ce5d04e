"""Known patterns in the numbers of an online run; see `verdicts`."""

from collections.abc import Mapping, Sequence

import numpy as np

from xpo_jax.report import diagnostics
from xpo_jax.report.diagnostics import GOOD, NOTE, WARNING, Verdict

KL_PER_TOKEN = 0.5  # nats: its tokens are e^0.5 times as likely as by the reference
INFORMATIVE = 0.1  # share of prompts
ENTROPY = 0.5  # of the entropy at the start
ABSTAINED = 0.1  # share of completions
CLIPPED = 0.3  # share of tokens
_LEAST = 10  # iterations, before anything is said of a change


def judge(
  metrics: Sequence[Mapping[str, float]], completions: int = 2, by_score: bool = True
) -> list[Verdict]:
  """Every pattern that an online run's numbers allow to be looked for.

  Args:
    metrics: lines of metrics.jsonl, in order.
    completions: of a prompt; one alone has nothing to differ from.
    by_score: whether rewards are scores. Win rates say how a policy does against
      others that move too: nothing is read into their change.
  """
  looked_for = [_kl, _length, _unended, _entropy, _abstained, _clipped, _value]
  if by_score:
    looked_for += [_reward, _kl_without_reward]
  if completions > 1:
    looked_for += [_informative]
  return [found for look in looked_for if (found := look(metrics)) is not None]


def _last(x: np.ndarray) -> float:
  return float(diagnostics.ends(x)[1].mean())


def _kl(metrics) -> Verdict | None:
  kl = diagnostics.column(metrics, "rollout/kl")
  length = diagnostics.column(metrics, "rollout/length")
  if kl.size < _LEAST or not _last(length):
    return None
  each = _last(kl) / _last(length)
  seen = f"{_last(kl):.2f} nats per completion at the end, {each:.2f} per token"
  if each < KL_PER_TOKEN:
    return Verdict("KL within bounds", GOOD, seen)
  return Verdict(
    "KL runaway",
    WARNING,
    seen,
    "The samples are far from anything the reference writes: the reward is asked about "
    "texts it was not made for, and a learned one is wrong there first.",
    "Raise `beta`, or steer it (`kl_control.adaptive_kl`); lower the learning rate; "
    "stop where held-out true reward turns.",
  )


def _kl_without_reward(metrics) -> Verdict | None:
  metrics = [line for line in metrics if "rollout/reward" in line]
  kl = diagnostics.column(metrics, "rollout/kl")
  reward = diagnostics.column(metrics, "rollout/reward")
  half = kl.size // 2
  if half < _LEAST or reward.size != kl.size:
    return None
  (more, noise), (gain, noise_gain) = map(
    diagnostics.change, (kl[half:], reward[half:])
  )
  if more < diagnostics.NOISE * noise or gain > diagnostics.NOISE * noise_gain:
    return None
  return Verdict(
    "KL grows, reward does not",
    NOTE,
    f"in the second half KL {more:+.2f} nats per completion (noise {noise:.2f}), "
    f"reward {gain:+.3f} (noise {noise_gain:.3f})",
    "The policy moves away without earning more by this feedback; a misspecified "
    "reward is often past its best here.",
    "Stop earlier, or decay the learning rate.",
  )


def _reward(metrics) -> Verdict | None:
  reward = diagnostics.column(metrics, "rollout/reward")
  if reward.size < _LEAST:
    return None
  gain, noise = diagnostics.change(reward)
  seen = f"reward of the samples {gain:+.3f} over the run, noise {noise:.3f}"
  if gain > diagnostics.NOISE * noise:
    return Verdict("Reward rises", GOOD, seen)
  if gain < -diagnostics.NOISE * noise:
    return Verdict(
      "Reward falls",
      WARNING,
      seen,
      "Training makes the samples worse by the feedback that it learns from.",
      "Lower the learning rate; look for a sign or a column mixed up.",
    )
  return Verdict(
    "Reward does not move",
    NOTE,
    seen,
    "No gain that exceeds the noise between iterations: too few of them, a learning "
    "rate near 0, a strong tie to the reference, or a reward already at its most.",
    "Compare held-out reward; raise the learning rate for a short run.",
  )


def _informative(metrics) -> Verdict | None:
  share = diagnostics.column(metrics, "rollout/frac_informative_prompts")
  if not share.size:
    return None
  idle = sum("loss" not in line for line in metrics)
  seen = f"rewards differ on {_last(share):.0%} of the prompts at the end"
  seen += f"; {idle} iterations had nothing to learn from" if idle else ""
  if _last(share) >= INFORMATIVE and not idle:
    return Verdict("Groups inform", GOOD, seen)
  return Verdict(
    "Few informative groups",
    WARNING,
    seen,
    "Where all completions of a prompt have the same reward, baselines of the group "
    "leave nothing to learn.",
    "More completions or a higher temperature; prompts that are neither solved nor "
    "hopeless; a finer reward.",
  )


def _length(metrics) -> Verdict | None:
  length = diagnostics.column(metrics, "rollout/length")
  if length.size < _LEAST:
    return None
  first, last = (float(x.mean()) for x in diagnostics.ends(length))
  found = diagnostics.length_drift(last, first, "at the start")
  remedy = (
    "Compare rewards at equal length; take length out of the reward; raise `beta`."
  )
  return _with(found, remedy)


def _unended(metrics) -> Verdict | None:
  cut = diagnostics.column(metrics, "rollout/no_eos")
  if cut.size < _LEAST:
    return None
  first, last = (float(x.mean()) for x in diagnostics.ends(cut))
  found = diagnostics.unended(last, first, "at the start")
  return _with(
    found, "Set `Feedback.missing_eos`; raise `Sampling.max_completion_tokens`."
  )


def _with(found: Verdict | None, remedy: str) -> Verdict | None:
  """What helps online, where something is wrong."""
  wrong = found is not None and found.level != GOOD
  return found._replace(remedy=remedy) if wrong else found


def _entropy(metrics) -> Verdict | None:
  entropy = diagnostics.column(metrics, "entropy")
  if entropy.size < _LEAST:
    return None
  first, last = (float(x.mean()) for x in diagnostics.ends(entropy))
  seen = f"{last:.2f} nats per token, {first:.2f} at the start"
  if last > ENTROPY * first:
    return Verdict("Entropy holds", GOOD, seen)
  return Verdict(
    "Entropy collapse",
    WARNING,
    seen,
    "The policy writes nearly the same thing every time; without differences between "
    "samples it stops learning.",
    "Raise `beta`; a higher upper clip (`dapo`); stop earlier; look at the diversity "
    "of the samples.",
  )


def _abstained(metrics) -> Verdict | None:
  share = diagnostics.column(metrics, "rollout/abstained")
  if not share.size or share.mean() <= ABSTAINED:
    return None
  return Verdict(
    "Judge abstains",
    WARNING,
    f"no verdict on {share.mean():.0%} of the completions",
    "Completions without a verdict are left out; if they are of one kind, the policy "
    "never learns about that kind.",
    "Read them in `rollouts/` (reward null); mend the judge's prompt or its format.",
  )


def _clipped(metrics) -> Verdict | None:
  share = diagnostics.column(metrics, "clip_fraction")
  if not share.size or _last(share) <= CLIPPED:
    return None
  return Verdict(
    "Updates beyond the clip",
    WARNING,
    f"the clip decides on {_last(share):.0%} of the tokens at the end",
    "The policy is far from the one that sampled; most of the gradient is cut off.",
    "Fewer passes over an iteration, a lower learning rate, less staleness.",
  )


def _value(metrics) -> Verdict | None:
  explained = diagnostics.column(metrics, "explained_variance")
  if explained.size < _LEAST:
    return None
  seen = f"the value explains {_last(explained):.0%} of the returns' variance"
  if _last(explained) > 0:
    return Verdict("Value informs", GOOD, f"{seen} at the end")
  return Verdict(
    "Value explains nothing",
    NOTE,
    f"{seen} at the end",
    "Advantages are as noisy as without it, or noisier.",
    "A larger `value_weight`; the value started from the reward model; or a method "
    "without one (`rloo`, `grpo`).",
  )
