"""Group baselines, GRPO and its variants, pairs of samples."""

import jax.numpy as jnp

from tests.golden_adapters import arrange
from tests.golden_adapters.arrange import Arrays
from xpo_jax import objectives, scored
from xpo_jax.ops import groups, masked, pairing, policy_loss, returns
from xpo_jax.types import Array, Aux, Objective, Scored, State

_OVER = {
  "group": groups.Over.GROUP,
  "batch": groups.Over.BATCH,
  "none": groups.Over.NOTHING,
}


def _grpo_advantages(h: Arrays, x: Arrays) -> Arrays:
  rewards = x["rewards_per_func"]
  rewards = rewards.reshape(-1, h["num_generations"], rewards.shape[-1])
  each = jnp.ones(rewards.shape[-1])
  reward, present = groups.weighted_sum(rewards, each, ~jnp.isnan(rewards))
  over = _OVER[h["scale_rewards"]]
  advantage = groups.standardise(reward, present, over=over, eps=h["eps"])
  return {"advantages": advantage.reshape(-1)}


def _rloo_advantages(h: Arrays, x: Arrays) -> Arrays:
  K = h["num_generations"]
  tokens = ("old_per_token_logps", "completion_mask", "ref_per_token_logps")
  old, mask, ref = (x[name].reshape(-1, K, x[name].shape[-1]) for name in tokens)
  reward = x["rewards"].reshape(-1, K)
  s = scored.from_token_logps(
    old,
    mask,
    ref,
    old_logp_BKT=old,
    reward_BK=reward,
    present_BK=~jnp.isnan(reward),
  )
  clip_range = h["reward_clip_range"] and tuple(h["reward_clip_range"])
  advantage = objectives.rloo_advantages(s, h["beta"] or None, reward_range=clip_range)
  if h["normalize_advantages"]:
    over = groups.Over.BATCH
    advantage = groups.standardise(advantage, s.present_BK, over=over, eps=h["eps"])
  return {"advantages": advantage.reshape(-1)}


def _outcome_advantages_verl(h: Arrays, x: Arrays) -> Arrays:
  by_group = arrange.Groups(x["group_index"])

  def flat(x_BKT: Array) -> Array:
    return by_group.rows(masked.zero_padding(x_BKT, mask))

  def on_tokens(x_BK: Array) -> Array:
    return jnp.broadcast_to(x_BK[..., None], mask.shape)

  reward, mask = by_group.columns(x["token_rewards"]), by_group.columns(x["mask"])
  score, every = masked.sum_T(reward, mask), by_group.present_BK
  baseline = on_tokens(by_group.columns(x["reward_baselines"]))
  remax, _ = returns.gae(reward, baseline, mask, gamma=1.0, lam=1.0)
  later = returns.discounted(reward, mask, h["rpp_gamma"])
  return {
    "grpo": flat(on_tokens(groups.standardise(score, every, eps=h["grpo_eps"]))),
    "dr_grpo": flat(on_tokens(groups.centre(score, every))),
    "rloo": flat(on_tokens(groups.leave_one_out_advantage(score, every))),
    "remax": flat(remax),
    "remax_returns": flat(returns.discounted(reward, mask, 1.0)),
    "reinforce_pp_returns": flat(later),
  }


def _one_prompt(o: Objective, s: Scored, advantage_K: Array) -> Array:
  """The loss on recorded advantages, also passed as rewards."""
  aux = Aux(rows=advantage_K[None])
  given = o._replace(prepare=lambda s, state, key: (aux, state))
  return scored.evaluate(given, s.replace(reward_BK=advantage_K[None])).loss


def _variant(h: Arrays) -> Objective:
  clip, beta = (h["epsilon_low"], h["epsilon_high"]), h["beta"] or None
  if h["importance_sampling_level"] == "sequence":
    return objectives.gspo(*clip, beta)
  kind = h["loss_type"]
  if kind == "cispo":
    return objectives.cispo(h["epsilon_high"], beta)
  if kind == "dr_grpo":
    length = h["max_completion_length"]
    return objectives.dr_grpo(*clip, length, beta, h["delta"])
  # On a single prompt dapo's mean over a prompt is TRL's over the batch.
  return objectives.get(kind)(*clip, beta, h["delta"])


def _grpo_loss(h: Arrays, x: Arrays) -> Arrays:
  names = ("per_token_logps", "mask", "ref_per_token_logps", "old_per_token_logps")
  logp, mask, ref, old = (x[name][None] for name in names)
  s = scored.from_token_logps(logp, mask, ref, old_logp_BKT=old)
  loss = _one_prompt(_variant(h), s, x["advantages"])
  return {"differentiate": loss, "loss": loss}


