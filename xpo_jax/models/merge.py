"""Merges models fine-tuned from one base, by differences of parameter pytrees.

    sft, dpo = merge.delta(sft_params, base), merge.delta(dpo_params, base)
    params = merge.apply(base, merge.ties([sft, dpo], keep=0.2))

PAFT (Pentyala et al. 2024, arXiv:2406.17923) trains SFT, sparse by an L1 penalty, and
DPO in parallel and merges them this way. Use differences of whole weights, not of LoRA
factors: a mean of factors is not the mean of their products. Apply DARE before TIES:
`ties([dare(sft, 0.5, key), ..])`.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from xpo_jax.types import Array, Params


def delta(params: Params, base: Params) -> Params:
  """Computes params - base, in at least float32.

  Raises:
    ValueError: trees of different structure or shapes, by path.
  """
  _check_alike([base, params])

  def difference(x: Array, base: Array) -> Array:
    dtype = jnp.promote_types(jnp.result_type(x, base), jnp.float32)
    return jnp.asarray(x, dtype) - jnp.asarray(base, dtype)

  return jax.tree.map(difference, params, base)


def apply(base: Params, change: Params, scale: float | Array = 1.0) -> Params:
  """Computes base + scale * change, in the base's dtypes.

  Raises:
    ValueError: trees of different structure or shapes, by path.
  """
  _check_alike([base, change])
  return jax.tree.map(
    lambda x, change: (x + scale * change).astype(jnp.result_type(x)), base, change
  )


def linear(deltas: Sequence[Params], weights: Sequence[float | Array]) -> Params:
  """Computes the weighted mean of differences: with `apply`, of the models' weights.

  Raises:
    ValueError: trees that differ, by path; not one weight for each difference.
  """
  total = sum(weights)
  return jax.tree.map(lambda x: x / total, task_arithmetic(deltas, weights))


def task_arithmetic(
  deltas: Sequence[Params], weights: Sequence[float | Array]
) -> Params:
  """Computes the weighted sum of differences, without normalising the weights.

  Paper: Ilharco et al. 2022, arXiv:2212.04089.

  Raises:
    ValueError: trees that differ, by path; not one weight for each difference.
  """
  _check_alike(deltas)
  if len(weights) != len(deltas):
    raise ValueError(
      f"merge: {len(weights)} weights for {len(deltas)} deltas; give one per delta"
    )
  return jax.tree.map(
    lambda *x: sum(w * one for w, one in zip(weights, x, strict=True)), *deltas
  )


def trim(change: Params, keep: float) -> Params:
  """Keeps the given fraction of entries largest in magnitude and zeroes the others.

  The fraction is of the whole tree, not of each leaf, as in TIES: floor(keep * entries)
  are kept, and all entries that equal the smallest of them in magnitude.

  Raises:
    ValueError: keep is not in (0, 1].
  """
  if not 0 < keep <= 1:
    raise ValueError(f"merge: keep={keep!r} must be > 0 and <= 1 (paper: 0.2)")
  size_N = jnp.concatenate([jnp.abs(x).ravel() for x in jax.tree.leaves(change)])
  # 1e-9 corrects rounding errors: 0.29 * 100 = 28.999999999999996.
  count = int(keep * size_N.size + 1e-9)
  if count == 0:
    return jax.tree.map(jnp.zeros_like, change)
  threshold = jnp.sort(size_N)[-count]
  return jax.tree.map(lambda x: jnp.where(jnp.abs(x) >= threshold, x, 0), change)


def elect_sign(deltas: Sequence[Params]) -> Params:
  """Returns the sign of the sum of each entry, 0 where the sum is 0.

  TIES' code replaces the 0 by the majority's sign, which is not in the paper.

  Raises:
    ValueError: trees that differ, by path.
  """
  return jax.tree.map(jnp.sign, task_arithmetic(deltas, [1.0] * len(deltas)))


def disjoint_sum(deltas: Sequence[Params]) -> Params:
  """Sums the entries whose sign is the elected one.

  Raises:
    ValueError: trees that differ, by path.
  """
  return _sum_agreeing(deltas, lambda x: x)


def disjoint_mean(deltas: Sequence[Params]) -> Params:
  """Averages the entries whose sign is the elected one; 0 where there is none.

  Raises:
    ValueError: trees that differ, by path.
  """
  count = _sum_agreeing(deltas, jnp.ones_like)
  return jax.tree.map(
    lambda total, n: total / jnp.maximum(n, 1), disjoint_sum(deltas), count
  )


def _sum_agreeing(
  deltas: Sequence[Params], counted: Callable[[Array], Array]
) -> Params:
  def total(sign: Array, *deltas: Array) -> Array:
    return sum(jnp.where(x * sign > 0, counted(x), 0) for x in deltas)

  return jax.tree.map(total, elect_sign(deltas), *deltas)


def ties(
  deltas: Sequence[Params],
  keep: float = 0.2,
  combine: Callable[[Sequence[Params]], Params] = disjoint_mean,
) -> Params:
  """Merges by TIES: trims, elects a sign per entry, averages the agreeing entries.

  Paper: Yadav et al. 2023, arXiv:2306.01708. Its code keeps one entry more than the
  given fraction; this function does not.

  Args:
    deltas: one difference per task.
    keep: fraction of the entries to keep, see `trim`. Paper: 0.2.
    combine: `disjoint_mean` (the default, and the paper's) or `disjoint_sum`.

  Raises:
    ValueError: trees that differ, by path; `keep` out of range.
  """
  return combine([trim(one, keep) for one in deltas])


def dare(change: Params, drop: float, key: Array) -> Params:
  """Applies DARE: zeroes random entries and rescales the others, without bias.

  Paper: Yu et al. 2023, arXiv:2311.03099.

  Args:
    change: a difference.
    drop: probability of zeroing an entry, independently; 0 <= drop < 1. Paper: 0.9 and
      more for large models; smaller models tolerate less.
    key: PRNG key, folded with the index of the leaf.

  Raises:
    ValueError: drop out of range.
  """
  if not 0 <= drop < 1:
    raise ValueError(f"merge: drop={drop!r} must be >= 0 and < 1")
  leaves, tree = jax.tree.flatten(change)

  def sparsified(i: int, x: Array) -> Array:
    mask = jax.random.bernoulli(jax.random.fold_in(key, i), 1 - drop, x.shape)
    return jnp.where(mask, x / (1 - drop), 0)

  return jax.tree.unflatten(tree, [sparsified(i, x) for i, x in enumerate(leaves)])


def _check_alike(trees: Sequence[Params]) -> None:
  if not trees:
    raise ValueError("merge: no trees; give at least one")
  first = _shapes(trees[0])
  for i, tree in enumerate(trees[1:], 1):
    other = _shapes(tree)
    for path in sorted(first.keys() ^ other.keys()):
      has = "the first has" if path in first else f"number {i} has"
      raise ValueError(f"merge: trees differ: only {has} the leaf {path}")
    for path, shape in first.items():
      if other[path] != shape:
        raise ValueError(
          f"merge: shapes differ at {path}: {shape} in the first, {other[path]} in "
          f"number {i}"
        )


def _shapes(tree: Params) -> dict[str, tuple[int, ...]]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path): np.shape(x) for path, x in leaves}
