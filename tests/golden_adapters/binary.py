"""Desirable and undesirable completions, and undesirable ones only."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp

from tests.golden_adapters import arrange
from tests.golden_adapters.arrange import Arrays
from xpo_jax import objectives, scored
from xpo_jax.types import AuxLoss, Mean, Objective, Scored, TokenStat


def _kto_record(x: Arrays) -> Scored:
  if "label" in x:
    names = {"logits": "policy_{}logits", "ref": "reference_{}logits"}
    names |= {"ids": "{}input_ids", "mask": "{}completion_mask"}
    both = {
      part: arrange.sides(x[name.format("")], x[name.format("KL_")])
      for part, name in names.items()
    }
    return scored.from_logits(
      both["logits"][:, :, :-1],
      both["ids"][:, :, 1:],
      both["mask"][:, :, 1:],
      both["ref"][:, :, :-1],
      desirable_BK=arrange.sides(x["label"], x["label"]),
    )
  level = "token_logps" if "policy_KL_token_logps" in x else "logps"
  logp, ref = (
    arrange.sides(
      jnp.concatenate([x[f"{role}_chosen_{level}"], x[f"{role}_rejected_{level}"]]),
      x[f"{role}_KL_{level}"],
    )
    for role in ("policy", "reference")
  )
  up = jnp.ones(len(x[f"policy_chosen_{level}"]))
  down = jnp.zeros(len(x[f"policy_rejected_{level}"]))
  label = jnp.concatenate([up, down])
  label = arrange.sides(label, label)
  one = jnp.ones_like(logp)
  if level == "logps":
    return scored.from_sequence_logps(logp, one, ref, desirable_BK=label)
  # Masked positions hold 0 and that code adds them up: they have a gradient there.
  return scored.from_token_logps(logp, one, ref, desirable_BK=label)


def _kto(h: Arrays, x: Arrays) -> Arrays:
  s = _kto_record(x)
  o = objectives.kto(h["beta"], h["desirable_weight"], h["undesirable_weight"])
  out = scored.evaluate(o, s)
  result = arrange.outputs(out) | {"z0": out.metrics["z0"]}
  if "label" in x:
    return result
  # One of the codes records rewards with beta, the other log-ratios.
  with_beta = "world_size" in h
  reward = objectives.rewards(s, h["beta"]) if with_beta else objectives.log_ratio(s)
  ups = len(x["policy_chosen_logps" if with_beta else "policy_chosen_token_logps"])
  return result | {
    "chosen_rewards": reward[:ups, 0],
    "rejected_rewards": reward[ups:, 0],
  }


def _kto_vanilla_paired(h: Arrays, x: Arrays) -> Arrays:
  """The reference point of each side is the other side's mean, with gradient here."""
  o, total = objectives.kto(beta=h["beta"]), []
  for side, other in (("chosen", "rejected"), ("rejected", "chosen")):
    logp, ref = (
      arrange.sides(x[f"{role}_{side}_logps"], x[f"{role}_{other}_logps"])
      for role in ("policy", "reference")
    )
    up = jnp.full_like(logp, side == "chosen")
    s = scored.from_sequence_logps(logp, jnp.ones_like(logp), ref, desirable_BK=up)
    aux, _ = o.prepare(s, o.init(), None)
    total.append(o.loss(s, aux).terms["kto"])
  mean = jax.tree.reduce(Mean.__add__, total, is_leaf=lambda x: isinstance(x, Mean))
  return {"differentiate": mean.value, "mean_loss": mean.value}


def _single(rows: jax.Array) -> jax.Array:
  return rows[:, None]


def _dro_v(h: Arrays, x: Arrays) -> Arrays:
  s = arrange.from_labels(x, ("policy_logits", "reference_logits"), _single)
  log_ratio_B = objectives.log_ratio(s)[:, 0]
  square_B = objectives.dro_half_square(
    x["rewards"], x["values"], log_ratio_B, h["tau"]
  )
  whole = s.mean_B(square_B).value
  # Without the 1 / tau, that code's two gradients are those of the square itself.
  out = {"residual_mse_half": whole, "sequence_logratio": log_ratio_B}
  if not h["rescaling"]:
    return out | {"differentiate": whole}
  function = objectives.avg_logp if h["length_mean"] else objectives.seq_logp
  logp = function(s)[..., None]
  ref = function(s.replace(logp_BKT=s.ref_logp_BKT))[..., None]
  one = scored.from_token_logps(
    logp,
    jnp.ones_like(logp),
    ref,
    value_BKT=x["values"][:, None, None],
    reward_BK=_single(x["rewards"]),
  )
  # The loss must also be the mean of the losses per row.
  per_example_B = scored.evaluate(objectives.dro(h["tau"]), one).per_example_B
  return out | {"differentiate": one.mean_B(per_example_B).value}


