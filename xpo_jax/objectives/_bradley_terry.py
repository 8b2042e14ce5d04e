"""Bradley-Terry reward models: comparisons, comparisons with margins, soft labels."""

from collections.abc import Callable, Mapping
from typing import Any

from xpo_jax.objectives import _hparams, _rewards
from xpo_jax.ops import links, masked, token_stats
from xpo_jax.types import Array, Aux, Layout, Loss, Objective, Scored

_STATS = frozenset({token_stats.REWARD_HEAD})


def soft_bradley_terry() -> Objective:
  """Bradley-Terry on soft labels: cross-entropy to P(column 0 is preferred).

  L = -p log sigma(r_0 - r_1) - (1 - p) log sigma(r_1 - r_0)

  The probability p (a fraction of votes, another model's confidence) is reward_BK of
  column 0; column 1 is not read. p = 1 is `bradley_terry`. Layout PAIR; stats
  REWARD_HEAD; columns reward_BK.
  """

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    reward_BK = masked.last(scored.reward_head_BKT, scored.mask_BKT)
    margin_B = reward_BK[:, 0] - reward_BK[:, 1]
    loss_B = links.smoothed_logistic(margin_B, 1 - scored.reward_BK[:, 0])
    metrics = _rewards.reward_metrics(scored, reward_BK)
    return Loss({"soft_bradley_terry": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="soft_bradley_terry",
    hparams={},
    layout=Layout.PAIR,
    stats=_STATS,
    loss=loss,
    columns=frozenset({"reward_BK"}),
  )


def margin_bradley_terry(centring: float = 0.0) -> Objective:
  """Bradley-Terry with a margin for each pair, larger where the preference is clearer.

  L = -log sigma(r_w - r_l - m) + centring (r_w + r_l)^2

  The margin m >= 0 is margin_BK of column 0, in units of the reward; column 1 is not
  read. Llama 2 (Touvron et al. 2023, arXiv:2307.09288) makes it a discrete function of
  the annotator's rating: 3 significantly better, 2 better, 1 slightly better, 0
  negligibly better or unsure. The same m for all is `bradley_terry`. `centring` as
  there. Layout PAIR; stats REWARD_HEAD; columns margin_BK.
  """
  _hparams.check("margin_bradley_terry", "centring", centring, usual=0, ge=0)
  return _comparison(
    "margin_bradley_terry",
    {"centring": centring},
    margin=lambda scored: scored.margin_BK[:, 0],
    centring=centring,
    columns=frozenset({"margin_BK"}),
  )


def bradley_terry(margin: float = 0.0, centring: float = 0.0) -> Objective:
  """Bradley-Terry: a reward model trained on comparisons.

  L = -log sigma(r_w - r_l - margin) + centring (r_w + r_l)^2
  with r the scalar head at the last token of the completion.

  Paper: Ouyang et al. 2022 (InstructGPT), arXiv:2203.02155, Sec. 3.5, Eq. 1, here for
    K = 2 (`kwise` for more).
  Departs from the paper: `margin` and `centring` are TRL's (also OpenRLHF's margin);
    both are 0 in the paper, which shifts the finished model to mean 0 instead. A margin
    for each pair: `margin_bradley_terry`. Soft labels: `soft_bradley_terry`.
  Reduction: the head's output at the last completion token, which it has read (EOS
    where the completion ends with it); both terms averaged over pairs.

  Args:
    margin: target margin of the chosen reward, the same for all pairs; >= 0. Paper: 0.
    centring: weight of the squared sum of the two rewards; >= 0. Paper: 0. TRL offers
      0.01.

  Returns:
    Objective; layout PAIR; stats REWARD_HEAD.
    Terms: `bradley_terry`, `centring`.
    Metrics: reward_chosen, reward_rejected, reward_margin (units of the reward),
    reward_accuracy (fraction).

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> import numpy as np
    >>> from xpo_jax import objectives, scored
    >>> one = np.ones((1, 2, 1))
    >>> tie = scored.from_token_logps(None, one, reward_head_BKT=3 * one)
    >>> round(float(scored.evaluate(objectives.bradley_terry(), tie).loss), 4)
    0.6931
  """
  _hparams.check("bradley_terry", "margin", margin, usual=0, ge=0)
  _hparams.check("bradley_terry", "centring", centring, usual=0, ge=0)
  return _comparison(
    "bradley_terry",
    {"margin": margin, "centring": centring},
    margin=lambda scored: margin,
    centring=centring,
  )


def _comparison(
  name: str,
  hparams: Mapping[str, Any],
  *,
  margin: Callable[[Scored], float | Array],
  centring: float | Array,
  columns: frozenset[str] = frozenset(),
) -> Objective:
  """The objective of comparisons with a margin, a number or `[B]`."""

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    reward_BK = masked.last(scored.reward_head_BKT, scored.mask_BKT)
    pair_B = links.logistic(reward_BK[:, 0] - reward_BK[:, 1] - margin(scored))
    centre_B = centring * (reward_BK[:, 0] + reward_BK[:, 1]) ** 2
    terms = {name: scored.mean_B(pair_B), "centring": scored.mean_B(centre_B)}
    return Loss(terms, _rewards.reward_metrics(scored, reward_BK), pair_B + centre_B)

  return Objective(
    name=name,
    hparams=hparams,
    layout=Layout.PAIR,
    stats=_STATS,
    loss=loss,
    columns=columns,
  )
