"""RSO: margin losses on pairs from statistical rejection sampling."""

from xpo_jax.objectives import _gpo, _hparams
from xpo_jax.ops import links
from xpo_jax.types import Aux, Loss, Objective, Scored


def rso(beta: float = 0.05, link: links.Link | str = links.LOGISTIC) -> Objective:
  """RSO: logistic or hinge loss on pairs from rejection sampling.

  L = f(gamma (log-ratio_w - log-ratio_l))
  with f the logistic link (sigmoid-norm) or the hinge (hinge-norm). RSO is defined
  by its data: completions of the SFT policy, accepted with probability
  exp((r - r_max) / beta) by `selection.rejection_sample`, ranked by the reward.

  Paper: Liu et al. 2023, arXiv:2309.06657, Eq. 8 to 10. Survey 3.3.2.
  Departs from the paper: nothing. `beta` here is the paper's gamma, which scales the
    log-ratio; its beta belongs to the sampler. No authors' code was found. TRL calls
    hinge-norm "hinge", with 0.1. Without a reference the hinge is SLiC's term: `slic`.
  Reduction: log-ratio summed over tokens; loss averaged over pairs.

  Args:
    beta: the paper's gamma, per nat; > 0. Paper: 0.05.
    link: f; a `links.Link` or a name of `links.LINKS`. Paper: logistic and hinge.

  Returns:
    Objective; layout PAIR; stats LOGP, REF_LOGP.
    Terms: `rso`.
    Metrics: reward_* (nats), reward_accuracy (fraction), logp_chosen, logp_rejected
    (nats per completion), as `dpo`.

  Raises:
    ValueError: beta out of range, an unknown link (when built).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> from xpo_jax.ops import links
    >>> from xpo_jax.testing import toy
    >>> first_step = toy.scored(K=2, policy_equals_ref=True)
    >>> o = objectives.rso(link=links.HINGE)
    >>> float(scored.evaluate(o, first_step).loss)  # max(0, 1 - 0)
    1.0
  """
  _hparams.check("rso", "beta", beta, usual=0.05, gt=0)
  link = _hparams.choice("rso", "link", link, links.LINKS)
  linked = _gpo.gpo(beta, link)

  def loss(scored: Scored, aux: Aux) -> Loss:
    out = linked.loss(scored, aux)
    return out.replace(terms={"rso": out.terms["gpo"]})

  return linked._replace(name="rso", loss=loss)
