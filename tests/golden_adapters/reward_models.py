"""Reward and preference models."""

import jax.numpy as jnp

from tests.golden_adapters import arrange
from tests.golden_adapters.arrange import Arrays
from xpo_jax import objectives, scored


def _rm_pairwise(h: Arrays, x: Arrays) -> Arrays:
  value = arrange.sides(x["chosen"], x["rejected"])[..., None]
  s = scored.from_token_logps(None, jnp.ones_like(value), value_BKT=value)
  centring = h.get("center_rewards_coefficient") or 0.0
  o = objectives.bradley_terry(margin=x["margin"] or 0.0, centring=centring)
  out = scored.evaluate(o, s)
  # The rows' summands must make up the loss too.
  return {"differentiate": out.loss, "loss": s.mean_B(out.per_example_B).value}


# method: (adapter, the files whose every sign its cases guard)
ADAPTERS = {
  "rm_pairwise_trl": (_rm_pairwise, ("_bradley_terry",)),
  "rm_pairwise_openrlhf": (_rm_pairwise, ()),
}
ELSEWHERE = {}
EXCEPTIONS: dict[str, str] = {}
