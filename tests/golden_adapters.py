"""One adapter for each golden method that we have built.

An adapter rearranges a case's arrays into a `Scored` and names a public factory or
function with its arguments; it holds no arithmetic. It returns what the case expects by
the case's own names (`log x` stands for x), and under `differentiate` the scalar whose
gradient the case records.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from xpo_jax import masked, objectives, scored
from xpo_jax.types import Evaluation, Scored

Arrays = dict[str, Any]


def _sides(first: jax.Array, second: jax.Array) -> jax.Array:
  return jnp.stack([first, second], 1)


def _halves(rows: jax.Array) -> jax.Array:
  """Chosen rows, then rejected rows, to one row per pair."""
  return _sides(*jnp.split(rows, 2))


def _rows(x_BK: jax.Array) -> jax.Array:
  """Back to chosen rows, then rejected rows."""
  return jnp.concatenate([x_BK[:, 0], x_BK[:, 1]])


def _from_labels(x: Arrays, names: tuple[str, ...], rows: Callable) -> Scored:
  """Logits and labels of which the first is never predicted; -100 is masked."""
  labels = x["labels"][:, 1:]
  logits = [rows(x[name][:, :-1]) for name in names]
  tokens = jnp.where(labels == -100, 0, labels)
  return scored.from_logits(logits[0], rows(tokens), rows(labels != -100), *logits[1:])


def _from_ids(x: Arrays) -> Scored:
  """Logits, token ids and a completion mask, pairs as halves."""
  logits = [_halves(x[name][:, :-1]) for name in ("policy_logits", "ref_logits")]
  ids, mask = _halves(x["input_ids"][:, 1:]), _halves(x["completion_mask"][:, 1:])
  return scored.from_logits(logits[0], ids, mask, logits[1])


def _pair(x: Arrays, reference: bool = True) -> Scored:
  """A pair record from any of the files' ways to write one."""
  if "policy_chosen_logps" in x:
    logp = _sides(x["policy_chosen_logps"], x["policy_rejected_logps"])
    ref = _sides(x["ref_chosen_logps"], x["ref_rejected_logps"]) if reference else None
    return scored.from_sequence_logps(logp, jnp.ones_like(logp), ref)
  if "policy_chosen_token_logps" in x:
    logp = _sides(x["policy_chosen_token_logps"], x["policy_rejected_token_logps"])
    ref = _sides(x["ref_chosen_token_logps"], x["ref_rejected_token_logps"])
    # Masked positions hold 0 and that code adds them up: they have a gradient there.
    s = scored.from_token_logps(logp, jnp.ones_like(logp), ref)
    length = masked.length(_sides(x["chosen_mask"], x["rejected_mask"]))
    return s.replace(length_BK=length)
  if "policy_per_token_logps" in x:
    return scored.from_token_logps(
      _halves(x["policy_per_token_logps"]),
      _halves(x["shifted_completion_mask"]),
      _halves(x["ref_per_token_logps"]),
    )
  if "completion_mask" in x:
    return _from_ids(x)
  names = ("policy_logits", "reference_logits") if reference else ("policy_logits",)
  return _from_labels(x, names, _halves)


def _outputs(out: Evaluation) -> Arrays:
  return {
    "differentiate": out.loss,
    "mean_loss": out.loss,
    "per_example_losses": out.per_example_B,
  }


def _dpo(h: Arrays, x: Arrays) -> Arrays:
  smoothing = h.get("label_smoothing") or h.get("epsilon") or 0.0
  return _outputs(scored.evaluate(objectives.dpo(h["beta"], smoothing), _pair(x)))


def _dpo_reference_free(h: Arrays, x: Arrays) -> Arrays:
  s = _pair(x)
  s = s.replace(ref_logp_BKT=jnp.zeros_like(s.ref_logp_BKT))
  return _outputs(scored.evaluate(objectives.dpo(beta=h["beta"]), s))


