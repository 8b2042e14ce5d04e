"""APO-zero on single completions labelled desirable or undesirable."""

import jax
import jax.numpy as jnp

from xpo_jax.objectives import _hparams, _rewards
from xpo_jax.ops import token_stats
from xpo_jax.types import Aux, Layout, Loss, Objective, Scored


def apo_zero_unpaired(beta: float = 0.1) -> Objective:
  """APO-zero, unpaired: raises desirable completions, lowers undesirable ones.

  L = 1 - sigma(beta u) for desirable completions, sigma(beta u) for undesirable ones,
  u = log-ratio of the completion: `kto` with its reference point fixed at 0.

  Paper: D'Oosterlinck et al. 2024, arXiv:2408.06266, Eq. 7; its unpaired form is that
    of TRL's KTO trainer.
  Departs from the paper: the paper's loss is on pairs (`apo_zero`, the sum of the two
    cases above).
  Reduction: log-ratio summed over tokens; loss averaged over all rows, desirable and
    undesirable pooled.

  Args:
    beta: tie to ref, per nat; > 0. Paper: 0.1.

  Returns:
    Objective; layout RATED; stats LOGP, REF_LOGP; columns desirable_BK.
    Terms: `apo_zero_unpaired`.
    Metrics: reward_chosen, logp_chosen over desirable rows, reward_rejected,
    logp_rejected over undesirable ones (nats), reward_accuracy (fraction of rows whose
    reward has the correct sign).

  Raises:
    ValueError: beta <= 0 (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> from xpo_jax.testing import toy
    >>> first_step = toy.scored(K=1, policy_equals_ref=True)
    >>> float(scored.evaluate(objectives.apo_zero_unpaired(), first_step).loss)
    0.5
  """
  _hparams.check("apo_zero_unpaired", "beta", beta, usual=0.1, gt=0)

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    desirable_B = scored.desirable_BK[:, 0] > 0
    reward_B = _rewards.rewards(scored, beta)[:, 0]
    gain_B = jnp.where(desirable_B, reward_B, -reward_B)
    loss_B = jax.nn.sigmoid(-gain_B)
    metrics = _rewards.unpaired_metrics(scored, reward_B, desirable_B)
    metrics |= {"reward_accuracy": scored.mean_B((1 + jnp.sign(gain_B)) / 2)}
    return Loss({"apo_zero_unpaired": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="apo_zero_unpaired",
    hparams={"beta": beta},
    layout=Layout.RATED,
    stats=frozenset({token_stats.LOGP, token_stats.REF_LOGP}),
    loss=loss,
    columns=frozenset({"desirable_BK"}),
  )
