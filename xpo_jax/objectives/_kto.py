"""KTO: a prospect-theoretic loss on desirable and undesirable completions."""

import jax
import jax.numpy as jnp

from xpo_jax.objectives import _hparams, _rewards
from xpo_jax.ops import token_stats
from xpo_jax.types import Array, Aux, Layout, Loss, Mean, Objective, Scored, State


def kto(
  beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> Objective:
  """KTO: a prospect-theoretic value of each completion against a reference point.

  L = lambda_D (1 - sigma(beta (rho - z0)))  for a desirable completion,
      lambda_U (1 - sigma(beta (z0 - rho)))  for an undesirable one,
  rho = log-ratio of the completion, z0 = max(0, mean over the batch of the log-ratio of
  a completion of another prompt). The paper's lambda_y - v(x, y) is the same.

  Paper: Ethayarajh et al. 2024, arXiv:2402.01306, Eq. 8 (7 in another version); the
    ratio of the weights is Eq. 9 (8). Survey 3.6.
  Departs from the paper: the mismatched pairs of z0 are part of the data (a fixed
    derangement), not made by shifting the batch. The authors' code excludes completions
    whose log-ratio is exactly 0 from the mean of z0: not copied, since a denominator
    must not depend on the policy. z0 is computed over the whole batch, independent of
    microbatches.
  Reduction: log-ratio summed over tokens; loss averaged over all rows, desirable and
    undesirable pooled. No gradient through z0.

  Args:
    beta: tie to ref, per nat; > 0. Paper: 0.1.
    desirable_weight: lambda_D; >= 0. Paper: 1, raised where thumbs-up are rare, so that
      lambda_D n_D / (lambda_U n_U) lies in [1, 3/2] (4/3 in its first version).
    undesirable_weight: lambda_U; >= 0. Paper: 1.

  Returns:
    Objective; layout RATED_MISMATCHED; stats LOGP, REF_LOGP; columns desirable_BK.
    Terms: `kto`.
    Metrics: z0 (nats), reward_chosen, logp_chosen over desirable rows, reward_rejected,
    logp_rejected over undesirable ones (nats), reward_accuracy (fraction of rows on the
    correct side of z0).

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> from xpo_jax.testing import toy
    >>> first_step = toy.scored(K=2, policy_equals_ref=True)
    >>> float(scored.evaluate(objectives.kto(), first_step).loss)  # 1 - sigma(0)
    0.5
  """
  _hparams.check("kto", "beta", beta, usual=0.1, gt=0)
  _hparams.check("kto", "desirable_weight", desirable_weight, usual=1, ge=0)
  _hparams.check("kto", "undesirable_weight", undesirable_weight, usual=1, ge=0)

  def prepare(scored: Scored, state: State, key: Array) -> tuple[Aux, State]:
    del key
    weight_B = scored.weight_B * scored.present_BK[:, 1]
    other_B = _rewards.log_ratio(scored)[:, 1]
    z0 = jnp.maximum(Mean((other_B * weight_B).sum(), weight_B.sum()).value, 0)
    return Aux(shared=z0), state

  def loss(scored: Scored, aux: Aux) -> Loss:
    desirable_B = scored.desirable_BK[:, 0] > 0
    log_ratio_B = _rewards.log_ratio(scored)[:, 0]
    gain_B = jnp.where(desirable_B, 1, -1) * beta * (log_ratio_B - aux.shared)
    weight_B = jnp.where(desirable_B, desirable_weight, undesirable_weight)
    loss_B = weight_B * jax.nn.sigmoid(-gain_B)  # 1 - sigma(gain), no cancellation
    metrics = {
      "z0": scored.mean_B(jnp.broadcast_to(aux.shared, loss_B.shape)),
      "reward_accuracy": scored.mean_B((1 + jnp.sign(gain_B)) / 2),
    }
    metrics |= _rewards.unpaired_metrics(scored, beta * log_ratio_B, desirable_B)
    return Loss({"kto": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="kto",
    hparams={
      "beta": beta,
      "desirable_weight": desirable_weight,
      "undesirable_weight": undesirable_weight,
    },
    layout=Layout.RATED_MISMATCHED,
    stats=frozenset({token_stats.LOGP, token_stats.REF_LOGP}),
    loss=loss,
    columns=frozenset({"desirable_BK"}),
    prepare=prepare,
  )
