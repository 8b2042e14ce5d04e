"""Computes sequence statistics of completions: log-probs, exact KL, reward.

Each prompt is a row with its completions as branches, as in training, so that the
prompt is computed once. For evaluation: rows are padded, not packed.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xpo_jax.data import tokenise
from xpo_jax.models import generate, heads, sample, score, transformer
from xpo_jax.ops import masked, token_stats
from xpo_jax.types import Array, Params


class PaddedTexts(NamedTuple):
  """K completions of each of B prompts as arrays.

  Attributes:
    prompt_BP: right-padded prompts.
    length_B: their lengths.
    tokens_BKT: right-padded completions.
    there_BKT: 1 on tokens, 0 on padding.
    mask_BKT: 1 on the tokens that are summed over.
  """

  prompt_BP: Array
  length_B: Array
  tokens_BKT: Array
  there_BKT: Array
  mask_BKT: Array

  def rows(self, row_B: np.ndarray) -> "PaddedTexts":
    """Selects prompts and their completions."""
    return PaddedTexts(*(x[row_B] for x in self))


def score_pairs(
  model: transformer.Model,
  params: Params,
  ref_params: Params,
  examples: Sequence[tokenise.Example],
  *,
  batch: int = 64,
  ref_model: transformer.Model | None = None,
) -> dict[str, np.ndarray]:
  """Computes sequence statistics of tokenised examples of equal K.

  Args:
    model: the architecture.
    params: `{"lm": ...}`, and `"value"` if there is a scalar head.
    ref_params: `{"lm": ...}` of the reference.
    examples: `data.tokenise.Example`s (prompt ids, completions' ids).
    batch: examples scored at once.
    ref_model: the reference's architecture; None: `model`.

  Returns:
    `logp_BK`, `ref_logp_BK`, `kl_BK` (nats), and `reward_head_BK` at the last token
    if there is a head.
  """
  if not examples:
    raise ValueError("examples: none given; need at least one")
  counts = sorted({len(e.completions) for e in examples})
  if len(counts) > 1:
    raise ValueError(f"examples have K={counts} completions; score one K at a time")
  (completions,) = counts
  prompt_BP, length_B = sample.pad([e.prompt for e in examples])
  flat = [c for e in examples for c in e.completions]
  masks = [
    mask
    for e in examples
    for mask in (e.masks or [np.ones(len(c), bool) for c in e.completions])
  ]
  tokens, size = sample.pad(flat)
  there = np.arange(tokens.shape[1]) < size[:, None]
  by_token = (tokens, there, sample.pad(masks)[0])
  shape = (len(examples), completions, -1)
  tokens_BKT, there_BKT, mask_BKT = (x.reshape(shape) for x in by_token)
  arrays = PaddedTexts(prompt_BP, length_B, tokens_BKT, there_BKT, mask_BKT)
  parts = [
    jax.device_get(
      statistics(model, params, ref_params, arrays.rows(row_B), ref_model=ref_model)
    )
    for row_B in generate.batch_indices(len(examples), min(batch, len(examples)))
  ]
  return jax.tree.map(lambda *x: np.concatenate(x)[: len(examples)], *parts)


@functools.partial(jax.jit, static_argnames=("model", "temperature", "ref_model"))
def statistics(
  model: transformer.Model,
  params: Params,
  ref_params: Params,
  texts: PaddedTexts,
  temperature: float = 1.0,
  ref_model: transformer.Model | None = None,
) -> dict[str, Array]:
  """Computes sequence statistics of K completions of each prompt.

  Args:
    model: the architecture.
    params: `{"lm": ...}`, and `"value"` if there is a scalar head.
    ref_params: `{"lm": ...}` of the reference.
    texts: prompts and completions.
    temperature: divides the logits of both.
    ref_model: the reference's architecture, of the same vocabulary; None: `model`.

  Returns:
    `logp_BK`, `ref_logp_BK` (sums, nats), `kl_BK` (sum over positions of
    KL(policy || ref) over the whole vocabulary, nats), and where there is a scalar head
    `reward_head_BK`, its output at the last token of the mask, which it has read.
  """
  tokens_BKT, mask_BKT = texts.tokens_BKT, texts.mask_BKT
  rows, source_BC = _rows(texts.prompt_BP, texts.length_B, tokens_BKT, texts.there_BKT)

  def states(decoder, tree):
    hidden_BLD = decoder.hidden(tree["lm"], rows)
    return hidden_BLD, jnp.take_along_axis(hidden_BLD, source_BC[..., None], axis=1)

  roles = {"policy": (model, params), "ref": (ref_model or model, ref_params)}
  whole, hidden = {}, {}
  for role, decoder in roles.items():
    whole[role], hidden[role] = states(*decoder)
  head = {role: decoder.head(tree["lm"]) for role, (decoder, tree) in roles.items()}
  stats = (token_stats.LOGP, token_stats.REF_LOGP, token_stats.POLICY_KL)
  stats = tuple(token_stats.tempered(stat, temperature) for stat in stats)
  values = {}
  if "value" in params:
    stats += (token_stats.REWARD_HEAD,)
    # The completions stand behind the prompts.
    read_BCD = whole["policy"][:, texts.prompt_BP.shape[1] :]
    values["policy.reward"] = heads.value(params["value"], read_BCD)
  target_BC = tokens_BKT.reshape(source_BC.shape)
  softcaps = {role: decoder.softcap for role, (decoder, _) in roles.items()}
  flat = score.token_statistics(
    hidden, head, target_BC, stats, values=values, softcaps=softcaps
  )
  by_token = {field: x.reshape(mask_BKT.shape) for field, x in flat.items()}
  out = {
    "logp_BK": masked.sum_T(by_token["logp_BKT"], mask_BKT),
    "ref_logp_BK": masked.sum_T(by_token["ref_logp_BKT"], mask_BKT),
    "kl_BK": masked.sum_T(by_token["policy_kl_BKT"], mask_BKT),
  }
  if values:
    out["reward_head_BK"] = masked.last(by_token["reward_head_BKT"], mask_BKT)
  return out


def _rows(prompt_BP, length_B, tokens_BKT, there_BKT):
  """One row a prompt, its K completions as branches; the source of each token."""
  B, K, T = tokens_BKT.shape
  P = prompt_BP.shape[1]
  column_P = jnp.arange(P)[None, :]
  in_prompt_BP = column_P < length_B[:, None]
  step_KT = jnp.broadcast_to(jnp.arange(T), (K, T)).reshape(1, K * T)
  branch_KT = jnp.repeat(jnp.arange(1, K + 1), T).reshape(1, K * T)
  # A branch starts at P + k T; its first token is predicted by the prompt's last.
  before_KT = P + jnp.arange(K * T).reshape(1, K * T) - 1
  source_BC = jnp.where(step_KT == 0, length_B[:, None] - 1, before_KT)

  def join(left, right):
    shapes = (B, P), (B, K * T)
    parts = [jnp.broadcast_to(x, s) for x, s in zip((left, right), shapes, strict=True)]
    return jnp.concatenate(parts, axis=1).astype(jnp.int32)

  segment_RL = join(in_prompt_BP, there_BKT.reshape(B, K * T) > 0)
  position_RL = join(column_P, length_B[:, None] + step_KT)
  rows = transformer.Rows(
    tokens_RL=join(prompt_BP, tokens_BKT.reshape(B, K * T)),
    segment_RL=segment_RL,
    branch_RL=join(jnp.zeros_like(column_P), branch_KT),
    # Padding stays inside a table of learned positions.
    position_RL=position_RL * segment_RL,
  )
  return rows, source_BC
