"""Token-level losses."""

import jax
import jax.numpy as jnp

from tests.golden_adapters import arrange
from tests.golden_adapters.arrange import Arrays
from xpo_jax import objectives, scored
from xpo_jax.ops import repetition, token_stats
from xpo_jax.types import Array, Aux, Objective, Scored

_LOGITS = ("policy_logits", "reference_logits")


def _tdpo(o: Objective, x: Arrays) -> Arrays:
  s = arrange.from_labels(x, _LOGITS, arrange.halves, stats=o.stats)
  reward_BK = objectives.tdpo_rewards(s, o.hparams["beta"])
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
  s = arrange.from_labels(x, _LOGITS, arrange.halves, stats=objectives.tdpo1().stats)
  return {"stable_position_kl": arrange.rows(objectives.sequential_kl(s))}


def _drawn(o: Objective, logits: Array, targets: Array, token: Array) -> Aux:
  """Indices of the recorded tokens among the contrast tokens, as drawn by `prepare`."""
  _, id_BKTJ = token_stats.top_contrast_tokens(logits, targets, o.hparams["k"])
  return Aux(rows=jnp.argmax(id_BKTJ == token[..., None], -1))


def _handed(o: Objective, aux: Aux) -> Objective:
  return o._replace(prepare=lambda scored, state, key: (aux, state))


def _cringe(h: Arrays, x: Arrays) -> Arrays:
  alpha, k = h["ct_loss_weight"], h["num_pos_predictions"]
  o = objectives.cringe(alpha, k, h["detach_positives"])
  names = ("logits", "targets", "sampled_token")
  logits, targets, token = (x[name][:, None] for name in names)
  desirable = x["classifier_label"] != 0  # -1: no label, which counts as desirable
  s = scored.from_logits(
    logits, targets, targets != 0, stats=o.stats, desirable_BK=desirable[:, None]
  )
  aux = _drawn(o, logits, targets, token)
  out = scored.evaluate(_handed(o, aux), s)
  contrast_BKT = objectives.token_contrast(s, aux.rows, k, h["detach_positives"])
  return {
    "differentiate": out.loss,
    "mean_loss": out.loss,
    "token_ct": jnp.where(desirable[:, None], 0, contrast_BKT[:, 0]),
  }


def _pairwise_cringe(h: Arrays, x: Arrays) -> Arrays:
  def record(chosen: Array, rejected: Array, o: Objective) -> Scored:
    targets = arrange.sides(x["chosen_targets"], x["rejected_targets"])
    mask = arrange.sides(x["chosen_mask"], x["rejected_mask"])
    return scored.from_logits(
      arrange.sides(chosen, rejected), targets, mask, stats=o.stats
    )

  def objective(detach_gate: bool) -> Objective:
    o = objectives.pairwise_cringe(
      h["alpha"], h["b"], h["tau"], h["k"], detach_gate=detach_gate
    )
    targets = x["rejected_targets"]
    aux = _drawn(o, x["rejected_logits"], targets, x["contrast_token"])
    return _handed(o, Aux(rows=arrange.sides(jnp.zeros_like(aux.rows), aux.rows)))

  def slopes(detach_gate: bool) -> tuple[Array, Array]:
    o = objective(detach_gate)

    def loss(chosen: Array, rejected: Array) -> Array:
      return scored.evaluate(o, record(chosen, rejected, o)).loss

    return jax.grad(loss, (0, 1))(x["chosen_logits"], x["rejected_logits"])

  o = objective(False)
  s = record(x["chosen_logits"], x["rejected_logits"], o)
  rows = arrange.row_by_row(o, s).metrics
  outputs = arrange.outputs(scored.evaluate(o, s))
  for name, detach_gate in (("live", False), ("detached", True)):
    chosen, rejected = slopes(detach_gate)
    outputs[f"grad_chosen_gate_{name}"] = chosen
    outputs[f"grad_rejected_gate_{name}"] = rejected
  return outputs | {"gate": rows["gate"], "cringe_sum": rows["contrast"]}


def _unlikelihood_token(h: Arrays, x: Arrays) -> Arrays:
  tokens = x["targets"][:, None]
  mask = tokens != h["padding_idx"]
  o = objectives.token_unlikelihood(h["rank_alpha"])

  def loss(logits: Array) -> Array:
    logits = logits[:, None]
    candidate = repetition.previous_tokens(
      tokens, mask, logits.shape[-1], always=(h["padding_idx"],)
    )
    s = scored.from_logits(logits, tokens, mask)
    s = s.replace(extra={"penalty_BKT": repetition.unlikelihood(logits, candidate)})
    return scored.evaluate(o, s).loss

  value, slope = jax.value_and_grad(loss)(x["logits"])
  return {"loss_per_token": value, "grad_of_loss_per_token": slope}


def _unlikelihood_seq_mask(h: Arrays, x: Arrays) -> Arrays:
  del h
  tokens = x["tokens"][:, None]
  # That code skips the last n-gram, as if the last token were missing.
  mask = jnp.ones(tokens.shape).at[..., -1].set(0)
  return {
    f"mask_n{n}": repetition.repeated_ngrams(tokens, mask, n)[:, 0] for n in (2, 4)
  }


# method: (adapter, the objective files whose signs its cases check)
ADAPTERS = {
  "tdpo1": (_tdpo1, ("_tdpo1",)),
  "tdpo2": (_tdpo2, ("_tdpo2",)),
  "tdpo_underflow_bug": (_tdpo_underflow, ()),
  "cringe_binary": (_cringe, ("_cringe",)),
  "pairwise_cringe": (_pairwise_cringe, ("_pairwise_cringe",)),
  "unlikelihood_token": (_unlikelihood_token, ()),
  "unlikelihood_seq_mask": (_unlikelihood_seq_mask, ()),
}
