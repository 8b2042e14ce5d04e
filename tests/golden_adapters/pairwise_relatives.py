"""Contrastive, calibrated, anchored and length-aware relatives of DPO."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from tests.golden_adapters import arrange
from tests.golden_adapters.arrange import Arrays
from xpo_jax import objectives, scored
from xpo_jax.types import Aux, Evaluation, Objective, Part, Scored, State, no_state


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


def _of(objective: Callable[[float], Objective]) -> Callable[[Arrays, Arrays], Arrays]:
  """The adapter of an objective on pairs whose only knob is beta."""

  def adapter(h: Arrays, x: Arrays) -> Arrays:
    return arrange.outputs(scored.evaluate(objective(h["beta"]), arrange.pair(x)))

  return adapter


def _apo_zero_unpaired(h: Arrays, x: Arrays) -> Arrays:
  s = scored.from_logits(
    x["policy_logits"][:, None, :-1],
    x["input_ids"][:, None, 1:],
    x["completion_mask"][:, None, 1:],
    x["reference_logits"][:, None, :-1],
    desirable_BK=x["label"][:, None],
  )
  o = objectives.apo_zero_unpaired(beta=h["beta"])
  return arrange.outputs(scored.evaluate(o, s))


def _list_record(x: Arrays) -> Scored:
  names = ("policy_logps_4xB", "ref_logps_4xB", "scores_4xB")
  logp, ref, reward = (x[name].T for name in names)
  return scored.from_sequence_logps(logp, jnp.ones_like(logp), ref, reward_BK=reward)


def _infonca_pair(h: Arrays, x: Arrays) -> Arrays:
  s = arrange.pair(x)
  better_BK = jnp.broadcast_to(jnp.array([1.0, 0.0]), s.present_BK.shape)
  # So cold that the chosen answer takes all.
  o = objectives.infonca(beta=h["beta"], alpha=1e-3)
  return arrange.outputs(scored.evaluate(o, s.replace(reward_BK=better_BK)))


def _infonca_reward(h: Arrays, x: Arrays) -> Arrays:
  o = objectives.infonca(h["beta"], h["temperature_alpha"], lead=0.01)
  return arrange.outputs(scored.evaluate(o, _list_record(x)))


def _nca_reward(h: Arrays, x: Arrays) -> Arrays:
  o = objectives.nca_list(h["beta"], h["temperature_alpha"], lead=0.01)
  out = scored.evaluate(o, _list_record(x))
  # That code averages the batch in its loss.
  return arrange.outputs(out) | {"per_example_losses": out.loss}


def _bco_without_shift(beta: float) -> Objective:
  o = objectives.bco_pair(beta)
  return o._replace(prepare=lambda *_: (Aux(shared=0.0), ()), init=no_state)


def _mixed_mpo(h: Arrays, x: Arrays) -> Arrays:
  parts = {
    "sigmoid": objectives.dpo(h["beta"]),
    "bco_pair": _bco_without_shift(h["beta"]),
  }
  o = objectives.mixture(h["loss_weights"], [parts[name] for name in h["loss_types"]])
  s = arrange.pair(x)
  rows = {n: scored.evaluate(part, s).per_example_B for n, part in parts.items()}
  return arrange.outputs(scored.evaluate(o, s)) | {"per_example_losses": rows}


def _bco_step(beta: float, x: Arrays, state: State) -> tuple[Evaluation, Arrays]:
  """One step on chosen rows, then rejected rows; the gradient by side."""
  sides = ("chosen", "rejected")
  policy = {side: x[f"policy_{side}_logps"] for side in sides}
  role = "ref" if "ref_chosen_logps" in x else "reference"
  ref = jnp.concatenate([x[f"{role}_{side}_logps"] for side in sides])
  up, down = jnp.ones_like(policy["chosen"]), jnp.zeros_like(policy["rejected"])
  label = jnp.concatenate([up, down])

  def loss(policy: Arrays) -> tuple[jax.Array, Evaluation]:
    logp = jnp.concatenate([policy[side] for side in sides])
    columns = [y[:, None] for y in (logp, jnp.ones_like(logp), ref)]
    s = scored.from_sequence_logps(*columns, desirable_BK=label[:, None])
    out = scored.evaluate(objectives.bco(beta), s, state)
    return out.loss, out

  (_, out), gradient = jax.value_and_grad(loss, has_aux=True)(policy)
  return out, gradient


def _bco(h: Arrays, x: Arrays) -> Arrays:
  if "running_before" in h:
    before = {name: jnp.asarray(value) for name, value in h["running_before"].items()}
    out, _ = _bco_step(h["beta"], x, before)
    return arrange.outputs(out) | {"delta": out.metrics["shift"]}
  state, found = objectives.bco(h["beta"]).init(), {}
  for step in ("step0_", "step1_"):
    own = {k.removeprefix(step): y for k, y in x.items() if k.startswith(step)}
    out, gradient = _bco_step(h["beta"], own, state)
    state = out.state
    values = arrange.outputs(out) | {"delta": out.metrics["shift"]}
    values |= {f"grad_policy_{side}": g for side, g in gradient.items()}
    found |= {f"{step}{name}": value for name, value in values.items()}
  return found


# method: (adapter, the files whose every sign its cases guard)
ADAPTERS = {
  "slic_hf": (_slic, ("_slic", "_nll")),
  "cpo": (_cpo, ("_cpo", "_nll")),
  "arpo_relaxed_cpo": (_arpo, ("_arpo",)),
  "arpo_xalma": (_arpo, ("_arpo",)),
  "alphapo": (_alphapo, ("_alphapo",)),
  "apo_zero": (_of(lambda beta: objectives.apo_zero(beta)), ("_apo_zero",)),
  "apo_down": (_of(lambda beta: objectives.apo_down(beta)), ("_apo_down",)),
  "apo_zero_unpaired": (_apo_zero_unpaired, ("_apo_zero_unpaired",)),
  "nca_pair": (_of(lambda beta: objectives.nca(beta)), ("_nca",)),
  "nca_reward_k4": (_nca_reward, ("_nca",)),
  "infonca_pair": (_infonca_pair, ("_infonca",)),
  "infonca_reward_k4": (_infonca_reward, ("_infonca",)),
  "nca_biased": (_of(_bco_without_shift), ("_bco",)),
  "bco_pair_no_shift": (_of(_bco_without_shift), ("_bco",)),
  "bco": (_bco, ("_bco",)),
  "mixed_mpo": (_mixed_mpo, ()),
}
ELSEWHERE = {
  "bco": {"running_after"},  # its mean is delta; its variance is used by nobody
  "apo_zero_unpaired": {"z0"},  # 0, for the loss has none
}
_SINGLE = "that code rounds the batch's mean to float32; two other cases pass at 1e-6"
EXCEPTIONS: dict[str, str] = {
  "pairwise:bco/0174": _SINGLE,
  "pairwise:bco/0175": _SINGLE,
}
