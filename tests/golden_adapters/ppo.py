"""Token-level policy gradients: returns, whitening, controllers, PPO.

Public codes lay out `[B, T]`; here K is 1.
"""

import jax
import jax.numpy as jnp

from tests.golden_adapters.arrange import Arrays
from xpo_jax import objectives, scored
from xpo_jax.ops import divergences, kl_control, masked, policy_loss, returns, token_mdp
from xpo_jax.types import Array, AuxLoss, Layout, Loss, Mean, Objective, Scored


def _one(x_BT: Array) -> Array:
  return jnp.asarray(x_BT)[:, None]


def _rows(x_BKT: Array) -> Array:
  return x_BKT[:, 0]


def _objective(per_token) -> Objective:
  """The token mean of a loss."""

  def loss(s: Scored, aux) -> Loss:
    del aux
    return Loss({"loss": policy_loss.token_mean(s, per_token())}, {})

  return Objective(
    name="given",
    hparams={},
    layout=Layout.SAMPLED,
    stats=frozenset(),
    loss=loss,
  )


def _ppo_gae(h: Arrays, x: Arrays) -> Arrays:
  position = jnp.broadcast_to(jnp.arange(x["values"].shape[1]), x["values"].shape)
  mask = _one(position <= x["sequence_lengths"][:, None]).astype(jnp.float32)
  longer = returns.one_longer(mask)
  s = scored.from_token_logps(_one(x["logprobs"]), mask, _one(x["ref_logprobs"]))
  estimator = divergences.KL_ESTIMATORS[h["kl_estimator"]]
  kl = estimator.fn(objectives.token_rewards(s))
  nothing = jnp.zeros_like(kl)
  score = returns.place(_one(x["scores"]), longer)
  reward = returns.kl_shaped(score, kl, h["kl_coef"])
  if h["whiten_rewards"]:
    reward = returns.whiten(reward, longer, shift_mean=False, unbiased=True)
    reward = masked.zero_padding(reward, longer)
  value = masked.zero_padding(_one(x["values"]), longer)
  advantage, target = returns.gae(reward, value, longer, h["gamma"], h["lam"])
  advantage = returns.whiten(advantage, mask, unbiased=True)
  return {
    "kl": _rows(kl),
    "non_score_reward": _rows(returns.kl_shaped(nothing, kl, h["kl_coef"])),
    "rewards": _rows(reward),
    "values_masked": _rows(value),
    "advantages": _rows(masked.zero_padding(advantage, mask)),
    "returns": _rows(target),
    "padding_mask": _rows(mask == 0),
    "padding_mask_p1": _rows(longer == 0),
  }


def _clipped_pair(
  logp: tuple, value: tuple, masks: tuple, clips: tuple, weight: float
) -> Arrays:
  """PPO's two terms, each with its own mask."""
  policy = _objective(lambda: policy_loss.clipped_surrogate(*logp, clips[0], clips[0]))
  fit = _objective(lambda: policy_loss.clipped_value(*value, clips[1]))
  batches = {
    "policy": scored.from_token_logps(logp[0], masks[0]),
    "value": scored.from_token_logps(value[0], masks[1]),
  }
  parts = (AuxLoss(1.0, policy, "policy"), AuxLoss(weight, fit, "value"))
  out = scored.evaluate_parts(parts, batches)
  share = policy_loss.value_clipped_share(*value, clips[1])
  return {
    "differentiate": out.loss,
    "loss": out.loss,
    "pg_loss": out.terms["policy/loss"],
    "vf_loss": scored.evaluate(fit, batches["value"]).loss,
    "vf_clipfrac": policy_loss.token_mean(batches["value"], share).value,
  }


def _ppo_loss(h: Arrays, x: Arrays) -> Arrays:
  names = ("new_logprobs", "old_logprobs_masked", "advantages")
  values = ("vpred", "old_values_masked", "returns")
  masks = tuple(_one(x[f"padding_mask{end}"] == 0) for end in ("", "_p1"))
  outputs = _clipped_pair(
    tuple(_one(x[name]) for name in names),
    tuple(_one(x[name]) for name in values),
    masks,
    (h["cliprange"], h["cliprange_value"]),
    h["vf_coef"],
  )
  return outputs | {
    "vf_clipfrac": jnp.float32(outputs["vf_clipfrac"])
  }  # as it takes it


