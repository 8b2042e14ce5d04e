"""DPO and its closest variants."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from tests.golden_adapters import arrange
from tests.golden_adapters.arrange import Arrays
from xpo_jax import objectives, scored
from xpo_jax.ops import divergences, links
from xpo_jax.types import Objective, Scored


def _dpo(h: Arrays, x: Arrays) -> Arrays:
  smoothing = h.get("label_smoothing") or h.get("epsilon") or 0.0
  return arrange.outputs(
    scored.evaluate(objectives.dpo(h["beta"], smoothing), arrange.pair(x))
  )


def _without_reference(s: Scored) -> Scored:
  return s.replace(ref_logp_BKT=jnp.zeros_like(s.logp_BKT))


def _dpo_reference_free(h: Arrays, x: Arrays) -> Arrays:
  s = _without_reference(arrange.pair(x))
  return arrange.outputs(scored.evaluate(objectives.dpo(beta=h["beta"]), s))


def _dpo_plus_sft(h: Arrays, x: Arrays) -> Arrays:
  parts = (objectives.dpo(beta=h["beta"]), objectives.sft())
  s = arrange.pair(x)
  out = scored.evaluate(objectives.mixture(h["loss_weights"], parts), s)
  dpo, sft = (scored.evaluate(part, s) for part in parts)
  rows = {
    "sigmoid": dpo.per_example_B,
    "sft": jnp.broadcast_to(sft.loss, dpo.per_example_B.shape),
  }
  return arrange.outputs(out) | {"per_example_losses": rows}


def _dpo_token_rewards(h: Arrays, x: Arrays) -> Arrays:
  s = arrange.pair(x)
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
  s = arrange.from_labels(x, ("logits",), lambda rows: rows[:, None])
  function = objectives.avg_logp if h["average_log_prob"] else objectives.seq_logp
  logp_B = function(s)[:, 0]
  mean = s.mean_B(logp_B)
  return {
    "differentiate": mean.total,
    "mean_loss": mean.value,
    "per_example_losses": logp_B,
  }


def _beta_dpo(h: Arrays, x: Arrays) -> Arrays:
  s = arrange.pair(x)
  before = h["state_before"].items()
  state = {name: jnp.asarray(value, float)[0] for name, value in before}
  hparams = {"beta": h["beta"], "alpha": h["a"], "momentum": h["ema_gamma"]}
  frozen = jax.lax.stop_gradient(s)
  log_weight = []

  def recorded(log_weight_B: jax.Array) -> jax.Array:
    log_weight.append(log_weight_B)
    return x["selected_mask"]

  aux, state = objectives.beta_dpo_coupling(frozen, state, recorded, **hparams)
  o = objectives.beta_dpo(**hparams)._replace(prepare=lambda *_: (aux, state))
  out = scored.evaluate(o, s, state)
  return arrange.outputs(out) | {
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
  return arrange.outputs(
    scored.evaluate(o, arrange.pair(x, reference="chosen_mask" in x))
  )


def _simpo_cpo(h: Arrays, x: Arrays) -> Arrays:
  simpo = objectives.simpo(beta=h["beta"], gamma=h["simpo_gamma"])
  o = objectives.mixture((1.0, h["cpo_alpha"]), (simpo, objectives.sft()))
  s = arrange.pair(x, reference=False)
  out = scored.evaluate(o, s)
  logp_BK = objectives.avg_logp(s)
  return {
    "differentiate": out.loss,
    "total_loss": out.loss,
    "sequence_logps": arrange.rows(logp_BK),
    "per_example_losses": scored.evaluate(simpo, s).per_example_B,
    "preference_mean": out.terms["simpo/simpo"],
    "nll_chosen_token_mean": out.terms["sft/sft"],
  }


def _orpo_or_term(h: Arrays, x: Arrays) -> Arrays:
  o = objectives.odds_ratio(weight=h["beta_lambda"])
  out = scored.evaluate(o, arrange.pair(x, reference=False))
  return arrange.outputs(out) | {"mean_log_odds": out.metrics["reward_margin"]}


def _orpo_llamafactory(h: Arrays, x: Arrays) -> Arrays:
  o = objectives.orpo(weight=h["beta"])
  out = scored.evaluate(o, arrange.pair(x, reference=False))
  return arrange.outputs(out) | {"per_example_losses": out.loss[None]}  # a single pair


def _orpo_official_avg_logps(h: Arrays, x: Arrays) -> Arrays:
  # Their mask counts the first pad token of a row as one of the completion.
  mask = x["attention_mask"][:, :-1] > x["prompt_attention_mask"][:, 1:]
  logits, ids = x["logits"][:, :-1], x["input_ids"][:, 1:]
  s = scored.from_logits(logits[:, None], ids[:, None], mask[:, None])
  logp_B = objectives.avg_logp(s)[:, 0]
  mean = s.mean_B(logp_B)
  return {
    "differentiate": mean.total,
    "mean_loss": mean.value,
    "per_example_losses": logp_B,
  }


def _pair(make: Callable[[Arrays], Objective]) -> Callable[[Arrays, Arrays], Arrays]:
  """Adapter of a pairwise loss from a factory of the hyperparameters."""

  def adapter(h: Arrays, x: Arrays) -> Arrays:
    return arrange.outputs(scored.evaluate(make(h), arrange.pair(x)))

  return adapter


def _cpo_ipo(h: Arrays, x: Arrays) -> Arrays:
  s = _without_reference(arrange.pair(x, reference=False))
  return arrange.outputs(scored.evaluate(objectives.ipo_avg(h["beta"]), s))


def _r_dpo(h: Arrays, x: Arrays) -> Arrays:
  s = arrange.pair(x)
  lengths = jnp.asarray([h["chosen_lengths"], h["rejected_lengths"]], s.logp_BKT.dtype)
  o = objectives.r_dpo(h["beta"], h.get("alpha", h.get("lenN_lambda")))
  return arrange.outputs(scored.evaluate(o, s.replace(length_BK=lengths.T)))


def _f_dpo_alpha(h: Arrays) -> Objective:
  alpha = h["alpha"] if "alpha" in h else h["fp"]["alpha_divergence_coef"]
  return objectives.f_dpo(h["beta"], divergences.alpha(alpha))


def _f_dpo_alpha_trl1(h: Arrays) -> Objective:
  divergence = divergences.alpha_from_trl(h["f_alpha_divergence_coef"])
  return objectives.f_dpo(h["beta"], divergence)


def _exo_lists(x: Arrays, n: int) -> Scored:
  """Groups of n contiguous rows; a row's prompt is masked."""
  real = x["attention_mask"][:, 1:] > 0
  completion = jnp.arange(1, x["input_ids"].shape[1])[None] >= x["prompt_lens"]

  def lists(rows: jax.Array) -> jax.Array:
    return rows.reshape(-1, n, *rows.shape[1:])

  logits = [lists(x[name][:, :-1]) for name in ("policy_logits", "ref_logits")]
  ids, mask = lists(x["input_ids"][:, 1:]), lists(real & completion)
  reward_BK = x["energy_labels"].reshape(-1, n)
  return scored.from_logits(logits[0], ids, mask, logits[1], reward_BK=reward_BK)


