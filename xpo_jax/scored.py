"""Builds a `Scored`, checks it against an objective, and evaluates the objective.

Three constructors: from logits, from log-probabilities per token, or from summed
log-probabilities with lengths. Half precision is promoted to float32 here, float64
stays, padding is zeroed. Everything is pure: differentiable, jit-able, vmap-able.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp

from xpo_jax.ops import masked, token_stats
from xpo_jax.types import (
  Array,
  AuxLoss,
  EvaluatedLoss,
  Layout,
  Objective,
  Scored,
  State,
  TokenStat,
)

_FIELDS = frozenset(Scored.__dataclass_fields__)


def from_token_logps(
  logp_BKT: Array | None,
  mask_BKT: Array,
  ref_logp_BKT: Array | None = None,
  *,
  old_logp_BKT: Array | None = None,
  sampler_logp_BKT: Array | None = None,
  value_BKT: Array | None = None,
  old_value_BKT: Array | None = None,
  reward_head_BKT: Array | None = None,
  ref_kl_BKT: Array | None = None,
  reward_BK: Array | None = None,
  reward_BKT: Array | None = None,
  desirable_BK: Array | None = None,
  margin_BK: Array | None = None,
  prompt_weight_BK: Array | None = None,
  present_BK: Array | None = None,
  weight_B: Array | None = None,
  row_B: Array | None = None,
  extra: Mapping[str, Array] | None = None,
) -> Scored:
  """Builds a record from log-probabilities per completion token.

  Args:
    logp_BKT: the policy's log pi(y_t | x, y_<t), nats. None only for a record without
      log-probabilities (a reward model's).
    mask_BKT: 1 on completion tokens, EOS included; 0 on padding.
    ref_logp_BKT: the same under the reference. Other fields: see `types.Scored`.
    present_BK: default all 1 (no padded columns).
    weight_B: default all 1 (no filler rows).
    row_B: default 0, 1, ..; folded into the PRNG key of random draws.
    extra: further statistics per token, by name; axes may follow T.

  Returns:
    Scored, padding zeroed in every field with a T axis.

  Raises:
    AssertionError: a field whose shape differs from the mask's.
  """
  mask_BKT = jnp.asarray(mask_BKT, jnp.float32)
  chex.assert_rank(mask_BKT, 3)
  B, K, _ = mask_BKT.shape
  tokens = {
    "logp_BKT": logp_BKT,
    "ref_logp_BKT": ref_logp_BKT,
    "old_logp_BKT": old_logp_BKT,
    "sampler_logp_BKT": sampler_logp_BKT,
    "value_BKT": value_BKT,
    "old_value_BKT": old_value_BKT,
    "reward_head_BKT": reward_head_BKT,
    "ref_kl_BKT": ref_kl_BKT,
    "reward_BKT": reward_BKT,
  }
  return Scored(
    mask_BKT=mask_BKT,
    length_BK=masked.length(mask_BKT),
    present_BK=_float(present_BK, (B, K), "present_BK", 1.0),
    weight_B=_float(weight_B, (B,), "weight_B", 1.0),
    row_B=_rows(row_B, B),
    reward_BK=_float(reward_BK, (B, K), "reward_BK"),
    desirable_BK=_float(desirable_BK, (B, K), "desirable_BK"),
    margin_BK=_float(margin_BK, (B, K), "margin_BK"),
    prompt_weight_BK=_float(prompt_weight_BK, (B, K), "prompt_weight_BK"),
    extra={name: _tokens(x, mask_BKT, name) for name, x in (extra or {}).items()},
    routing=None,
    **{name: _tokens(x, mask_BKT, name) for name, x in tokens.items()},
  )


def from_logits(
  policy_logits_BKTV: Array,
  tokens_BKT: Array,
  mask_BKT: Array,
  ref_logits_BKTV: Array | None = None,
  *,
  teacher_logits_BKTV: Array | None = None,
  stats: Iterable[TokenStat] | None = None,
  value_BKT: Array | None = None,
  reward_head_BKT: Array | None = None,
  reward_BK: Array | None = None,
  desirable_BK: Array | None = None,
  present_BK: Array | None = None,
  weight_B: Array | None = None,
  row_B: Array | None = None,
) -> Scored:
  """Builds a record from logits; `policy_logits_BKTV[b, k, t]` predicts token t.

  The output of a causal model at position i predicts token i + 1: drop the last
  position of the logits and the first token beforehand.

  Args:
    policy_logits_BKTV: logits of the policy, any float type.
    tokens_BKT: the completion tokens; ids on padding are ignored.
    mask_BKT: 1 on completion tokens.
    ref_logits_BKTV: logits of the reference.
    teacher_logits_BKTV: logits of the teacher of a distillation.
    stats: the statistics to compute: an objective's `stats`. Default: LOGP, and
      REF_LOGP where there are reference logits.
    value_BKT: scalar head at the position that predicts each token.
    reward_head_BKT: scalar head at the token itself.
    reward_BK: and the rest: see `from_token_logps`.

  Raises:
    ValueError: a statistic reads something that was not given.
  """
  mask_BKT = jnp.asarray(mask_BKT, jnp.float32)
  tokens_BKT = jnp.asarray(tokens_BKT)
  chex.assert_equal_shape([mask_BKT, tokens_BKT])
  chex.assert_equal_shape_prefix([policy_logits_BKTV, mask_BKT], 3)
  roles = {"policy": _logits(policy_logits_BKTV, mask_BKT)}
  frozen = {"ref": ref_logits_BKTV, "teacher": teacher_logits_BKTV}
  for role, logits_BKTV in frozen.items():
    if logits_BKTV is not None:
      chex.assert_equal_shape([policy_logits_BKTV, logits_BKTV])
      roles[role] = _logits(logits_BKTV, mask_BKT)
  if value_BKT is not None:
    roles["policy.value"] = _tokens(value_BKT, mask_BKT, "value_BKT")
  if reward_head_BKT is not None:
    roles["policy.reward"] = _tokens(reward_head_BKT, mask_BKT, "reward_head_BKT")
  if stats is None:
    default = {"policy": token_stats.LOGP, "ref": token_stats.REF_LOGP}
    stats = [stat for role, stat in default.items() if role in roles]
  fields: dict[str, Array | None] = {
    "logp_BKT": None,
    "value_BKT": value_BKT,
    "reward_head_BKT": reward_head_BKT,
  }
  extra: dict[str, Array] = {}
  for stat in stats:
    missing = [role for role in stat.roles if role not in roles]
    if missing:
      given = ", ".join(sorted(roles))
      raise ValueError(
        f"{stat.field} reads {', '.join(missing)}, but only {given} was given; pass "
        "ref_logits_BKTV for 'ref', teacher_logits_BKTV for 'teacher', value_BKT for "
        "'policy.value' and reward_head_BKT for 'policy.reward'"
      )
    into = fields if stat.field in _FIELDS else extra
    into[stat.field] = stat.fn(roles, tokens_BKT)
  return from_token_logps(
    mask_BKT=mask_BKT,
    reward_BK=reward_BK,
    desirable_BK=desirable_BK,
    present_BK=present_BK,
    weight_B=weight_B,
    row_B=row_B,
    extra=extra,
    **fields,
  )


def from_sequence_logps(
  logp_BK: Array,
  length_BK: Array,
  ref_logp_BK: Array | None = None,
  *,
  reward_BK: Array | None = None,
  desirable_BK: Array | None = None,
  prompt_weight_BK: Array | None = None,
  present_BK: Array | None = None,
  weight_B: Array | None = None,
  row_B: Array | None = None,
) -> Scored:
  """Builds a record from log-probabilities already summed over each completion.

  It has no tokens (`mask_BKT` is None): `check` refuses it for an objective that reads
  tokens or another statistic per token.

  Args:
    logp_BK: the policy's log pi(y | x), nats per completion.
    length_BK: tokens per completion, the denominator of averages.
    ref_logp_BK: the same sum under the reference.
    reward_BK: and the rest: see `from_token_logps`.
  """
  logp_BK = jnp.asarray(logp_BK)
  chex.assert_rank(logp_BK, 2)
  record = from_token_logps(
    logp_BK[..., None],
    jnp.ones((*logp_BK.shape, 1)),
    None if ref_logp_BK is None else jnp.asarray(ref_logp_BK)[..., None],
    reward_BK=reward_BK,
    desirable_BK=desirable_BK,
    prompt_weight_BK=prompt_weight_BK,
    present_BK=present_BK,
    weight_B=weight_B,
    row_B=row_B,
  )
  length_BK = _float(length_BK, logp_BK.shape, "length_BK")
  return record.replace(mask_BKT=None, length_BK=length_BK)


def check(objective: Objective, scored: Scored) -> None:
  """Refuses a record that the objective cannot use; reads only shapes, so jit-able.

  Raises:
    ValueError: wrong K for the layout, or a missing statistic, column or token mask;
      named in the message.
  """
  name = objective.name
  layout = objective.layout
  K = scored.present_BK.shape[1]
  # A demonstration is column 0 of any layout.
  if layout is not Layout.DEMO and layout.completions not in (None, K):
    raise ValueError(
      f"{name} needs layout {layout.name} (K={layout.completions}), batch has K={K}; "
      f"collate the data to {layout.name}"
    )
  for stat in sorted(objective.stats, key=lambda stat: stat.field):
    if _get(scored, stat.field) is None:
      raise ValueError(
        f"{name} needs {stat.field}, which this record lacks (it reads: "
        f"{', '.join(stat.roles)}); score the batch with stats=objective.stats, or "
        "give it where you make the Scored"
      )
  for column in sorted(objective.columns):
    if _get(scored, column) is None:
      raise ValueError(
        f"{name} requires the column {column}, which is missing; give it where you "
        "make the Scored, as a column of the data"
      )
  if objective.reads_tokens and scored.mask_BKT is None:
    raise ValueError(
      f"{name} reads single tokens, and a record of summed log-probs has none; use "
      "from_token_logps"
    )


def evaluate(
  objective: Objective,
  scored: Scored,
  state: State | None = None,
  key: Array | None = None,
) -> EvaluatedLoss:
  """Evaluates an objective on one batch: `prepare` without gradient, then `loss`.

  Args:
    objective: from a factory of `xpo_jax.objectives`.
    scored: the batch.
    state: the method's state; required by an objective that has one (start from
      `objective.init()`).
    key: a PRNG key; required by an objective that draws random numbers.

  Returns:
    EvaluatedLoss; `.loss` is the sum of the divided terms, `.state` the state after.

  Raises:
    ValueError: see `check`; a missing state or key.
  """
  check(objective, scored)
  if state is None:
    state = objective.init()
    if jax.tree.leaves(state):
      raise ValueError(
        f"{objective.name} keeps state between batches and state=None; pass "
        "state=objective.init() for the first batch, then the returned state"
      )
  aux, state = objective.prepare(jax.lax.stop_gradient(scored), state, key)
  out = objective.loss(scored, jax.lax.stop_gradient(aux))
  terms = {name: mean.value for name, mean in out.terms.items()}
  metrics = {name: mean.value for name, mean in out.metrics.items()}
  loss: Any = sum(terms.values())
  return EvaluatedLoss(loss, out.per_example_B, terms, metrics, state)


def evaluate_parts(
  parts: Sequence[AuxLoss],
  batches: Mapping[str, Scored],
  states: Sequence[State] | None = None,
  key: Array | None = None,
) -> EvaluatedLoss:
  """Evaluates a weighted sum of objectives, each on a batch of its own.

  Terms and metrics are named `data/name`; `.state` is the tuple of the states.

  Args:
    parts: the objectives with their weights, see `types.AuxLoss`.
    batches: the batches, by the `data` of each part.
    states: one for each part, or None, as in `evaluate`.
    key: the index of each part is folded into it.

  Raises:
    ValueError: no batch of that name; else see `evaluate`.
  """
  loss: Any = 0.0
  terms: dict[str, Array] = {}
  metrics: dict[str, Array] = {}
  new_states = []
  for i, part in enumerate(parts):
    if part.data not in batches:
      raise ValueError(
        f"part {part.objective.name} reads the batch {part.data!r}, which is not among "
        f"{sorted(batches)}"
      )
    own_key = None if key is None else jax.random.fold_in(key, i)
    state = None if states is None else states[i]
    out = evaluate(part.objective, batches[part.data], state, own_key)
    loss = loss + part.weight * out.loss
    terms |= {f"{part.data}/{n}": part.weight * x for n, x in out.terms.items()}
    metrics |= {f"{part.data}/{n}": x for n, x in out.metrics.items()}
    new_states.append(out.state)
  return EvaluatedLoss(loss, None, terms, metrics, tuple(new_states))


def _get(scored: Scored, field: str) -> Array | None:
  if field in _FIELDS:
    return vars(scored)[field]
  return scored.extra.get(field)


def _promote(x: Array) -> Array:
  """At least float32; float64 stays."""
  x = jnp.asarray(x)
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _logits(logits_BKTV: Array, mask_BKT: Array) -> Array:
  # Zero the padding before the softmax: NaN there would reach the gradient.
  return jnp.where(mask_BKT[..., None] > 0, _promote(logits_BKTV), 0)


def _tokens(x_BKT: Array | None, mask_BKT: Array, name: str) -> Array | None:
  if x_BKT is None:
    return None
  x_BKT = _promote(x_BKT)
  chex.assert_shape(x_BKT, (*mask_BKT.shape, ...), custom_message=name)
  return masked.zero_padding(x_BKT, mask_BKT)


def _float(
  x: Array | None, shape: tuple[int, ...], name: str, default: float | None = None
) -> Array | None:
  if x is None:
    return None if default is None else jnp.full(shape, default, jnp.float32)
  x = _promote(x)
  chex.assert_shape(x, shape, custom_message=name)
  return x


def _rows(row_B: Array | None, B: int) -> Array:
  row_B = jnp.arange(B) if row_B is None else jnp.asarray(row_B)
  chex.assert_shape(row_B, (B,), custom_message="row_B")
  return row_B.astype(jnp.int32)