def _ppo_trlx(h: Arrays, x: Arrays) -> Arrays:
  value, reward, mask = (_one(x[name]) for name in ("values", "rewards", "mask"))
  every = jnp.ones_like(mask)
  advantage, target = returns.gae(reward, value, every, h["gamma"], h["lam"])
  advantage = returns.whiten(advantage, every, unbiased=True)
  new, old = _one(x["new_logprobs"]), _one(x["old_logprobs"])
  outputs = _clipped_pair(
    (new, old, advantage),
    (_one(x["new_values"]), value, target),
    (mask, mask),
    (h["cliprange"], h["cliprange_value"]),
    h["vf_coef"],
  )
  s = scored.from_token_logps(new, mask)
  clips = (h["cliprange"], h["cliprange"])
  share = policy_loss.clipped_share(new, old, advantage, *clips)
  moved = objectives.token_rewards(scored.from_token_logps(old, mask, new))
  everywhere = s.replace(mask_BKT=every)  # its k3 is averaged over padding too
  return outputs | {
    "advantages": _rows(advantage),
    "returns": _rows(target),
    "pg_clipfrac": policy_loss.token_mean(s, share).value,
    "approx_kl": policy_loss.token_mean(everywhere, divergences.k3(moved)).value,
  }


def _policy(x: Arrays, names: tuple, low: float, high: float, dual: float | None):
  """Record, loss per token and clipped fraction of a code that clips at 20 nats."""
  logp, old, advantage = (_one(x[name]) for name in names)
  s = scored.from_token_logps(logp, _one(x["mask"]), old)
  clips = (low, high, 20.0)
  loss = policy_loss.clipped_surrogate(logp, old, advantage, *clips)
  share = policy_loss.clipped_share(logp, old, advantage, low, high)
  if dual is not None:
    loss = policy_loss.dual_clipped(loss, advantage, dual)
  return s, loss, share


def _mean_of_means(s: Scored, x_BKT: Array) -> Mean:
  """As OpenRLHF and verl keep an empty completion from dividing by 0."""
  return policy_loss.mean_of_means(s, x_BKT, eps=1e-8)


def _ppo_policy_loss_openrlhf(h: Arrays, x: Arrays) -> Arrays:
  names = ("log_probs", "old_log_probs", "advantages")
  clips = (h["clip_eps_low"], h["clip_eps_high"], h["dual_clip"])
  s, loss, share = _policy(x, names, *clips)
  by_token = h["token_level_loss"]
  average = policy_loss.token_mean if by_token else _mean_of_means
  swapped = s.replace(logp_BKT=s.ref_logp_BKT, ref_logp_BKT=s.logp_BKT)
  kl = divergences.k1(objectives.token_rewards(swapped))
  out = average(s, loss).value
  return {
    "differentiate": out,
    "loss": out,
    "clip_ratio": policy_loss.token_mean(s, share).value,
    "ppo_kl": policy_loss.token_mean(s, kl).value,
  }


def _verl_average(mode: str, s: Scored, x_BKT: Array, length: float | None) -> Array:
  """One of verl's `loss_agg_mode`s; the last adds completions up, without a mean."""
  divisor = length or x_BKT.shape[-1]
  averages = {
    "token-mean": lambda: policy_loss.token_mean(s, x_BKT).value,
    "seq-mean-token-mean": lambda: _mean_of_means(s, x_BKT).value,
    "seq-mean-token-sum": lambda: policy_loss.mean_of_sums(s, x_BKT).value,
    "seq-mean-token-sum-norm": lambda: (
      policy_loss.mean_of_sums(s, x_BKT, length=divisor).total
    ),
  }
  return averages[mode]()


def _ppo_policy_loss_verl(h: Arrays, x: Arrays) -> Arrays:
  names = ("log_prob", "old_log_prob", "advantages")
  low, high = (h.get(f"clip_ratio_{end}", h["clip_ratio"]) for end in ("low", "high"))
  s, loss, _ = _policy(x, names, low, high, h["clip_ratio_c"])
  out = _verl_average(h["loss_agg_mode"], s, loss, h.get("loss_scale_factor"))
  return {"differentiate": out, "loss": out}


