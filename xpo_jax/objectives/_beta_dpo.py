"""beta-DPO: DPO with batch-dependent beta and filtering of outlier pairs."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from xpo_jax.objectives import _dpo, _hparams, _rewards
from xpo_jax.ops import selection, token_stats
from xpo_jax.types import Array, Aux, Layout, Loss, Mean, Objective, Scored, State

_FLOOR = 1e-3  # lower bound of beta in the authors' code


def beta_dpo_coupling(
  scored: Scored,
  state: State,
  select: Callable[[Array], Array],
  beta: float | Array,
  alpha: float | Array,
  momentum: float | Array,
) -> tuple[Aux, State]:
  """Updates the moving statistics, selects the pairs and computes beta'.

  `select` maps log weights to 1 where a pair is selected, else 0.
  """
  log_ratio_BK = _rewards.log_ratio(scored)
  gap_B = log_ratio_BK[:, 0] - log_ratio_BK[:, 1]
  batch_mean = scored.mean_B(gap_B).value
  spread = (scored.weight_B * (gap_B - batch_mean) ** 2).sum()
  batch_std = jnp.sqrt(spread / jnp.maximum(scored.weight_B.sum() - 1, 1))
  mean = momentum * state["gap_mean"] + (1 - momentum) * batch_mean
  std = momentum * state["gap_std"] + (1 - momentum) * batch_std
  z_B = (gap_B - mean) / jnp.where(std > 0, std, 1)  # no deviation yet: equal weights
  selected_B = select(jnp.where(std > 0, -0.5 * z_B**2, 0))
  selected = Mean((selected_B * gap_B).sum(), selected_B.sum()).value
  used = jnp.maximum(beta * (1 + alpha * (selected - mean)), _FLOOR)
  new = {"gap_mean": mean, "gap_std": std}
  new = jax.tree.map(lambda x, old: x.astype(jnp.asarray(old).dtype), new, state)
  return Aux(rows=selected_B, shared=used), new


def beta_dpo(
  beta: float = 0.1, alpha: float = 0.6, keep: float = 0.8, momentum: float = 0.9
) -> Objective:
  """beta-DPO: beta adapted to the gap of the batch, on pairs with a typical gap.

  L = DPO at beta' over a random fraction of the pairs,
  beta' = max(0.001, beta (1 + alpha (mean gap of the drawn - m))), gap = log-ratio_w -
  log-ratio_l, m and s its moving mean and deviation, this batch included; a pair is
  drawn with weight exp(-(gap - m)^2 / (2 s^2)), without replacement.

  Paper: Wu et al. 2024, arXiv:2407.08639. Survey 3.3.
  Departs from the paper: as in the authors' code, the gap excludes beta; the paper's
    alpha is this one divided by beta. The floor is the code's. The code updates m and s
    on evaluation batches and once per microbatch: not copied. It fails at step 0, where
    s = 0; here all pairs are then equally likely. The gap is in nats: with alpha = 0.6,
    changes of the gap by some nats move beta' between the floor and several beta, so
    monitor the metric `beta`.
  Reduction: log-ratio summed over tokens; loss averaged over the drawn pairs
    (`per_example_B` holds the others too). No gradient through gap, selection or beta'.

  Args:
    beta: tie to ref, per nat; > 0. Paper: 0.1.
    alpha: sensitivity of beta' to the gap, per nat; 0 keeps beta fixed. Code's example:
      0.6.
    keep: fraction of the pairs drawn; 0 < keep <= 1. Paper: 0.8.
    momentum: of m and s; 0 <= momentum < 1. Paper: 0.9.

  Returns:
    Objective; layout PAIR; stats LOGP, REF_LOGP; state gap_mean, gap_std (nats); draws
    random numbers.
    Terms: `beta_dpo`.
    Metrics: those of `dpo` (rewards at beta'), and beta (per nat).

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> import jax
    >>> from xpo_jax import objectives, scored
    >>> from xpo_jax.testing import toy
    >>> o, first = objectives.beta_dpo(), toy.scored(K=2, policy_equals_ref=True)
    >>> round(float(scored.evaluate(o, first, o.init(), jax.random.key(0)).loss), 4)
    0.6931
  """
  _hparams.check("beta_dpo", "beta", beta, usual=0.1, gt=0)
  _hparams.check("beta_dpo", "alpha", alpha, usual=0.6)
  _hparams.check("beta_dpo", "keep", keep, usual=0.8, gt=0, le=1)
  _hparams.check("beta_dpo", "momentum", momentum, usual=0.9, ge=0, lt=1)

  def init() -> State:
    return {"gap_mean": jnp.zeros(()), "gap_std": jnp.zeros(())}

  def prepare(scored: Scored, state: State, key: Array) -> tuple[Aux, State]:
    rows = (scored.weight_B, scored.row_B, _hparams.check_key("beta_dpo", key))

    def draw(log_weight_B: Array) -> Array:
      return selection.without_replacement(log_weight_B, keep, *rows)

    return beta_dpo_coupling(scored, state, draw, beta, alpha, momentum)

  def loss(scored: Scored, aux: Aux) -> Loss:
    every = _dpo.dpo(aux.shared).loss(scored, Aux())
    drawn = scored.replace(weight_B=scored.weight_B * aux.rows)
    used_B = jnp.broadcast_to(aux.shared, scored.weight_B.shape)
    metrics = every.metrics | {"beta": scored.mean_B(used_B)}
    term = {"beta_dpo": drawn.mean_B(every.per_example_B)}
    return Loss(term, metrics, every.per_example_B)

  return Objective(
    name="beta_dpo",
    hparams={"beta": beta, "alpha": alpha, "keep": keep, "momentum": momentum},
    layout=Layout.PAIR,
    stats=frozenset({token_stats.LOGP, token_stats.REF_LOGP}),
    loss=loss,
    prepare=prepare,
    init=init,
  )
