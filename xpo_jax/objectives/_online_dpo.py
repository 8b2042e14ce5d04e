"""Online DPO, and any other pairwise objective, on the best and the worst sample."""

import jax
import jax.numpy as jnp

from xpo_jax.objectives import _dpo, _grpo, _hparams
from xpo_jax.ops import pairing
from xpo_jax.types import Array, Aux, Layout, Loss, Objective, Scored, State


def take_completions(scored: Scored, index_BK: Array) -> Scored:
  """Selects these completions of each prompt, in this order."""

  def take(x: Array) -> Array:
    if x.ndim < 2:  # weight_B and row_B have no completions
      return x
    trailing = tuple(range(2, x.ndim))
    return jnp.take_along_axis(x, jnp.expand_dims(index_BK, trailing), axis=1)

  return jax.tree.map(take, scored)


def best_against_worst(pairwise: Objective) -> Objective:
  """Applies a pairwise objective to the best (chosen) and the worst (rejected) sample.

  A prompt with equal rewards, or with fewer than 2 completions, forms no pair: it adds
  0, and the loss is a mean over the remaining pairs.

  Args:
    pairwise: any objective of layout PAIR: `dpo`, `ipo`, `slic` ...

  Returns:
    Objective of layout SAMPLED with the column reward_BK beside those of `pairwise`.
    `Aux.rows` is `(pairs, rows)`: a `pairing.PairIndices`, for which the result of
    another rule of `pairing` can be substituted, and the rows that `pairwise` prepares.
    Metrics: those of `pairwise`, of the pairs, and reward, frac_informative_prompts
    (fraction of prompts whose rewards differ).

  Raises:
    ValueError: `pairwise` is not of layout PAIR.
  """
  if pairwise.layout is not Layout.PAIR:
    raise ValueError(
      f"best_against_worst needs an objective of layout PAIR, {pairwise.name} is of "
      f"{pairwise.layout.name}; pass one such as dpo(beta=0.1)"
    )

  def pair(scored: Scored, pairs: pairing.PairIndices) -> Scored:
    two_B2 = jnp.stack([pairs.chosen_B, pairs.rejected_B], 1)
    two = take_completions(scored, two_B2)
    return two.replace(weight_B=scored.weight_B * pairs.keep_B)

  def prepare(scored: Scored, state: State, key: Array) -> tuple[Aux, State]:
    pairs = pairing.best_worst(scored.reward_BK, scored.present_BK)
    aux, state = pairwise.prepare(pair(scored, pairs), state, key)
    return Aux((pairs, aux.rows), aux.shared), state

  def loss(scored: Scored, aux: Aux) -> Loss:
    pairs, rows = aux.rows
    out = pairwise.loss(pair(scored, pairs), Aux(rows, aux.shared))
    metrics = out.metrics | _grpo.reward_metrics(scored)
    return Loss(out.terms, metrics)

  return pairwise._replace(
    name="best_against_worst",
    hparams={"pairwise": pairwise},
    layout=Layout.SAMPLED,
    columns=pairwise.columns | {"reward_BK"},
    loss=loss,
    prepare=prepare,
  )


def online_dpo(beta: float = 0.1) -> Objective:
  """Online DPO: DPO on the policy's own samples, the best against the worst.

  L = -log sigma(beta (log-ratio_best - log-ratio_worst)),   no gradient through samples
  or rewards.

  Paper: Guo et al. 2024 (OAIF), arXiv:2402.04792.
  Departs from the paper: the paper samples two; of more, the best and the worst are
    used, as in RLHF Workflow (Dong et al. 2024, arXiv:2405.07863). Equal rewards form
    no pair, where TRL takes the first of the two as chosen. Online IPO and SLiC are
    `best_against_worst(ipo(...))`, `best_against_worst(slic(...))`.
  Reduction: log-ratio summed over tokens; loss averaged over prompts with a pair.

  Args:
    beta: tie to ref, per nat; > 0. TRL: 0.1.

  Returns:
    Objective; layout SAMPLED; stats LOGP, REF_LOGP; columns reward_BK.
    Terms: `online_dpo`.
    Metrics: those of `dpo`, of the pairs; reward (mean of all samples),
    frac_informative_prompts (fraction of prompts whose rewards differ).

  Raises:
    ValueError: beta out of range (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> from xpo_jax.testing import toy
    >>> s = toy.scored(K=3, policy_equals_ref=True)
    >>> round(float(scored.evaluate(objectives.online_dpo(), s).loss), 4)  # log 2
    0.6931
  """
  _hparams.check("online_dpo", "beta", beta, usual=0.1, gt=0)
  online = best_against_worst(_dpo.dpo(beta))

  def loss(scored: Scored, aux: Aux) -> Loss:
    out = online.loss(scored, aux)
    return out.replace(terms={"online_dpo": out.terms["dpo"]})

  return online._replace(name="online_dpo", hparams={"beta": beta}, loss=loss)