def _value(x: Arrays, names: tuple, clip: float) -> tuple[Scored, Array, Mean]:
  value, old, target = (_one(x[name]) for name in names)
  s = scored.from_token_logps(value, _one(x["mask"]))
  loss = policy_loss.clipped_value(value, old, target, clip)
  share = policy_loss.value_clipped_share(value, old, target, clip)
  return s, loss, policy_loss.token_mean(s, share)


def _ppo_value_loss_openrlhf(h: Arrays, x: Arrays) -> Arrays:
  by_token = h["token_level_loss"]
  average = policy_loss.token_mean if by_token else _mean_of_means
  clip = jnp.inf if h["clip_eps"] is None else h["clip_eps"]
  s, loss, _ = _value(x, ("values", "old_values", "returns"), clip)
  out = average(s, loss).value
  return {"differentiate": out, "loss": out}


def _ppo_value_loss_verl(h: Arrays, x: Arrays) -> Arrays:
  names = ("vpreds", "values", "returns")
  s, loss, share = _value(x, names, h["cliprange_value"])
  mode = h.get("loss_agg_mode", "token-mean")
  out = _verl_average(mode, s, loss, h.get("loss_scale_factor"))
  return {"differentiate": out, "loss": out, "clipfrac": share.value}


def _gae_openrlhf(h: Arrays, x: Arrays) -> Arrays:
  kl, value, mask = (_one(x[name]) for name in ("kl", "values", "mask"))
  score = returns.place(_one(x["score"]), mask, max_score=10.0)
  reward = returns.kl_shaped(score, kl, h["kl_coef"])
  advantage, target = returns.gae(reward, value, mask, h["gamma"], h["lam"])
  outputs = {"token_rewards": reward, "advantages": advantage, "returns": target}
  return {name: _rows(x_BKT) for name, x_BKT in outputs.items()}


def _gae_verl(h: Arrays, x: Arrays) -> Arrays:
  reward, value, mask = (_one(x[name]) for name in ("token_rewards", "values", "mask"))
  advantage, target = returns.gae(reward, value, mask, h["gamma"], h["lam"])
  # Its returns on padding are the values there.
  return {
    "advantages_whitened": _rows(returns.whiten(advantage, mask, unbiased=True)),
    "returns": _rows(jnp.where(mask > 0, target, value)),
  }


def _whiten(h: Arrays, x: Arrays) -> Arrays:
  mask = x.get("mask", jnp.ones_like(x["values"]))  # without a mask, all tokens count
  white = returns.whiten(
    x["values"],
    mask,
    shift_mean=h["shift_mean"],
    unbiased=h["unbiased"],
    eps=h["eps"],
  )
  mean, variance = returns.moments(x["values"], mask, unbiased=h["unbiased"])
  outputs = {"out": white, "mean": mean, "var": variance}
  if "cotangent_masked" in x:
    outputs["differentiate"] = jnp.vdot(white, x["cotangent_masked"])
  return outputs


def _remax_official(h: Arrays, x: Arrays) -> Arrays:
  begin = range(x["prompt_len"])[-1]  # its prediction is the first completion token
  names = ("action_mask", "kl_penalty_per_token", "log_probs")
  mask, penalty, logp = (_one(x[name])[..., begin:] for name in names)
  # It applies one discount too many: that of a score one past the end.
  room = ((0, 0), (0, 0), (0, 1))
  longer = returns.one_longer(jnp.pad(mask, room))
  score = returns.place(_one(x["reward_minus_greedy"]), longer, h["clip_reward_value"])
  ahead = returns.discounted(score, longer, h["gamma"])[..., :-1]
  # The penalty is recorded with its sign, and added at its token.
  total = masked.zero_padding(returns.kl_shaped(ahead, penalty, beta=-1.0), mask)
  s = scored.from_token_logps(logp, mask)
  loss = policy_loss.token_mean(s, policy_loss.policy_gradient(logp, total)).value
  whole = jnp.pad(_rows(total), ((0, 0), (begin, 0)))
  return {"differentiate": loss, "loss": loss, "returns": whole}


