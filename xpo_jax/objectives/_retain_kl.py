"""Retain-KL: the KL retain term of NPO + KL."""

from xpo_jax.objectives import _tdpo1
from xpo_jax.ops import token_stats
from xpo_jax.types import Aux, Layout, Loss, Mean, Objective, Scored


def retain_kl() -> Objective:
  """Retain-KL: KL from the reference to the policy on the retain set.

  L = sum_t KL(ref(.|s_t) || policy(.|s_t)) / number of tokens
  over all prompts and the whole vocabulary: used beside `npo` and `simnpo`, with
  data of its own.

  Paper: Zhang et al. 2024 (NPO), arXiv:2404.05868.
  Departs from the paper: only the masked completion tokens count; the authors' code
    also counts prompt and padding (a mask of ones reproduces it).
  Reduction: one mean over all tokens of the batch. Reads column 0 of any layout.

  Returns:
    Objective; layout DEMO; stats REF_KL.
    Terms: `retain_kl`.
    Metrics: seq_kl (nats per completion).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> from xpo_jax.testing import toy
    >>> first_step = toy.scored(K=1, policy_equals_ref=True)
    >>> float(scored.evaluate(objectives.retain_kl(), first_step).loss)
    0.0
  """

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    weight_B = scored.weight_B * scored.present_BK[:, 0]
    total = (_tdpo1.sequential_kl(scored)[:, 0] * weight_B).sum()
    tokens = (scored.length_BK[:, 0] * weight_B).sum()
    metrics = {"seq_kl": Mean(total, weight_B.sum())}
    return Loss({"retain_kl": Mean(total, tokens)}, metrics)

  return Objective(
    name="retain_kl",
    hparams={},
    layout=Layout.DEMO,
    stats=frozenset({token_stats.REF_KL}),
    loss=loss,
  )