def _gspo_openrlhf(h: Arrays, x: Arrays) -> Arrays:
  logp, mask, old = (x[name][None] for name in ("log_probs", "mask", "old_log_probs"))
  s = scored.from_token_logps(logp, mask, old_logp_BKT=old)
  surrogate_BK = policy_loss.clipped_surrogate(
    objectives.avg_logp(s),
    objectives.avg_logp(s.replace(logp_BKT=s.old_logp_BKT)),
    x["advantages"][None, :, 0],
    h["clip_eps_low"],
    h["clip_eps_high"],
  )
  # That code averages the ratio over tokens, empty completions excluded.
  on_tokens = jnp.broadcast_to(surrogate_BK[..., None], mask.shape)
  loss = policy_loss.mean_of_means(s, on_tokens, eps=1e-8).value
  return {"differentiate": loss, "loss": loss}


def _rloo_loss(h: Arrays, x: Arrays) -> Arrays:
  names = ("per_token_logps", "completion_mask", "old_per_token_logps")
  logp, mask, old = (x[name][None] for name in names)
  s = scored.from_token_logps(logp, mask, old_logp_BKT=old)
  sampled = s.replace(logp_BKT=s.old_logp_BKT)
  loss_BK = policy_loss.clipped_surrogate(
    objectives.seq_logp(s),
    objectives.seq_logp(sampled),
    x["advantages"][None],
    h["epsilon_low"],
    h["epsilon_high"],
  )
  loss = s.mean_BK(loss_BK).value
  return {"differentiate": loss, "loss": loss}


def _with_ties(o: Objective) -> Objective:
  """The first of two samples is chosen where rewards tie, and the pair counts."""

  def prepare(s: Scored, state: State, key: Array) -> tuple[Aux, State]:
    del key
    pairs = pairing.first_two(s.reward_BK, s.present_BK)
    return Aux(rows=(pairs._replace(keep_B=s.present_BK[:, 0]), ())), state

  return o._replace(prepare=prepare)


def _online_dpo(h: Arrays, x: Arrays) -> Arrays:
  names = ("logprobs", "completion_mask", "ref_logprobs")
  logp, mask, ref = (arrange.halves(x[name]) for name in names)
  s = scored.from_token_logps(logp, mask, ref, reward_BK=arrange.halves(x["rewards"]))
  online = {
    "sigmoid": objectives.online_dpo,
    "ipo": lambda beta: objectives.best_against_worst(objectives.ipo(beta)),
  }
  loss = scored.evaluate(_with_ties(online[h["loss_type"]](h["beta"])), s).loss
  rows = arrange.row_by_row(_with_ties(objectives.online_dpo(beta=1.0)), s)
  pairs = pairing.first_two(s.reward_BK, s.present_BK)
  place = arrange.halves(jnp.arange(len(x["rewards"])))

  def index(side_B: Array) -> Array:
    return jnp.take_along_axis(place, side_B[:, None], axis=1)[:, 0]

  return {
    "differentiate": loss,
    "loss": loss,
    "logits": rows.metrics["reward_margin"],
    "chosen_indices": index(pairs.chosen_B),
    "rejected_indices": index(pairs.rejected_B),
  }


def _xpo_loss(h: Arrays, x: Arrays) -> Arrays:
  logp = arrange.sides(x["model_logprobs_ref_data"], x["model_logprobs_model_data"])
  ref = arrange.sides(x["ref_logprobs_ref_data"], x["ref_logprobs_model_data"])
  won = x["chosen_mask"] > 0
  reward = arrange.sides(~won, won)
  s = scored.from_token_logps(logp, jnp.ones_like(logp), ref, reward_BK=reward)
  bonus = objectives.exploration(h["alpha"])
  if h["loss_type"] == "sigmoid":
    pair = objectives.online_dpo(h["beta"])
    whole = objectives.exploratory_dpo(h["beta"], h["alpha"])
  else:
    pair = objectives.best_against_worst(objectives.ipo(h["beta"]))
    whole = objectives.mixture((1.0, 1.0), (pair, bonus))
  loss = scored.evaluate(whole, s).loss
  return {
    "differentiate": loss,
    "loss": loss,
    "dpo_losses": arrange.row_by_row(pair, s).loss,
    "xpo_losses": arrange.row_by_row(bonus, s).loss,
  }


# method: (adapter, the objective files whose signs its cases check)
ADAPTERS = {
  "grpo_advantages": (_grpo_advantages, ()),
  "rloo_advantages": (_rloo_advantages, ()),
  "outcome_advantages_verl": (_outcome_advantages_verl, ()),
  "grpo_loss": (_grpo_loss, ()),  # the test of each variant checks it
  "gspo_openrlhf": (_gspo_openrlhf, ()),
  "rloo_loss": (_rloo_loss, ()),
  "online_dpo": (_online_dpo, ("_online_dpo",)),
  "xpo_loss": (_xpo_loss, ()),
}