def _exo_official(h: Arrays, x: Arrays) -> Arrays:
  s = _exo_lists(x, h["N"])
  if h["loss_type"] == "exo-rw":
    o = objectives.exo_list(h["beta_pi"], h["beta_r"])
    return arrange.outputs(scored.evaluate(o, s))
  # Their target of a pair, which does not sum to 1.
  reward_BK = objectives.rewards(s, h["beta_pi"])
  target_BK = jnp.broadcast_to(jnp.asarray([0.0, -10.0]), reward_BK.shape)
  loss_B = objectives.exo_divergence(reward_BK, target_BK, s.present_BK)
  mean = s.mean_B(loss_B).value
  return {"differentiate": mean, "mean_loss": mean}


def _dpo_rw(h: Arrays, x: Arrays) -> Arrays:
  o = objectives.infonca(h["beta_pi"], alpha=h["beta_r"])
  return arrange.outputs(scored.evaluate(o, _exo_lists(x, h["N"])))


def _kl_of(estimator: divergences.KLEstimator, x: Arrays, names: list[str]) -> Arrays:
  logp, ref = (x[name][:, None] for name in names)
  # Their estimates on padding count, until the mask of the recorded sum.
  s = scored.from_token_logps(logp, jnp.ones_like(logp), ref)
  kl = estimator.fn(objectives.token_rewards(s, beta=1.0))[:, 0]
  return {"differentiate": jnp.vdot(kl, x["mask"]), "kl": kl}