def _dpo_plus_sft(h: Arrays, x: Arrays) -> Arrays:
  parts = (objectives.dpo(beta=h["beta"]), objectives.sft())
  s = _pair(x)
  out = scored.evaluate(objectives.mixture(h["loss_weights"], parts), s)
  dpo, sft = (scored.evaluate(part, s) for part in parts)
  rows = {
    "sigmoid": dpo.per_example_B,
    "sft": jnp.broadcast_to(sft.loss, dpo.per_example_B.shape),
  }
  return _outputs(out) | {"per_example_losses": rows}


def _dpo_token_rewards(h: Arrays, x: Arrays) -> Arrays:
  s = _pair(x)
  reward_BK = objectives.rewards(s, h["beta"])
  credit_BKT = objectives.token_rewards(s, h["beta"])
  return _dpo(h, x) | {
    "chosen_rewards": reward_BK[:, 0],
    "rejected_rewards": reward_BK[:, 1],
    "token_rewards_beta_logratio": jnp.concatenate(
      [credit_BKT[:, 0], credit_BKT[:, 1]]
    ),
  }


def _batch_logps(h: Arrays, x: Arrays) -> Arrays:
  s = _from_labels(x, ("logits",), lambda rows: rows[:, None])
  function = objectives.avg_logp if h["average_log_prob"] else objectives.seq_logp
  logp_B = function(s)[:, 0]
  mean = s.mean_B(logp_B)
  return {
    "differentiate": mean.total,
    "mean_loss": mean.value,
    "per_example_losses": logp_B,
  }


def _beta_dpo(h: Arrays, x: Arrays) -> Arrays:
  s = _pair(x)
  state = {name: jnp.asarray(value)[0] for name, value in h["state_before"].items()}
  knobs = {"beta": h["beta"], "alpha": h["a"], "momentum": h["ema_gamma"]}
  frozen = jax.lax.stop_gradient(s)
  log_weight = []

  def recorded(log_weight_B: jax.Array) -> jax.Array:
    log_weight.append(log_weight_B)
    return x["selected_mask"]

  aux, state = objectives.beta_dpo_coupling(frozen, state, recorded, **knobs)
  o = objectives.beta_dpo(**knobs)._replace(prepare=lambda *_: (aux, state))
  out = scored.evaluate(o, s, state)
  return _outputs(out) | {
    "gap_mean": out.state["gap_mean"][None],
    "gap_std": out.state["gap_std"][None],
    "beta_used": aux.shared[None],
    "log sampling_weights_unnormalised": log_weight[0],
  }


def _simpo(h: Arrays, x: Arrays) -> Arrays:
  beta, ratio = h["beta"], h.get("gamma_beta_ratio")
  gamma = h.get("simpo_gamma", h.get("gamma"))
  if ratio is not None:
    gamma = objectives.gamma_from_ratio(beta, ratio)
  o = objectives.simpo(beta, gamma, h.get("label_smoothing") or 0.0)
  return _outputs(scored.evaluate(o, _pair(x, reference="chosen_mask" in x)))


def _simpo_cpo(h: Arrays, x: Arrays) -> Arrays:
  simpo = objectives.simpo(beta=h["beta"], gamma=h["simpo_gamma"])
  o = objectives.mixture((1.0, h["cpo_alpha"]), (simpo, objectives.sft()))
  s = _pair(x, reference=False)
  out = scored.evaluate(o, s)
  logp_BK = objectives.avg_logp(s)
  return {
    "differentiate": out.loss,
    "total_loss": out.loss,
    "sequence_logps": _rows(logp_BK),
    "per_example_losses": scored.evaluate(simpo, s).per_example_B,
    "preference_mean": out.terms["simpo/simpo"],
    "nll_chosen_token_mean": out.terms["sft/sft"],
  }


