"""Weighted sums of objectives on the same batch."""

from collections import Counter
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from xpo_jax.objectives import _hparams
from xpo_jax.types import (
  Array,
  Aux,
  Layout,
  Loss,
  Mean,
  Objective,
  Scored,
  State,
  no_state,
  nothing_shared,
)

_REWARDS = ("any", "win_rates", "pairwise")  # from least to most restrictive


def mixture(
  weights: Sequence[float | Array], objectives: Sequence[Objective]
) -> Objective:
  """Mixture: a weighted sum of objectives, such as DPO + SFT (RPO) or MPO.

  L = sum_i w_i L_i, each term divided by its own denominator first

  Paper: none of its own. DPO plus an NLL term is RPO, Liu et al. 2024,
    arXiv:2405.16436, and iterative RPO, Pang et al. 2024, arXiv:2404.19733; DPO, BCO
    and SFT together are MPO, Wang et al. 2024, arXiv:2411.10442.

  Terms are named `objective/term` (`objective_i/term` where a name occurs twice);
  metrics keep their names, and where two objectives report the same one, the later ones
  are named like their terms.

  Args:
    weights: one finite number per objective; not normalised.
    objectives: on one layout; DEMO ones (SFT) read column 0 of it.

  Returns:
    Objective with the union of stats and columns; states and random draws are composed.
    `column0_source` is the one required other than "sample", `teacher_share` the one
    required other than 0, `on_policy` and `reward_kind` the most restrictive ones.

  Raises:
    ValueError: lengths differ, no objective, two different layouts, two different
      sources of column 0, or two different shares of a teacher.

  Example:
    >>> from xpo_jax import objectives, scored
    >>> from xpo_jax.testing import toy
    >>> rpo = objectives.mixture((1.0, 0.005), (objectives.dpo(), objectives.sft()))
    >>> sorted(scored.evaluate(rpo, toy.scored(K=2)).terms)
    ['dpo/dpo', 'sft/sft']
  """
  weights = tuple(weights)
  parts = tuple(objectives)
  if not parts or len(weights) != len(parts):
    raise ValueError(
      f"mixture: {len(weights)} weights for {len(parts)} objectives; pass one weight "
      "per objective and at least one objective"
    )
  for weight in weights:
    _hparams.check("mixture", "weight", weight, usual=1)
  layouts = {part.layout for part in parts} - {Layout.DEMO} or {Layout.DEMO}
  if len(layouts) > 1:
    named = ", ".join(f"{part.name} {part.layout.name}" for part in parts)
    raise ValueError(f"mixture: no batch has all of these layouts: {named}")
  sources = {part.column0_source for part in parts} - {"sample"} or {"sample"}
  if len(sources) > 1:
    named = ", ".join(f"{part.name} {part.column0_source}" for part in parts)
    raise ValueError(f"mixture: no batch has all of these as column 0: {named}")
  teacher_shares = {part.teacher_share for part in parts} - {0.0} or {0.0}
  if len(teacher_shares) > 1:
    named = ", ".join(f"{part.name} {part.teacher_share}" for part in parts)
    raise ValueError(f"mixture: no samples have all of these shares: {named}")
  count = Counter(part.name for part in parts)
  names = [
    p.name if count[p.name] == 1 else f"{p.name}_{i}" for i, p in enumerate(parts)
  ]
  shares = any(part.prepare is not nothing_shared for part in parts)

  def init() -> State:
    return tuple(part.init() for part in parts)

  def prepare(scored: Scored, state: State, key: Array) -> tuple[Aux, State]:
    auxes, states = [], []
    for i, part in enumerate(parts):
      own_key = None if key is None else jax.random.fold_in(key, i)
      aux, new = part.prepare(scored, state[i], own_key)
      auxes.append(aux)
      states.append(new)
    rows, shared = zip(*auxes, strict=True)
    return Aux(rows, shared), tuple(states)

  def loss(scored: Scored, aux: Aux) -> Loss:
    none = ((),) * len(parts)
    auxes = zip(aux.rows or none, aux.shared or none, strict=True)
    terms, metrics, rows = {}, {}, []
    for name, weight, part, own in zip(names, weights, parts, auxes, strict=True):
      out = part.loss(scored, Aux(*own))
      for term, mean in out.terms.items():
        terms[f"{name}/{term}"] = Mean(weight * mean.total, mean.weight)
      for metric, mean in out.metrics.items():
        metrics[f"{name}/{metric}" if metric in metrics else metric] = mean
      rows.append(None if out.per_example_B is None else weight * out.per_example_B)
    whole = None if any(row is None for row in rows) else jnp.stack(rows).sum(0)
    return Loss(terms, metrics, whole)

  return Objective(
    name="mixture",
    hparams={"weights": weights, "objectives": parts},
    layout=layouts.pop(),
    stats=frozenset().union(*(part.stats for part in parts)),
    columns=frozenset().union(*(part.columns for part in parts)),
    reads_tokens=any(part.reads_tokens for part in parts),
    loss=loss,
    prepare=prepare if shares else nothing_shared,
    init=init if shares else no_state,
    column0_source=sources.pop(),
    on_policy=any(part.on_policy for part in parts),
    reward_kind=max((part.reward_kind for part in parts), key=_REWARDS.index),
    teacher_share=teacher_shares.pop(),
  )