def _reinforce_returns_openrlhf(h: Arrays, x: Arrays) -> Arrays:
  reward, mask = _one(x["token_rewards"]), _one(x["mask"])
  return {"returns": _rows(returns.discounted(reward, mask, h["gamma"]))}


def _adaptive_kl_controller(h: Arrays, x: Arrays) -> Arrays:
  rule = kl_control.adaptive_kl(h["init"], h["target"], h["horizon"], h["clip"])

  def step(beta: Array, seen: Array) -> tuple[Array, Array]:
    new = rule.update(beta, kl_control.Observation(seen[0], seen[1]))
    return new, new

  start = jnp.asarray(rule.beta, float)
  return {"values": jax.lax.scan(step, start, x["kl_and_nsteps"])[1]}


def _token_mdp_soft_bellman(h: Arrays, x: Arrays) -> Arrays:
  V, H = h["V"], h["H"]
  names = sorted(x["reward"], key=lambda name: (len(name), name))
  reward = jnp.stack([jnp.asarray(x["reward"][name]) for name in names])
  ref = jnp.log(jnp.stack([jnp.asarray(x["pi_ref"][name]) for name in names]))
  following = token_mdp.tree(V, H)
  best = token_mdp.soft_bellman(reward, ref, following, h["beta"], H)
  paths = _one(token_mdp.sequences(V, H))
  logp = token_mdp.along(best.logp_SV, following, paths)
  return {
    "Q_star": dict(zip(names, best.q_SV, strict=True)),
    "V_star": dict(zip(names, best.value_S, strict=True)),
    "pi_star": dict(zip(names, jnp.exp(best.logp_SV), strict=True)),
    "log sequence_pi_star": _rows(masked.sum_T(logp, jnp.ones_like(logp))),
  }


def _rto_token_reward(h: Arrays, x: Arrays) -> Arrays:
  roles = ("dpo", "base", "actor")
  dpo, ref, actor = (_one(x[f"{role}_action_logps"]) for role in roles)
  mask, score = _one(x["action_mask"]), _one(x["reward_model_score"])
  bound = h["dpo_reward_clip"] or jnp.inf  # 0 means no clip
  credit = returns.rto_credit(dpo, ref, mask, h["dpo_reward_scale"], bound)
  s = scored.from_token_logps(actor, mask, ref)
  kl = divergences.k1(objectives.token_rewards(s))
  reward = returns.rto_reward(credit, score, kl, mask, h["kl_coef"], 10.0)
  value = _one(x["values"])
  advantage, target = returns.gae(reward, value, mask, h["gamma"], h["lambd"])
  outputs = {"token_dpo_reward": credit, "token_reward": reward, "kl": kl}
  outputs |= {"advantages": advantage, "returns": target}
  return {name: _rows(x_BKT) for name, x_BKT in outputs.items()}


# method: (adapter, the objective files whose signs its cases check)
ADAPTERS = {
  "ppo_gae": (_ppo_gae, ()),
  "ppo_loss": (_ppo_loss, ()),
  "ppo_trlx": (_ppo_trlx, ()),
  "ppo_policy_loss_openrlhf": (_ppo_policy_loss_openrlhf, ()),
  "ppo_policy_loss_verl": (_ppo_policy_loss_verl, ()),
  "ppo_value_loss_openrlhf": (_ppo_value_loss_openrlhf, ()),
  "ppo_value_loss_verl": (_ppo_value_loss_verl, ()),
  "gae_openrlhf": (_gae_openrlhf, ()),
  "gae_verl": (_gae_verl, ()),
  "masked_whiten": (_whiten, ()),
  "whiten_openai_style": (_whiten, ()),
  "remax_official": (_remax_official, ()),
  "reinforce_returns_openrlhf": (_reinforce_returns_openrlhf, ()),
  "adaptive_kl_controller": (_adaptive_kl_controller, ()),
  "token_mdp_soft_bellman": (_token_mdp_soft_bellman, ()),
  "rto_token_reward": (_rto_token_reward, ()),
}