def _orpo_or_term(h: Arrays, x: Arrays) -> Arrays:
  o = objectives.odds_ratio(weight=h["beta_lambda"])
  out = scored.evaluate(o, _pair(x, reference=False))
  return _outputs(out) | {"mean_log_odds": out.metrics["reward_margin"]}


def _orpo_llamafactory(h: Arrays, x: Arrays) -> Arrays:
  o = objectives.orpo(weight=h["beta"])
  out = scored.evaluate(o, _pair(x, reference=False))
  return _outputs(out) | {"per_example_losses": out.loss[None]}  # a single pair


def _kto_record(x: Arrays) -> Scored:
  if "label" in x:
    names = {"logits": "policy_{}logits", "ref": "reference_{}logits"}
    names |= {"ids": "{}input_ids", "mask": "{}completion_mask"}
    both = {
      part: _sides(x[name.format("")], x[name.format("KL_")])
      for part, name in names.items()
    }
    return scored.from_logits(
      both["logits"][:, :, :-1],
      both["ids"][:, :, 1:],
      both["mask"][:, :, 1:],
      both["ref"][:, :, :-1],
      desirable_BK=_sides(x["label"], x["label"]),
    )
  level = "token_logps" if "policy_KL_token_logps" in x else "logps"
  logp, ref = (
    _sides(
      jnp.concatenate([x[f"{role}_chosen_{level}"], x[f"{role}_rejected_{level}"]]),
      x[f"{role}_KL_{level}"],
    )
    for role in ("policy", "reference")
  )
  up = jnp.ones(len(x[f"policy_chosen_{level}"]))
  down = jnp.zeros(len(x[f"policy_rejected_{level}"]))
  label = jnp.concatenate([up, down])
  label = _sides(label, label)
  one = jnp.ones_like(logp)
  if level == "logps":
    return scored.from_sequence_logps(logp, one, ref, desirable_BK=label)
  # Masked positions hold 0 and that code adds them up: they have a gradient there.
  return scored.from_token_logps(logp, one, ref, desirable_BK=label)


def _kto(h: Arrays, x: Arrays) -> Arrays:
  s = _kto_record(x)
  o = objectives.kto(h["beta"], h["desirable_weight"], h["undesirable_weight"])
  out = scored.evaluate(o, s)
  result = _outputs(out) | {"z0": out.metrics["z0"]}
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


def _rm_pairwise(h: Arrays, x: Arrays) -> Arrays:
  value = _sides(x["chosen"], x["rejected"])[..., None]
  s = scored.from_token_logps(None, jnp.ones_like(value), value_BKT=value)
  centring = h.get("center_rewards_coefficient") or 0.0
  o = objectives.bradley_terry(margin=x["margin"] or 0.0, centring=centring)
  out = scored.evaluate(o, s)
  # The rows' summands must make up the loss too.
  return {"differentiate": out.loss, "loss": s.mean_B(out.per_example_B).value}


# method: (adapter, the files whose every sign its cases guard)
ADAPTERS: dict[str, tuple[Callable[[Arrays, Arrays], Arrays], tuple[str, ...]]] = {
  "dpo": (_dpo, ()),
  "cdpo": (_dpo, ("_dpo",)),
  "dpo_reference_free": (_dpo_reference_free, ()),
  "dpo_plus_sft": (_dpo_plus_sft, ("_sft",)),
  "dpo_token_rewards": (_dpo_token_rewards, ()),
  "batch_logps": (_batch_logps, ()),
  "beta_dpo": (_beta_dpo, ("_beta_dpo",)),
  "simpo": (_simpo, ("_simpo",)),
  "simpo_cpo": (_simpo_cpo, ()),
  "orpo_or_term": (_orpo_or_term, ("_orpo",)),
  "orpo_llamafactory": (_orpo_llamafactory, ()),
  "kto": (_kto, ("_kto",)),
  "rm_pairwise_trl": (_rm_pairwise, ("_bradley_terry",)),
  "rm_pairwise_openrlhf": (_rm_pairwise, ()),
}
