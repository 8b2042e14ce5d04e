"""SPIN: demonstrations against the samples of the policy of the iteration before."""

from xpo_jax.objectives import _gpo, _hparams
from xpo_jax.ops import links
from xpo_jax.types import Aux, Loss, Objective, Scored

# Convex and decreasing, as the paper's theorems assume.
LINKS = {
  link.name: link
  for link in (
    links.LOGISTIC,
    links.HINGE,
    links.EXPONENTIAL,
    links.TRUNCATED_QUADRATIC,
  )
}


def spin(beta: float = 0.1, link: links.Link | str = "logistic") -> Objective:
  """SPIN: the policy tells demonstrations from samples of its predecessor.

  L = f(beta [log pi(y|x) / pi_t(y|x) - log pi(y'|x) / pi_t(y'|x)])
  with y a demonstration (chosen), y' a sample of pi_t (rejected), the policy of the
  iteration before, which is the reference too; f convex and decreasing. With the
  logistic link it is `dpo` on self-play data. Where pi_t is the distribution of the
  demonstrations, pi_t is a minimum: the iteration ends there.

  Paper: Chen et al. 2024, arXiv:2401.01335v3, Eq. 4.7.
  Departs from the paper: nothing in the loss; `beta` is its lambda. Its code has
    logistic and hinge, beta 0.1 and in the last of four iterations 5. The iterations
    belong to a recipe: each starts from, samples and is tied to the one before, and the
    paper adds the samples of the iteration before to those of the new one.
  Reduction: log-ratio summed over tokens; loss averaged over pairs.

  Args:
    beta: tie to the policy before, per nat; > 0. Paper's code: 0.1.
    link: f; a `links.Link` or a name: logistic, hinge, exponential,
      truncated_quadratic. Paper: logistic.

  Returns:
    Objective; layout PAIR; stats LOGP, REF_LOGP.
    Terms: `spin`.
    Metrics: reward_* (nats), reward_accuracy (fraction), logp_chosen, logp_rejected
    (nats per completion), as `dpo`.

  Raises:
    ValueError: beta out of range, an unknown link, or one that is not convex and
      decreasing (when built).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> from xpo_jax.testing import toy
    >>> first_step = toy.scored(K=2, policy_equals_ref=True)
    >>> round(float(scored.evaluate(objectives.spin(), first_step).loss), 4)  # log 2
    0.6931
  """
  _hparams.check("spin", "beta", beta, usual=0.1, gt=0)
  link = _hparams.choice("spin", "link", link, LINKS)
  if link not in LINKS.values():
    raise ValueError(
      f"spin: link={link} is not convex and decreasing, which SPIN's theorems assume; "
      f"take one of {', '.join(LINKS)}"
    )
  linked = _gpo.gpo(beta, link)

  def loss(scored: Scored, aux: Aux) -> Loss:
    out = linked.loss(scored, aux)
    return out.replace(terms={"spin": out.terms["gpo"]})

  return linked._replace(
    name="spin", hparams={"beta": beta, "link": link.name}, loss=loss
  )
