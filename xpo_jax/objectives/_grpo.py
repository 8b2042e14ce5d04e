"""GRPO, and the parts that its variants share: advantages, surrogate, metrics."""

from collections.abc import Callable

import jax.numpy as jnp

from xpo_jax.objectives import _hparams, _rewards
from xpo_jax.ops import divergences, groups, masked, policy_loss
from xpo_jax.types import Array, Aux, Layout, Loss, Mean, Objective, Scored, State

COLUMNS = frozenset({"old_logp_BKT", "reward_BK"})
# `scale_rewards` by name, for configurations.
SCALES = {over.value: over for over in groups.Over}

Prepare = Callable[[Scored, State, Array], tuple[Aux, State]]


def check_hparams(
  name: str,
  clip_low: float | Array,
  clip_high: float | Array,
  beta: float | Array | None,
  dual_clip: float | Array | None,
  usual: tuple[float, float, float | None] = (0.2, 0.2, None),
) -> None:
  """Checks hyperparameters of GRPO and its variants; `usual` holds clips and beta."""
  _hparams.check(name, "clip_low", clip_low, usual=usual[0], ge=0, le=1)
  _hparams.check(name, "clip_high", clip_high, usual=usual[1], ge=0)
  _hparams.check_optional_beta(name, beta, usual=usual[2])
  if dual_clip is not None:
    _hparams.check(name, "dual_clip", dual_clip, usual=3, gt=1)


def standardised(name: str, scale_rewards: str) -> Prepare:
  """Makes `prepare`: the advantages (r - group mean) / std, `[B, K]`.

  Args:
    name: the objective's, for the message.
    scale_rewards: population of the standard deviation, the value of a `groups.Over`.

  Raises:
    ValueError: an unknown population.
  """
  over = _hparams.choice(name, "scale_rewards", scale_rewards, SCALES)

  def prepare(scored: Scored, state: State, key: Array) -> tuple[Aux, State]:
    del key
    counts_BK = scored.present_BK * (scored.weight_B[:, None] > 0)
    return Aux(groups.standardise(scored.reward_BK, counts_BK, over=over)), state

  return prepare


def surrogate(
  scored: Scored,
  advantage_BK: Array,
  clip_low: float | Array,
  clip_high: float | Array,
  dual_clip: float | Array | None,
) -> Array:
  """PPO's clipped loss per token, `[B, K, T]`; all tokens share one advantage."""
  advantage_BKT = jnp.broadcast_to(advantage_BK[..., None], scored.logp_BKT.shape)
  loss_BKT = policy_loss.clipped_surrogate(
    scored.logp_BKT, scored.old_logp_BKT, advantage_BKT, clip_low, clip_high
  )
  if dual_clip is None:
    return loss_BKT
  return policy_loss.dual_clipped(loss_BKT, advantage_BKT, dual_clip)


def kl_penalty(scored: Scored, beta: float | Array | None) -> Array:
  """KL penalty beta k3 per token, `[B, K, T]`, with gradient; 0 if beta is None."""
  if beta is None:
    return jnp.zeros_like(scored.logp_BKT)
  return beta * divergences.K3.fn(scored.logp_BKT - scored.ref_logp_BKT)


def mean_of_prompt(scored: Scored, x_BKT: Array) -> Array:
  """Mean over each completion's tokens, then a prompt's completions, `[B]`: GRPO's."""
  return groups.mean(masked.mean_T(x_BKT, scored.mask_BKT), scored.present_BK)


def token_mean_of_prompt(scored: Scored, x_BKT: Array) -> Array:
  """Mean over all tokens of a prompt's completions, `[B]`: DAPO's reduction."""
  x_B = groups.total(masked.sum_T(x_BKT, scored.mask_BKT), scored.present_BK)
  tokens_B = groups.total(masked.length(scored.mask_BKT), scored.present_BK)
  return masked.per_token(x_B, tokens_B)


def reward_metrics(scored: Scored) -> dict[str, Mean]:
  """Mean reward of the rollouts, and fraction of prompts whose rewards differ."""
  reward_BK, present_BK = scored.reward_BK, scored.present_BK
  return {
    "reward": scored.mean_BK(groups.zero_absent(reward_BK, present_BK)),
    "frac_informative_prompts": scored.mean_B(groups.differ(reward_BK, present_BK)),
  }


