"""Losses on tokens."""


from tests.golden_adapters import arrange
from tests.golden_adapters.arrange import Arrays
from xpo_jax import objectives, scored
from xpo_jax.types import Objective

_LOGITS = ("policy_logits", "reference_logits")


def _tdpo(o: Objective, x: Arrays) -> Arrays:
  s = arrange.from_labels(x, _LOGITS, arrange.halves, needs=o.needs)
  reward_BK = objectives.tdpo_rewards(s, o.knobs["beta"])
  return arrange.outputs(scored.evaluate(o, s)) | {
    "logps_margin": arrange.rows(objectives.log_ratio(s)),
    "position_kl": arrange.rows(objectives.sequential_kl(s)),
    "policy_logps": arrange.rows(objectives.seq_logp(s)),
    "chosen_rewards": reward_BK[:, 0],
    "rejected_rewards": reward_BK[:, 1],
  }


def _tdpo1(h: Arrays, x: Arrays) -> Arrays:
  return _tdpo(objectives.tdpo1(h["beta"]), x)


def _tdpo2(h: Arrays, x: Arrays) -> Arrays:
  return _tdpo(objectives.tdpo2(h["beta"], h["alpha"]), x)


def _tdpo_underflow(h: Arrays, x: Arrays) -> Arrays:
  del h
  s = arrange.from_labels(x, _LOGITS, arrange.halves, needs=objectives.tdpo1().needs)
  return {"stable_position_kl": arrange.rows(objectives.sequential_kl(s))}


# method: (adapter, the files whose every sign its cases guard)
ADAPTERS = {
  "tdpo1": (_tdpo1, ("_tdpo1",)),
  "tdpo2": (_tdpo2, ("_tdpo2",)),
  "tdpo_underflow_bug": (_tdpo_underflow, ()),
}
ELSEWHERE = {
  "tdpo_underflow_bug": {"official_position_kl_is_nan"},  # of that code
}
EXCEPTIONS: dict[str, str] = {}
