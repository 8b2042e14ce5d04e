"""Listwise losses."""

import math

import jax
import jax.numpy as jnp

from tests.golden_adapters import arrange
from tests.golden_adapters.arrange import Arrays
from xpo_jax import objectives, scored
from xpo_jax.ops import ranking
from xpo_jax.types import Mean, Scored


def _implicit(x: Arrays, label: str) -> Scored:
  """Scores as log-ratios at beta = 1; a label of -1 is padding in one code."""
  score, zero = x["scores"], jnp.zeros_like(x["scores"])
  return scored.from_sequence_logps(
    score, jnp.ones_like(score), zero, reward_BK=x[label], present_BK=x[label] >= 0
  )


def _lipo_lambda(h: Arrays, x: Arrays) -> Arrays:
  s = _implicit(x, "psi")
  rank = ranking.rank(x["scores"], s.present_BK)
  gain = ranking.gain(s.reward_BK, s.present_BK)
  weight = ranking.lambda_rank(gain, rank, base=math.e)
  better = ranking.better(s.reward_BK, s.present_BK)
  return arrange.outputs(scored.evaluate(objectives.lipo(beta=1.0), s)) | {
    "lambda_weights": jnp.where(better, weight, 0),
    "rank": rank,
  }


def _lipo_softmax(h: Arrays, x: Arrays) -> Arrays:
  o = objectives.lipo_softmax(beta=1.0)
  return arrange.outputs(scored.evaluate(o, _implicit(x, "psi")))


def _list_mle_dpo_pl(h: Arrays, x: Arrays) -> Arrays:
  """Plackett-Luce and ListMLE coincide without ties: each gives some outputs."""
  s = _implicit(x, "psi")
  out = scored.evaluate(objectives.plackett_luce(beta=1.0), s)
  o = objectives.list_mle(beta=1.0)
  same = scored.evaluate(o, s, o.init(), jax.random.key(0))
  return arrange.outputs(out) | {"mean_loss": same.loss}


def _approx_ndcg(h: Arrays, x: Arrays) -> Arrays:
  s = _implicit(x, "labels")
  out = scored.evaluate(objectives.approx_ndcg(beta=1.0), s)
  return {"differentiate": out.loss, "loss": out.loss}


def _list_net(h: Arrays, x: Arrays) -> Arrays:
  s = _implicit(x, "labels")
  out = scored.evaluate(objectives.list_net(beta=1.0), s)
  return {"differentiate": out.loss, "loss": out.loss}


def _list_mle(h: Arrays, x: Arrays) -> Arrays:
  """That code adds 1e-10 to each sum, and its random tie-break put the last first."""
  s = _implicit(x, "labels")
  K = x["labels"].shape[1]
  tie_breaker = jnp.broadcast_to(jnp.flip(jnp.arange(K)), s.present_BK.shape)
  rank = ranking.rank(s.reward_BK, s.present_BK, tie_breaker)
  ll = ranking.plackett_luce(x["scores"], -rank, s.present_BK, eps=1e-10)
  loss = s.mean_B(-ll).value
  return {"differentiate": loss, "loss": loss}


def _weight(h: Arrays, s: Scored, rank: jax.Array) -> jax.Array:
  label = s.reward_BK
  gain = ranking.normalised_gain(label, s.present_BK)
  schemes = {
    "ndcgLoss1_scheme": lambda: ranking.ndcg_loss_1(gain, rank),
    "ndcgLoss2_scheme": lambda: ranking.ndcg_loss_2(gain, rank),
    "ndcgLoss2PP_scheme": lambda: ranking.ndcg_loss_2pp(
      gain, rank, mu=h.get("mu", 10.0)
    ),
    "lambdaRank_scheme": lambda: ranking.lambda_rank(gain, rank),
    "rankNet_scheme": lambda: ranking.rank_net(label),
    "rankNetWeightedByGTDiff_scheme": lambda: ranking.rank_net(label, 1.0),
    "rankNetWeightedByGTDiffPowed_scheme": lambda: ranking.rank_net(label, 2.0),
  }
  return schemes[h["weighing_scheme"]]()


def _lambda_loss(h: Arrays, x: Arrays) -> Arrays:
  s = _implicit(x, "labels")
  weight = _weight(h, s, ranking.rank(x["scores"], s.present_BK))
  if h["weighing_scheme"] == "ndcgLoss1_scheme":  # sums over all pairs, equals too
    counted = (s.present_BK[:, :, None] > 0) & (s.present_BK[:, None] > 0)
  else:
    counted = ranking.better(s.reward_BK, s.present_BK)
  masked = jnp.where(counted, weight, 0)
  total = ranking.pair_logistic(x["scores"], masked, floor=1e-10).sum()
  mean = Mean(total, counted.sum()).value
  loss = mean if h.get("reduction") == "mean" else total
  return {"differentiate": loss, "loss": loss}


def _pro(h: Arrays, x: Arrays) -> Arrays:
  # In that code position t of the mask masks the prediction of t + 1.
  mask = jnp.where(x["prefix_mask"] == 0, x["attention_mask"], 0)
  s = scored.from_logits(
    x["policy_logits"][:, :, :-1],
    x["labels"][:, :, 1:],
    mask[:, :, :-1],
    reward_BK=x["rewards"],
  )
  out = scored.evaluate(objectives.pro(h["sft_weight"]), s)
  # That code adds 1e-10 to each sum, visible in the gradient but not in the loss.
  contrast = ranking.contrast(
    objectives.avg_logp(s), s.reward_BK, s.present_BK, eps=1e-10
  )
  terms = {**out.terms, "pro": s.mean_B(contrast).value}
  return {
    "differentiate": sum(terms.values()),
    "total_loss": s.mean_B(out.per_example_B).value,
  }


def _rrhf(h: Arrays, x: Arrays) -> Arrays:
  labels = x["labels_preshifted"][None]
  tokens = jnp.where(labels == -100, 0, labels)
  logits, reward = x["policy_logits"][None], x["reward_scores"][None]
  s = scored.from_logits(logits, tokens, labels != -100, reward_BK=reward)
  # That code divides by the padded width (a bug), so that is the length it is given.
  wide = s.replace(length_BK=jnp.full_like(s.length_BK, labels.shape[-1]))
  o = objectives.rrhf(h["rrhf_weight"], h["length_penalty"])
  out = scored.evaluate(o, wide)
  return {
    "differentiate": out.loss,
    "total_loss": s.mean_B(out.per_example_B).value,
    "scores_as_computed": objectives.avg_logp(wide)[0],
    "intended_scores": objectives.avg_logp(s)[0],
  }


# method: (adapter, the objective files whose signs its cases check)
ADAPTERS = {
  "lipo_lambda": (_lipo_lambda, ("_lipo",)),
  "lipo_softmax": (_lipo_softmax, ("_lipo",)),
  "list_mle_dpo_pl": (_list_mle_dpo_pl, ("_plackett_luce", "_list_mle")),
  "ltr_approxNDCGLoss": (_approx_ndcg, ("_approx_ndcg",)),
  "ltr_listNet": (_list_net, ("_list_net",)),
  "ltr_listMLE": (_list_mle, ()),
  "ltr_lambdaLoss": (_lambda_loss, ()),
  "pro": (_pro, ("_pro",)),
  "rrhf": (_rrhf, ("_rrhf",)),
}
