"""Mixture of experts on arrays: choice, grouping by expert, load-balancing loss.

Suffixes here: `T` tokens, `E` experts, `J` experts of a token, `S` slots: one for each
expert of each token, sorted by expert, so that a product with one matrix per expert is
`jax.lax.ragged_dot`. The slots are as many as the choices: no expert has a capacity,
and no token is dropped.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from xpo_jax.types import Array, Mean, Routing


def choose(logits_TE: Array, active: int, normalised: bool) -> tuple[Array, Array]:
  """Chooses the likeliest experts of each token.

  Args:
    logits_TE: the router's logits.
    active: J.
    normalised: whether the weights are a softmax over the chosen experts; else each is
      its probability among all experts.

  Returns:
    weight_TJ, index_TJ.
  """
  chosen_TJ, index_TJ = jax.lax.top_k(logits_TE, active)
  if normalised:
    return jax.nn.softmax(chosen_TJ, axis=-1), index_TJ
  total_T1 = jax.nn.logsumexp(logits_TE, axis=-1, keepdims=True)
  return jnp.exp(chosen_TJ - total_T1), index_TJ


class Groups(NamedTuple):
  """The slots of tokens, sorted by expert.

  Attributes:
    order_S: index of each slot's choice among the T x J choices.
    place_TJ: index of each choice's slot.
    expert_S: expert of each slot; E for choices of other experts, which come last.
    size_E: number of slots of each expert.
  """

  order_S: Array
  place_TJ: Array
  expert_S: Array
  size_E: Array


def group(index_TJ: Array, count: int) -> Groups:
  """Sorts choices by expert.

  Args:
    index_TJ: chosen experts; those outside 0 .. count - 1 belong to other devices.
    count: E.
  """
  index_S = index_TJ.reshape(-1)
  here_S = (index_S >= 0) & (index_S < count)
  index_S = jnp.where(here_S, index_S, count)
  order_S = jnp.argsort(index_S, stable=True)
  slots_S = jnp.arange(order_S.size, dtype=order_S.dtype)
  place_S = jnp.zeros_like(order_S).at[order_S].set(slots_S, unique_indices=True)
  return Groups(
    order_S,
    place_S.reshape(index_TJ.shape),
    index_S[order_S],
    jnp.bincount(index_S, length=count).astype(jnp.int32),
  )


def take(x_TD: Array, groups: Groups) -> Array:
  """Copies each token to its slots, `[S, D]`; others' choices are 0."""
  # A permutation of copies, not a gather with repetitions, whose gradient would add in
  # an order that is not determined on a GPU.
  copies_SD = jnp.repeat(x_TD, groups.place_TJ.shape[1], axis=0)
  return _own(copies_SD.at[groups.order_S].get(unique_indices=True), groups)


def put(y_SD: Array, groups: Groups, weight_TJ: Array) -> Array:
  """Adds up the weighted slots of each token, `[T, D]`; others' choices are 0."""
  T, J = weight_TJ.shape
  y_TJD = _own(y_SD, groups).at[groups.place_TJ.reshape(-1)].get(unique_indices=True)
  y_TJD = y_TJD.reshape(T, J, -1).astype(weight_TJ.dtype)
  return (weight_TJ[..., None] * y_TJD).sum(1)


def _own(x_SD: Array, groups: Groups) -> Array:
  """Zeroes the slots after all groups, whose product and gradient mean nothing."""
  return jnp.where((groups.expert_S < groups.size_E.size)[:, None], x_SD, 0)


def routing(logits_RLE: Array, mask_RL: Array, active: int) -> Routing:
  """Computes the sums of one layer.

  Args:
    logits_RLE: the router's logits.
    mask_RL: 0 on padding.
    active: J.
  """
  _, index_RLJ = jax.lax.top_k(logits_RLE, active)
  experts = logits_RLE.shape[-1]
  chosen_RLE = jax.nn.one_hot(index_RLJ, experts, dtype=logits_RLE.dtype).sum(-2)
  prob_RLE = jax.nn.softmax(logits_RLE, axis=-1)
  real_RL1 = (mask_RL != 0)[..., None]
  return Routing(
    chosen_RE=jnp.where(real_RL1, chosen_RLE, 0).sum(1),
    prob_RE=jnp.where(real_RL1, prob_RLE, 0).sum(1),
    tokens_R=real_RL1.sum((1, 2)).astype(logits_RLE.dtype),
  )


def load_balance(part: Routing, whole: Routing) -> Mean:
  """The load-balancing loss of a part of a batch; the parts add up to the whole's.

  L = E sum_e f_e P_e, with f_e the number of choices of expert e per token and P_e its
  mean probability, over all tokens of all layers: J where all experts are chosen alike,
  more where those that are chosen often have a high probability too.

  Source: Fedus et al. 2021 (Switch Transformer), arXiv:2101.03961, for one choice and
  one layer; for several as transformers' `load_balancing_loss_func`, which pools the
  layers. f has no gradient.

  Args:
    part: of a microbatch.
    whole: of the batch.
  """
  tokens = whole.tokens_R.sum()
  f_E = whole.chosen_RE.sum(0) / jnp.where(tokens == 0, 1, tokens)
  f_E = jax.lax.stop_gradient(f_E)
  total = f_E.size * (f_E * part.prob_RE.sum(0)).sum()
  return Mean(total, part.tokens_R.sum())
