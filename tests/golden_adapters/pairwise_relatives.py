"""Contrastive, calibrated, anchored and length-aware variants of DPO."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from tests.golden_adapters import arrange
from tests.golden_adapters.arrange import Arrays
from xpo_jax import objectives, scored
from xpo_jax.ops import discopop_losses, links
from xpo_jax.types import (
  Aux,
  AuxLoss,
  EvaluatedLoss,
  Objective,
  Scored,
  State,
  no_state,
)


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
  parts = (AuxLoss(1.0, hinge, "pair"), AuxLoss(h["reg_lambda"], target, "target"))

  def loss(logp_BK: jax.Array, length_BK: jax.Array) -> jax.Array:
    batches = {
      "pair": scored.from_sequence_logps(logp_BK[:, :2], length_BK[:, :2]),
      "target": scored.from_sequence_logps(logp_BK[:, 2:], length_BK[:, 2:]),
    }
    return scored.evaluate_parts(parts, batches).loss

  whole = loss(logp_BK, length_BK)
  rows = jax.vmap(loss)(logp_BK[:, None], length_BK[:, None])
  return {"differentiate": whole, "mean_loss": whole, "per_example_losses": rows}


def _slic_unnormalised(h: Arrays, x: Arrays) -> Arrays:
  o = objectives.rso(h["beta"], links.HINGE)
  return arrange.outputs(scored.evaluate(o, _zero_reference(x)))


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
  hparams = {"eta": h["relax_cofficient_2"], "relax": h["relax_cofficient_1"]}
  o = objectives.arpo(h["beta"], weight=0.0, **hparams)
  return arrange.outputs(scored.evaluate(o, s))


def _alphapo(h: Arrays, x: Arrays) -> Arrays:
  s = _no_reference(x)
  o = objectives.alphapo(h["beta"], h["simpo_gamma"], h["alpha"])
  if "labels" not in x:
    return arrange.outputs(scored.evaluate(o, s))
  return _with_nll(o, h, s, objectives.avg_logp(s))


def _of(objective: Callable[[float], Objective]) -> Callable[[Arrays, Arrays], Arrays]:
  """The adapter of an objective on pairs whose only hyperparameter is beta."""

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
  # A temperature so low that the target is one-hot.
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


def _bco_step(beta: float, x: Arrays, state: State) -> tuple[EvaluatedLoss, Arrays]:
  """One step on chosen rows, then rejected rows; the gradient by side."""
  sides = ("chosen", "rejected")
  policy = {side: x[f"policy_{side}_logps"] for side in sides}
  role = "ref" if "ref_chosen_logps" in x else "reference"
  ref = jnp.concatenate([x[f"{role}_{side}_logps"] for side in sides])
  up, down = jnp.ones_like(policy["chosen"]), jnp.zeros_like(policy["rejected"])
  label = jnp.concatenate([up, down])

  def loss(policy: Arrays) -> tuple[jax.Array, EvaluatedLoss]:
    logp = jnp.concatenate([policy[side] for side in sides])
    columns = [y[:, None] for y in (logp, jnp.ones_like(logp), ref)]
    s = scored.from_sequence_logps(*columns, desirable_BK=label[:, None])
    out = scored.evaluate(objectives.bco(beta), s, state)
    return out.loss, out

  (_, out), gradient = jax.value_and_grad(loss, has_aux=True)(policy)
  return out, gradient


def _bco(h: Arrays, x: Arrays) -> Arrays:
  if "running_before" in h:
    running = h["running_before"].items()
    before = {name: jnp.asarray(value, float) for name, value in running}
    out, _ = _bco_step(h["beta"], x, before)
    return arrange.outputs(out) | {"delta": out.metrics["shift"]}
  state = objectives.bco(h["beta"]).init()
  outputs = {}
  for step in ("step0_", "step1_"):
    own = {k.removeprefix(step): y for k, y in x.items() if k.startswith(step)}
    out, gradient = _bco_step(h["beta"], own, state)
    state = out.state
    values = arrange.outputs(out) | {"delta": out.metrics["shift"]}
    values |= {f"grad_policy_{side}": g for side, g in gradient.items()}
    outputs |= {f"{step}{name}": value for name, value in values.items()}
  return outputs


def _discopop(h: Arrays, x: Arrays) -> Arrays:
  o = objectives.discopop(h["beta"], h.get("tau", 0.05))
  return arrange.outputs(scored.evaluate(o, arrange.pair(x)))


def _discopop_old(h: Arrays, x: Arrays) -> Arrays:
  """The code of the search used the log-ratios without beta."""
  o = objectives.discopop(h["beta"], tau=h["beta"])
  return arrange.outputs(scored.evaluate(o, arrange.pair(x)))


def _linked(
  fn: Callable[[jax.Array], jax.Array], beta: float, s: Scored
) -> EvaluatedLoss:
  """GPO with a custom link, which may depend on all margins of the batch."""
  link = links.Link("own", fn, convex=False, slope_at_0=0.0)
  return scored.evaluate(objectives.gpo(beta, link), s)


def _discovered(
  fn: Callable[[jax.Array], jax.Array],
) -> Callable[[Arrays, Arrays], Arrays]:
  return lambda h, x: arrange.outputs(_linked(fn, h["beta"], arrange.pair(x)))


def _padll_single(margin_B: jax.Array) -> jax.Array:
  """That code holds its weight in float32."""
  return discopop_losses.padll(margin_B, np.float32(0.9))


def _discovered_pfl(h: Arrays, x: Arrays) -> Arrays:
  s = arrange.pair(x)
  logp_BK = objectives.seq_logp(s)
  right_B = logp_BK[:, 0] > logp_BK[:, 1]
  return arrange.outputs(
    _linked(lambda margin_B: discopop_losses.pfl(margin_B, right_B), h["beta"], s)
  )


def _aot(h: Arrays, x: Arrays) -> Arrays:
  s = arrange.pair(x)
  out = scored.evaluate(objectives.aot(h["beta"], h.get("label_smoothing", 0.0)), s)
  # That code lists the pairs in the order of the policy's margins.
  alone = s.replace(ref_logp_BKT=jnp.zeros_like(s.ref_logp_BKT))
  order = jnp.argsort(_linked(lambda lead_B: lead_B, 1.0, alone).per_example_B)
  return arrange.outputs(out) | {"per_example_losses": out.per_example_B[order]}


def _aot_unpaired(h: Arrays, x: Arrays) -> Arrays:
  s = arrange.pair(x)
  o = objectives.aot_unpaired(h["beta"], h.get("label_smoothing", 0.0))
  out = scored.evaluate(o, s)
  # That code lists the matches in the order of the chosen completions.
  order = jnp.argsort(objectives.log_ratio(s)[:, 0])
  return arrange.outputs(out) | {"per_example_losses": out.per_example_B[order]}


def _wpo(h: Arrays, x: Arrays) -> Arrays:
  # One of the codes does not clip the weight.
  most = 1.0 if "labels" in x else 1e9
  o = objectives.wpo(h["beta"], h.get("label_smoothing", 0.0), most)
  if "labels" in x:
    names = ("policy_logits", "ref_logits")
    s = arrange.from_labels(x, names, arrange.halves, stats=o.stats)
  else:
    s = arrange.from_ids(x, o.stats)
  return arrange.outputs(scored.evaluate(o, s)) | {
    "pair_weights": objectives.wpo_weight(s, most),
    "policy_logps": arrange.rows(objectives.seq_logp(s)),
  }


def _logps(s: Scored) -> Arrays:
  """Summed log-probs of each completion; the case records the gradient of their sum."""
  logp_BK = objectives.seq_logp(s)
  mean = s.mean_BK(logp_BK)
  return {
    "differentiate": mean.total,
    "mean_loss": mean.value,
    "per_example_losses": arrange.rows(logp_BK),
  }


def _ld_dpo(h: Arrays, x: Arrays) -> Arrays:
  o = objectives.ld_dpo(h["beta"], h["ld_alpha"])
  return arrange.outputs(scored.evaluate(o, arrange.pair(x)))


def _ld_dpo_logps(h: Arrays, x: Arrays) -> Arrays:
  s = arrange.from_labels(x, ("logits",), arrange.halves)
  return _logps(objectives.down_weighted(s, h["ld_alpha"]))


def _sampo_logps(h: Arrays, x: Arrays) -> Arrays:
  del h
  s = arrange.from_labels(x, ("logits",), arrange.halves)
  # The draw of the longer side, or of the chosen one.
  longer = jnp.argmax(s.length_BK, 1)
  drawn_mask = s.mask_BKT
  for pair, drawn in enumerate(x["picked_positions_in_shifted_coords"]):
    drawn_mask = drawn_mask.at[pair, longer[pair]].set(0)
    drawn_mask = drawn_mask.at[pair, longer[pair], drawn].set(1)
  return _logps(s.replace(mask_BKT=drawn_mask))


# method: (adapter, the objective files whose signs its cases check)
ADAPTERS = {
  "slic_hf": (_slic, ("_slic", "_nll")),
  "slic_hinge_unnormalised": (_slic_unnormalised, ()),
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
  "aot_paired": (_aot, ("_aot",)),
  "aot_unpaired": (_aot_unpaired, ("_aot_unpaired",)),
  "discopop": (_discopop, ("_discopop",)),
  "discopop_old_lrml": (_discopop_old, ()),
  "discopop_dbaql": (_discovered(discopop_losses.dbaql), ()),
  "discopop_aql": (_discovered(discopop_losses.aql), ()),
  "discopop_aqfl": (_discovered(discopop_losses.aqfl), ()),
  "discopop_padll": (_discovered(_padll_single), ()),
  "discopop_cell": (_discovered(discopop_losses.cell), ()),
  "discopop_pfl": (_discovered_pfl, ()),
  "wpo": (_wpo, ("_wpo",)),
  "ld_dpo": (_ld_dpo, ("_ld_dpo",)),
  "ld_dpo_logps": (_ld_dpo_logps, ("_ld_dpo",)),
  "sampo_logps": (_sampo_logps, ()),
}
