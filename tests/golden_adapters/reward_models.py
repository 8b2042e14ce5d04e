"""Reward and preference models."""

import jax.numpy as jnp

from tests.golden_adapters import arrange
from tests.golden_adapters.arrange import Arrays
from xpo_jax import objectives, scored


def _rm_pairwise(h: Arrays, x: Arrays) -> Arrays:
  value = arrange.sides(x["chosen"], x["rejected"])[..., None]
  s = scored.from_token_logps(None, jnp.ones_like(value), reward_head_BKT=value)
  centring = h.get("center_rewards_coefficient") or 0.0
  o = objectives.bradley_terry(margin=x["margin"] or 0.0, centring=centring)
  out = scored.evaluate(o, s)
  # The rows' summands must make up the loss too.
  return {"differentiate": out.loss, "loss": s.mean_B(out.per_example_B).value}


def _rm_logexp(h: Arrays, x: Arrays) -> Arrays:
  """A certain soft label is the plain loss, so that one gives each output."""
  value = arrange.sides(x["chosen"], x["rejected"])[..., None]
  certain = arrange.sides(jnp.ones(len(value)), jnp.zeros(len(value)))
  s = scored.from_token_logps(
    None, jnp.ones_like(value), reward_head_BKT=value, reward_BK=certain
  )
  plain = scored.evaluate(objectives.bradley_terry(), s)
  soft = scored.evaluate(objectives.soft_bradley_terry(), s)
  return {"differentiate": plain.loss, "loss": soft.loss}


def _soft_label(h: Arrays, x: Arrays) -> Arrays:
  lead, p = x["reward_diff_first_minus_second"], x["p_first"]
  value = arrange.sides(lead, jnp.zeros_like(lead))[..., None]
  s = scored.from_token_logps(
    None, jnp.ones_like(value), reward_head_BKT=value, reward_BK=arrange.sides(p, p)
  )
  out = scored.evaluate(objectives.soft_bradley_terry(), s)
  return {"differentiate": out.loss, "loss": out.loss}


def _kwise(h: Arrays, x: Arrays) -> Arrays:
  reward, rank, present = x["rewards"], x["rank"], None
  if isinstance(reward, list):  # lists of unequal lengths
    (reward, present), (rank, _) = arrange.padded(reward), arrange.padded(rank)
  value = reward[..., None]
  order = jnp.flip(jnp.arange(value.shape[1]))[rank.astype(int)]  # rank 0 is the best
  s = scored.from_token_logps(
    None,
    jnp.ones_like(value),
    reward_head_BKT=value,
    reward_BK=order,
    present_BK=present,
  )
  out = scored.evaluate(objectives.kwise(), s)
  return {
    "differentiate": out.loss,
    "loss": out.loss,
    "per_prompt": out.per_example_B,
  }


# method: (adapter, the objective files whose signs its cases check)
ADAPTERS = {
  "rm_pairwise_trl": (_rm_pairwise, ("_bradley_terry",)),
  "rm_pairwise_openrlhf": (_rm_pairwise, ()),
  "rm_logexp_openrlhf": (_rm_logexp, ("_bradley_terry",)),
  "rm_soft_label_ce": (_soft_label, ("_bradley_terry",)),
  "rm_kwise_instructgpt": (_kwise, ("_kwise",)),
}