def _forget(x: Arrays, stats: Iterable[TokenStat]) -> Scored:
  names = ("policy_forget_logits", "reference_forget_logits")
  s = arrange.from_labels(x, names, _single, "forget_labels", stats)
  return s.replace(desirable_BK=jnp.zeros_like(s.length_BK))


def _retain(x: Arrays) -> Scored:
  names = ("policy_retain_logits", "reference_retain_logits")
  return arrange.from_labels(x, names, _single, "retain_labels")


def _everywhere(x: Arrays) -> Scored:
  """Prompt and padding included: the KL does not depend on the token ids."""
  policy, ref = (
    x[f"{role}_retain_logits"][:, None] for role in ("policy", "reference")
  )
  tokens = jnp.zeros(policy.shape[:-1], int)
  stats = objectives.retain_kl().stats
  return scored.from_logits(policy, tokens, jnp.ones_like(tokens), ref, stats=stats)


def _forgetting(
  x: Arrays, h: Arrays, o: Objective, keep: AuxLoss | None = None, retain: Scored = None
) -> Arrays:
  forget = _forget(x, o.stats)
  parts = [AuxLoss(h["npo_coeff"], o, "forget"), *([keep] if keep else [])]
  out = scored.evaluate_parts(parts, {"forget": forget, "retain": retain})
  return {
    "differentiate": out.loss,
    "total_loss": out.loss,
    "per_example_forget_losses": arrange.row_by_row(o, forget).loss,
  }


def _npo(h: Arrays, x: Arrays) -> Arrays:
  return _forgetting(x, h, objectives.npo(h["beta"]))


def _npo_grad_diff(h: Arrays, x: Arrays) -> Arrays:
  keep = AuxLoss(h["grad_diff_coeff"], objectives.sft(), "retain")
  return _forgetting(x, h, objectives.npo(h["beta"]), keep, _retain(x))


def _npo_kl(h: Arrays, x: Arrays) -> Arrays:
  keep = AuxLoss(h["KL_coeff"], objectives.retain_kl(), "retain")
  return _forgetting(x, h, objectives.npo(h["beta"]), keep, _everywhere(x))


def _simnpo(h: Arrays, x: Arrays) -> Arrays:
  return _forgetting(x, h, objectives.simnpo(h["beta"], h["gamma"]))


def _simnpo_grad_diff(h: Arrays, x: Arrays) -> Arrays:
  keep = AuxLoss(h["grad_diff_coeff"], objectives.sft(), "retain")
  o = objectives.simnpo(h["beta"], h["gamma"])
  return _forgetting(x, h, o, keep, _retain(x))


def _d2o(h: Arrays, x: Arrays) -> Arrays:
  own, rejected = x["policy_self_logps"], _single(x["policy_neg_logps"])
  minus, plus = x["ref_minus_self_logps"], _single(x["ref_plus_neg_logps"])
  logp = jnp.concatenate([own, rejected], 1)[..., None]
  # Neither reference is evaluated on the other side.
  refs = {
    "ref_minus_logp_BKT": jnp.concatenate([minus, jnp.zeros_like(rejected)], 1),
    "ref_plus_logp_BKT": jnp.concatenate([jnp.zeros_like(own), plus], 1),
  }
  s = scored.from_token_logps(
    logp,
    jnp.ones_like(logp),
    desirable_BK=jnp.concatenate([jnp.ones_like(own), jnp.zeros_like(rejected)], 1),
    extra={name: ref[..., None] for name, ref in refs.items()},
  )
  o = objectives.d2o(h["beta"], h["alpha"])
  margin = arrange.row_by_row(o, s).metrics["reward_margin"]
  return arrange.outputs(scored.evaluate(o, s)) | {"logits": margin}


# method: (adapter, the objective files whose signs its cases check)
ADAPTERS = {
  "kto": (_kto, ("_kto",)),
  "kto_vanilla_paired": (_kto_vanilla_paired, ()),
  "dro_v": (_dro_v, ("_dro",)),
  "npo": (_npo, ("_npo",)),
  "npo_grad_diff": (_npo_grad_diff, ()),
  "npo_KL": (_npo_kl, ("_retain_kl",)),
  "simnpo": (_simnpo, ()),  # gamma is 0: its sign is checked in the test of simnpo
  "simnpo_grad_diff": (_simnpo_grad_diff, ()),
  "d2o": (_d2o, ("_d2o",)),
}
