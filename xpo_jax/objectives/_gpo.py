"""GPO: DPO with any link function in place of the logistic loss."""

from xpo_jax.objectives import _hparams, _rewards
from xpo_jax.ops import links, token_stats
from xpo_jax.types import Aux, Layout, Loss, Objective, Scored


def gpo(
  beta: float = 0.1, link: links.Link | str = links.TRUNCATED_QUADRATIC
) -> Objective:
  """GPO: a family of margin losses that includes DPO, IPO and SLiC's hinge.

  L = f(m),   m = beta (log-ratio_w - log-ratio_l)
  with f convex and f'(0) < 0: logistic is DPO; hinge max(0, 1 - m); squared (m - 1)^2,
  which is beta^2 times IPO at beta / 2; exponential exp(-m); truncated quadratic
  max(0, 1 - m)^2; savage sigma(-m)^2, which is bounded and not convex.

  Paper: Tang et al. 2024, arXiv:2402.05749. Survey 3.3.8.
  Departs from the paper: nothing known; no public code was found. The exponential link
    is continued by its tangent where exp would overflow (see `links.exponential`).
  Reduction: log-ratio summed over tokens; loss averaged over pairs.

  Args:
    beta: tie to ref, per nat; > 0. Paper: swept, per link; the regularisation of the
      same number differs by link, as f''(0) / |f'(0)|: 0 hinge, 1/2 logistic and
      savage, 1 others.
    link: f; a `links.Link` or a name of `links.LINKS`. Paper: all six; the default is
      one of those it adds.

  Returns:
    Objective; layout PAIR; stats LOGP, REF_LOGP.
    Terms: `gpo`.
    Metrics: reward_* (nats), reward_accuracy (fraction), logp_chosen, logp_rejected
    (nats per completion), as `dpo`.

  Raises:
    ValueError: beta out of range, an unknown link (when built).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> from xpo_jax.ops import links
    >>> from xpo_jax.testing import toy
    >>> first_step = toy.scored(K=2, policy_equals_ref=True)
    >>> o = objectives.gpo(link=links.SAVAGE)
    >>> float(scored.evaluate(o, first_step).loss)  # sigma(0)^2
    0.25
  """
  _hparams.check("gpo", "beta", beta, usual=0.1, gt=0)
  link = _hparams.choice("gpo", "link", link, links.LINKS)

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    reward_BK = _rewards.rewards(scored, beta)
    loss_B = link.fn(reward_BK[:, 0] - reward_BK[:, 1])
    metrics = _rewards.reward_metrics(scored, reward_BK) | _rewards.logp_metrics(scored)
    return Loss({"gpo": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="gpo",
    hparams={"beta": beta, "link": link},
    layout=Layout.PAIR,
    stats=frozenset({token_stats.LOGP, token_stats.REF_LOGP}),
    loss=loss,
  )
