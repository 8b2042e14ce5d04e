"""SimPO: a reference-free, length-normalised reward with a target margin."""

from xpo_jax.objectives import _hparams, _rewards
from xpo_jax.ops import links, token_stats
from xpo_jax.types import Array, Aux, Layout, Loss, Objective, Scored


def gamma_from_ratio(beta: float | Array, ratio: float | Array) -> float | Array:
  """Converts `gamma_beta_ratio` of the authors' code to `simpo`'s gamma."""
  return beta * ratio


def simpo(
  beta: float = 2.0,
  gamma: float = 0.5,
  label_smoothing: float = 0.0,
  link: links.Link | str = "logistic",
) -> Objective:
  """SimPO: the average log-probability as reward, a target margin, no reference.

  L = -(1 - e) log sigma(z) - e log sigma(-z),   z = beta (a_w - a_l) - gamma
  with a the log-probability per token and e the label smoothing. Another link f takes
  the place of -log sigma.

  Paper: Meng et al. 2024, arXiv:2405.14734, Eq. 6. Survey 3.8.
  Departs from the paper: nothing. `gamma` is absolute, as in the paper and in TRL; the
    authors' code takes gamma / beta (see `gamma_from_ratio`). Label smoothing is the
    code's, and so is the hinge, max(0, 1 - z), which it never smooths. TRL's class adds
    an SFT term by default (`cpo_alpha=1`): that is
    `mixture((1.0, 1.0), (simpo(...), sft()))`.
  Reduction: log-probability averaged over tokens; loss averaged over pairs.

  Args:
    beta: scale of the reward, per nat per token; > 0. Paper: 2.0 to 2.5, tuned.
    gamma: target reward margin; >= 0. Paper: 0.3 to 1.6, tuned per model; the default
      is that of the code, ratio 0.25 at beta 2.
    label_smoothing: probability that a label is flipped; 0 <= e < 0.5. Paper: 0.
    link: f; a `links.Link` or a name of `links.LINKS`. Paper: logistic. Authors' code:
      hinge too.

  Returns:
    Objective; layout PAIR; stats LOGP.
    Terms: `simpo`.
    Metrics: reward_* (beta times nats per token; the margin before gamma),
    reward_accuracy (fraction), logp_chosen, logp_rejected (nats per completion).

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> same = scored.from_sequence_logps([[-4.0, -2.0]], [[8, 4]])  # -0.5 per token
    >>> round(float(scored.evaluate(objectives.simpo(gamma=0.0), same).loss), 4)
    0.6931
  """
  _hparams.check("simpo", "beta", beta, usual=2, gt=0)
  _hparams.check("simpo", "gamma", gamma, usual=1, ge=0)
  _hparams.check("simpo", "label_smoothing", label_smoothing, usual=0, ge=0, lt=0.5)
  link = _hparams.choice("simpo", "link", link, links.LINKS)

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    reward_BK = beta * _rewards.avg_logp(scored)
    z_B = reward_BK[:, 0] - reward_BK[:, 1] - gamma
    loss_B = links.smoothed(link, z_B, label_smoothing)
    metrics = _rewards.reward_metrics(scored, reward_BK) | _rewards.logp_metrics(scored)
    return Loss({"simpo": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="simpo",
    hparams={
      "beta": beta,
      "gamma": gamma,
      "label_smoothing": label_smoothing,
      "link": link.name,
    },
    layout=Layout.PAIR,
    stats=frozenset({token_stats.LOGP}),
    loss=loss,
  )
