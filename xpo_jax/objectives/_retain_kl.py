"""The retain term of NPO + KL: stay where the reference is on what is to be kept."""

from xpo_jax.objectives import _tdpo1
from xpo_jax.ops import token_stats
from xpo_jax.types import Aux, Layout, Loss, Mean, Objective, Scored


def retain_kl() -> Objective:
  """Retain-KL: holds the policy to the reference on texts to be kept.

  L = sum_t KL(ref(.|s_t) || policy(.|s_t)) / number of tokens
  over all prompts and the whole vocabulary: a companion of `npo` and `simnpo`, with
  data of its own.

  Paper: Zhang et al. 2024 (NPO), arXiv:2404.05868, Eq. not checked.
  Departs from the paper: tokens are those of the mask, the answer's; the authors' code
    counts prompt and padding too (a mask of ones reproduces it).
  Reduction: one mean over all tokens of the batch. Reads column 0 of any layout.

  Returns:
    Objective; layout DEMO; stats REF_KL. Terms: `retain_kl`.
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

  stats = frozenset({token_stats.REF_KL})
  return Objective(
    name="retain_kl",
    hparams={},
    layout=Layout.DEMO,
    stats=stats,
    loss=loss,
  )