def _kl_openrlhf(h: Arrays, x: Arrays) -> Arrays:
  estimator = divergences.KL_ESTIMATORS[h["kl_estimator"]]
  estimator = divergences.clipped(estimator, h["clamp"])
  return _kl_of(estimator, x, ["log_probs", "log_probs_base"])


def _kl_verl(h: Arrays, x: Arrays) -> Arrays:
  k1, k2, names = divergences.K1, divergences.K2, ["logprob", "ref_logprob"]
  k3 = divergences.clipped(divergences.K3, 10.0, 20.0)
  kind = h["kind"].removesuffix("+")
  estimators = {"k1": k1, "kl": k1, "k2": k2, "mse": k2, "abs": divergences.ABSOLUTE}
  estimator = (estimators | {"k3": k3, "low_var_kl": k3})[kind]
  if kind != h["kind"]:
    estimator = divergences.straight_through(estimator, k2)
  return _kl_of(estimator, x, names)


_robust_dpo = _pair(lambda h: objectives.robust_dpo(h["beta"], h["label_smoothing"]))
_hinge_norm = _pair(lambda h: objectives.rso(h["beta"], links.HINGE))
_ipo = _pair(lambda h: objectives.ipo(h["beta"]))
_ipo_avg = _pair(lambda h: objectives.ipo_avg(h.get("beta", h.get("tau"))))
_dpo_norm = _pair(lambda h: objectives.dpo_norm(h["beta"]))
_dpop = _pair(lambda h: objectives.dpop(h["beta"], h["dpop_lambda"]))
_exo = _pair(lambda h: objectives.exo(h["beta"], h["label_smoothing"]))
_GPO = {
  f"gpo_{name}": (
    _pair(lambda h, name=name: objectives.gpo(h["beta"], name)),
    ("_gpo",),
  )
  for name in links.LINKS
}
_F_DPO = {
  f"f_dpo_{theirs}": (_pair(lambda h, d=d: objectives.f_dpo(h["beta"], d)), ("_f_dpo",))
  for theirs, d in {
    "reverse_kl": divergences.REVERSE_KL,
    "forward_kl": divergences.FORWARD_KL,
    "js": divergences.JENSEN_SHANNON,
  }.items()
}

# method: (adapter, the objective files whose signs its cases check)
ADAPTERS = {
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
  "orpo_official_avg_logps": (_orpo_official_avg_logps, ()),
  "robust_dpo": (_robust_dpo, ("_robust_dpo",)),
  "rso_hinge_norm": (_hinge_norm, ("_rso",)),
  "ipo": (_ipo_avg, ("_ipo_avg",)),
  "ipo_sum": (_ipo, ("_ipo",)),
  "cpo_ipo": (_cpo_ipo, ("_ipo_avg",)),
  "dpo_length_norm": (_dpo_norm, ("_dpo_norm",)),
  "dpop": (_dpop, ("_dpop",)),
  "r_dpo": (_r_dpo, ("_r_dpo",)),
  **_GPO,
  **_F_DPO,
  "f_dpo_alpha": (_pair(_f_dpo_alpha), ("_f_dpo",)),
  "f_dpo_alpha_trl1": (_pair(_f_dpo_alpha_trl1), ()),
  "exo_pair": (_exo, ("_exo",)),
  "exo_official": (_exo_official, ("_exo", "_exo_list")),
  "dpo_rw_exo_repo": (_dpo_rw, ()),
  "kl_estimator_openrlhf": (_kl_openrlhf, ()),
  "kl_penalty_verl": (_kl_verl, ()),
}