def clip_metrics(
  scored: Scored,
  advantage_BK: Array,
  clip_low: float | Array,
  clip_high: float | Array,
) -> dict[str, Mean]:
  """The reward metrics, and the fraction of clipped tokens."""
  advantage_BKT = jnp.broadcast_to(advantage_BK[..., None], scored.logp_BKT.shape)
  clipped_BKT = policy_loss.clipped_share(
    scored.logp_BKT, scored.old_logp_BKT, advantage_BKT, clip_low, clip_high
  )
  clipped = policy_loss.token_mean(scored, clipped_BKT)
  return reward_metrics(scored) | {"clip_fraction": clipped}


def grpo(
  clip_low: float = 0.2,
  clip_high: float = 0.2,
  beta: float | None = 0.04,
  dual_clip: float | None = None,
  scale_rewards: str = "group",
) -> Objective:
  """GRPO: PPO without a value function; the group's mean reward is the baseline.

  L = mean_i 1/|y_i| sum_t [max(-A_i rho_t, -A_i clip(rho_t, 1 - e, 1 + e)) + beta k3_t]
  with A_i = (r_i - mean r) / std r over the completions of a prompt, rho_t =
  pi(y_t) / pi_old(y_t) and k3 = ref/pi - 1 - log(ref/pi), through which gradient flows.

  Paper: Shao et al. 2024 (DeepSeekMath), arXiv:2402.03300, Eq. 3; k3 is Eq. 4.
  Departs from the paper: the paper does not specify the standard deviation: here the
    unbiased one plus 1e-4, as in TRL (verl adds 1e-6), and equal rewards give exactly
    0. On samples of the policy the gradient of k3 is that of KL(ref || policy), not of
    the reverse KL: kept as part of the method. `dual_clip` is Ye et al. 2019's (TRL's
    `delta`). An empty completion counts as a member of the group, as in TRL; verl and
    OpenRLHF exclude it.
  Reduction: mean over a completion's tokens, mean over a prompt's completions, mean
    over prompts. Each completion weighs the same, so each token of a short one weighs
    more: the length bias that `dr_grpo` removes.

  Args:
    clip_low: clip range of the ratio below 1; 0 <= e <= 1. Paper: not stated; 0.2.
    clip_high: clip range of the ratio above 1; >= 0. Paper: not stated; 0.2.
    beta: tie to ref, per nat; > 0, or None for no tie and no reference. Paper: 0.04.
    dual_clip: bound on the ratio where A < 0; > 1, or None. Paper: None.
    scale_rewards: population of the standard deviation: "group"; "batch", all
      completions of the update (Lite PPO, arXiv:2508.08221); "nothing", no division.
      Paper: group.

  Returns:
    Objective; layout SAMPLED; stats LOGP, and REF_LOGP unless beta is None; columns
    reward_BK, old_logp_BKT; reads tokens.
    Terms: `grpo`.
    Metrics: reward, frac_informative_prompts (fraction of prompts whose rewards
    differ), clip_fraction (of tokens).

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> from xpo_jax.testing import toy
    >>> s = toy.scored(K=3, policy_equals_ref=True)
    >>> s = s.replace(old_logp_BKT=s.logp_BKT)  # ratio 1, no KL: advantages sum to 0
    >>> abs(round(float(scored.evaluate(objectives.grpo(), s).loss), 4))
    0.0
  """
  usual = (0.2, 0.2, 0.04)
  check_hparams("grpo", clip_low, clip_high, beta, dual_clip, usual=usual)
  prepare = standardised("grpo", scale_rewards)

  def loss(scored: Scored, aux: Aux) -> Loss:
    token_BKT = surrogate(scored, aux.rows, clip_low, clip_high, dual_clip)
    token_BKT = token_BKT + kl_penalty(scored, beta)
    loss_B = mean_of_prompt(scored, token_BKT)
    metrics = clip_metrics(scored, aux.rows, clip_low, clip_high)
    return Loss({"grpo": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="grpo",
    hparams={
      "clip_low": clip_low,
      "clip_high": clip_high,
      "beta": beta,
      "dual_clip": dual_clip,
      "scale_rewards": scale_rewards,
    },
    layout=Layout.SAMPLED,
    stats=_rewards.stats(beta),
    loss=loss,
    columns=COLUMNS,
    reads_tokens=True,
    prepare=prepare,
  )
