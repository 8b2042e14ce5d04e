"""Contrastive, calibrated, anchored and length-aware relatives of DPO."""

import jax
import jax.numpy as jnp

from tests.golden_adapters import arrange
from tests.golden_adapters.arrange import Arrays
from xpo_jax import objectives, scored
from xpo_jax.types import Objective, Part, Scored


def _no_reference(x: Arrays) -> Scored:
  return arrange.pair(x, reference=False)


def _zero_reference(x: Arrays) -> Scored:
  s = _no_reference(x)
  return s.replace(ref_logp_BKT=jnp.zeros_like(s.logp_BKT))


def _slic(h: Arrays, x: Arrays) -> Arrays:
  names = [f"policy_{name}_logps" for name in ("chosen", "rejected", "target")]
  logp_BK = jnp.stack([x[name] for name in names], 1)
  length_BK = jnp.ones_like(logp_BK)
  hinge = objectives.slic(delta=h["delta"], weight=0.0)
  target = objectives.nll("sequence_sum")
  parts = (Part(1.0, hinge, "pair"), Part(h["reg_lambda"], target, "target"))

  def loss(logp_BK: jax.Array, length_BK: jax.Array) -> jax.Array:
    batches = {
      "pair": scored.from_sequence_logps(logp_BK[:, :2], length_BK[:, :2]),
      "target": scored.from_sequence_logps(logp_BK[:, 2:], length_BK[:, 2:]),
    }
    return scored.evaluate_parts(parts, batches).loss

  whole = loss(logp_BK, length_BK)
  rows = jax.vmap(loss)(logp_BK[:, None], length_BK[:, None])
  return {"differentiate": whole, "mean_loss": whole, "per_example_losses": rows}


def _with_nll(preference: Objective, h: Arrays, s: Scored, logp_BK: jax.Array):
  """A preference loss and its NLL per token of the batch."""
  likelihood = objectives.nll("token_mean")
  o = objectives.mixture((1.0, h["cpo_alpha"]), (preference, likelihood))
  out = scored.evaluate(o, s)
  rows = scored.evaluate(preference, s)
  return {
    "differentiate": out.loss,
    "total_loss": out.loss,
    "sequence_logps": arrange.rows(logp_BK),
    "per_example_losses": rows.per_example_B,
    "preference_mean": rows.loss,
    "nll_chosen_token_mean": scored.evaluate(likelihood, s).loss,
  }


def _cpo(h: Arrays, x: Arrays) -> Arrays:
  if "labels" not in x:
    o = objectives.cpo(h["beta"], 0.0, h["label_smoothing"])
    return arrange.outputs(scored.evaluate(o, _no_reference(x)))
  if h["loss_type"] == "ipo":
    s = _zero_reference(x)
    ipo = objectives.ipo_avg(h["beta"])
    return _with_nll(ipo, h, s, objectives.avg_logp(s))
  s = _no_reference(x)
  preference = objectives.cpo(h["beta"], 0.0, h["label_smoothing"])
  o = objectives.cpo(h["beta"], h["cpo_alpha"], h["label_smoothing"], "token_mean")
  out = scored.evaluate(o, s)
  return _with_nll(preference, h, s, objectives.seq_logp(s)) | {
    "differentiate": out.loss,
    "total_loss": out.loss,
    "preference_mean": out.terms["cpo"],
    "nll_chosen_token_mean": out.terms["nll"],
  }


def _arpo(h: Arrays, x: Arrays) -> Arrays:
  names = ("num_tokens_chosen_then_rejected", "num_non_pad_tokens")
  (length,) = [x[name] for name in names if name in x]
  s = _no_reference(x).replace(length_BK=arrange.halves(length))
  knobs = {"eta": h["relax_cofficient_2"], "relax": h["relax_cofficient_1"]}
  o = objectives.arpo(h["beta"], weight=0.0, **knobs)
  return arrange.outputs(scored.evaluate(o, s))


def _alphapo(h: Arrays, x: Arrays) -> Arrays:
  s = _no_reference(x)
  o = objectives.alphapo(h["beta"], h["simpo_gamma"], h["alpha"])
  if "labels" not in x:
    return arrange.outputs(scored.evaluate(o, s))
  return _with_nll(o, h, s, objectives.avg_logp(s))


# method: (adapter, the files whose every sign its cases guard)
ADAPTERS = {
  "slic_hf": (_slic, ("_slic", "_nll")),
  "alphapo": (_alphapo, ("_alphapo",)),
}
ELSEWHERE = {}
EXCEPTIONS: dict[str, str] = {}
