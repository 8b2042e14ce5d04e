"""Thumbs up or down, and negatives only."""

import jax.numpy as jnp

from tests.golden_adapters import arrange
from tests.golden_adapters.arrange import Arrays
from xpo_jax import objectives, scored
from xpo_jax.types import Scored


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


# method: (adapter, the files whose every sign its cases guard)
ADAPTERS = {"kto": (_kto, ("_kto",))}
ELSEWHERE = {}
EXCEPTIONS: dict[str, str] = {}
