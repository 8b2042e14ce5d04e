"""Converts the pair layouts of public codes to a `Scored`; no arithmetic."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xpo_jax import scored
from xpo_jax.ops import masked
from xpo_jax.types import EvaluatedLoss, Objective, Scored, TokenStat

Arrays = dict[str, Any]


def sides(first: jax.Array, second: jax.Array) -> jax.Array:
  return jnp.stack([first, second], 1)


def halves(rows: jax.Array) -> jax.Array:
  """Chosen rows, then rejected rows, to one row per pair."""
  return sides(*jnp.split(rows, 2))


def padded(rows: Iterable) -> tuple[jax.Array, jax.Array]:
  """Rows of unequal lengths as columns with padding, and 1 where there is a value."""
  rows = [jnp.asarray(row) for row in rows]
  K = max(len(row) for row in rows)
  whole, present = (np.zeros((len(rows), K)) for _ in range(2))
  for b, row in enumerate(rows):
    whole[b, : len(row)], present[b, : len(row)] = row, 1
  return jnp.asarray(whole), jnp.asarray(present)


class Groups:
  """Rows that name their group, in any order and number, as columns and back."""

  def __init__(self, group_N: Iterable):
    members: dict[int, list[int]] = {}
    for row, group in enumerate(group_N.tolist()):
      members.setdefault(group, []).append(row)
    place_BK, self.present_BK = padded(members.values())
    self._place_BK = place_BK.astype(int)

  def columns(self, rows: jax.Array) -> jax.Array:
    """Absent columns hold 0."""
    x, present = rows[self._place_BK], self.present_BK
    while present.ndim < x.ndim:
      present = present[..., None]
    return jnp.where(present > 0, x, 0)

  def rows(self, x: jax.Array) -> jax.Array:
    here = self.present_BK > 0
    return jnp.zeros_like(x[here]).at[self._place_BK[here]].set(x[here])


def rows(x_BK: jax.Array) -> jax.Array:
  """Back to chosen rows, then rejected rows."""
  return jnp.concatenate([x_BK[:, 0], x_BK[:, 1]])


def from_labels(
  x: Arrays,
  names: tuple[str, ...],
  rows: Callable,
  labels: str = "labels",
  stats: Iterable[TokenStat] | None = None,
) -> Scored:
  """Makes a record from logits and labels; the first label is unused, -100 masked."""
  labels = x[labels][:, 1:]
  logits = [rows(x[name][:, :-1]) for name in names]
  tokens, mask = rows(jnp.where(labels == -100, 0, labels)), rows(labels != -100)
  return scored.from_logits(logits[0], tokens, mask, *logits[1:], stats=stats)


def from_ids(x: Arrays, stats: Iterable[TokenStat] | None = None) -> Scored:
  """Makes a record from logits, token ids and a completion mask, pairs as halves."""
  logits = [halves(x[name][:, :-1]) for name in ("policy_logits", "ref_logits")]
  ids, mask = halves(x["input_ids"][:, 1:]), halves(x["completion_mask"][:, 1:])
  return scored.from_logits(logits[0], ids, mask, logits[1], stats=stats)


def pair(x: Arrays, reference: bool = True) -> Scored:
  """Makes a pair record from any layout in the golden files."""
  if "policy_chosen_logps" in x:
    logp = sides(x["policy_chosen_logps"], x["policy_rejected_logps"])
    ref = sides(x["ref_chosen_logps"], x["ref_rejected_logps"]) if reference else None
    return scored.from_sequence_logps(logp, jnp.ones_like(logp), ref)
  if "policy_chosen_token_logps" in x:
    logp = sides(x["policy_chosen_token_logps"], x["policy_rejected_token_logps"])
    ref = sides(x["ref_chosen_token_logps"], x["ref_rejected_token_logps"])
    # Masked positions hold 0 and that code adds them up: they have a gradient there.
    s = scored.from_token_logps(logp, jnp.ones_like(logp), ref)
    length = masked.length(sides(x["chosen_mask"], x["rejected_mask"]))
    return s.replace(length_BK=length)
  if "policy_per_token_logps" in x:
    return scored.from_token_logps(
      halves(x["policy_per_token_logps"]),
      halves(x["shifted_completion_mask"]),
      halves(x["ref_per_token_logps"]),
    )
  if "completion_mask" in x:
    return from_ids(x)
  names = ("policy_logits", "reference_logits") if reference else ("policy_logits",)
  return from_labels(x, names, halves)


def outputs(out: EvaluatedLoss) -> Arrays:
  return {
    "differentiate": out.loss,
    "mean_loss": out.loss,
    "per_example_losses": out.per_example_B,
  }


def row_by_row(objective: Objective, record: Scored) -> EvaluatedLoss:
  """Evaluates every row as a batch of its own, where denominators differ."""
  one = jax.tree.map(lambda x: x[:, None], record)
  return jax.vmap(lambda row: scored.evaluate(objective, row))(one)
