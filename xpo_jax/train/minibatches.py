"""Makes minibatches of rollouts: records statistics, constructs pairs, packs."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from xpo_jax.config.experiment import Rollouts
from xpo_jax.data import pack
from xpo_jax.data.pack import Batch, Batches, PackSizes, Shape
from xpo_jax.data.tokenise import Example
from xpo_jax.train import references
from xpo_jax.train.pair_construction import PairConstruction
from xpo_jax.train.references import Cache
from xpo_jax.train.rollouts import RolloutBatch
from xpo_jax.types import Layout, Params, TokenStat

Values = Mapping[str, Sequence[Sequence[np.ndarray]]]
"""Field -> for each prompt and completion an array with an entry for each token."""

_BUCKETS = 4  # row lengths that the step may compile for


class RowSizes(NamedTuple):
  """Sizes of batches of rollouts, a prompt group in each row.

  Attributes:
    rows_per_step: prompts of an optimiser step.
    microbatches: gradient accumulation.
    prompt_width: tokens of the longest prompt.
    max_completion_tokens: limit on the tokens of a completion.
  """

  rows_per_step: int
  microbatches: int
  prompt_width: int
  max_completion_tokens: int

  def shape(self, longest: int, completions: int, rows: int = 1) -> Shape:
    """Computes the shape of a batch, with one of few row lengths.

    Row lengths are quarters of the longest possible row, so that short completions are
    not padded to the limit, and at most four programs are compiled.

    Args:
      longest: tokens of the longest group.
      completions: completions of a group.
      rows: largest number of rows of a prompt.
    """
    completion_tokens = completions * self.max_completion_tokens
    most = self.prompt_width + completion_tokens
    quarter = -(-most // _BUCKETS)
    length = -(-longest // quarter) * quarter
    groups = rows * self.rows_per_step // self.microbatches
    return Shape(
      length,
      groups,
      completions,
      self.max_completion_tokens,
      min(completion_tokens, length),
    )

  def plan(
    self, examples: Sequence[Example], completions: int, rows: int = 1
  ) -> PackSizes:
    """Computes how examples are packed, a prompt group in each row."""
    shape = self.shape(max(e.tokens for e in examples), completions, rows)
    return PackSizes(
      rows_per_step=rows * self.rows_per_step,
      microbatches=self.microbatches,
      row_length=shape.L,
      groups_per_row=1,
      shape=shape,
    )


def record(
  drawn: RolloutBatch,
  score: Callable[[Mapping[str, Params], Batch], dict[str, jax.Array]],
  roles: Mapping[str, Params],
  sizes: RowSizes,
  place: Callable[[Batch], Batch],
) -> Values:
  """Records the statistics of each token at sampling time: `old_logp_BKT` and
  `sampler_logp_BKT` as sampled; in one scoring pass, the reference's and, where needed,
  the values, and in place of the former the log-probs, of the policy that sampled.

  Args:
    drawn: the rollouts.
    score: see `references.recorder`.
    roles: role -> parameters that `score` reads.
    sizes: of the batches.
    place: puts a batch on the mesh.
  """
  K = drawn.length_BK.shape[1]
  batches = pack.eval_batches(drawn.examples, sizes.plan(drawn.examples, K))
  scored = references.compute(batches, score, roles, place).values
  ends = np.cumsum(drawn.length_BK)[:-1]
  values = {"old_logp_BKT": drawn.logp}
  if drawn.sampler_logp:
    values["sampler_logp_BKT"] = drawn.sampler_logp
  for field, flat in scored.items():
    pieces = np.split(flat, ends)
    values[field] = [pieces[b : b + K] for b in range(0, len(pieces), K)]
  return values


def seq_kl(values: Values) -> np.ndarray:
  """Sums log pi_old - log pi_ref over each completion's tokens (k1), nats."""
  old, ref = values["old_logp_BKT"], values["ref_logp_BKT"]
  return np.array(
    [
      [(a - b).sum(dtype=np.float64) for a, b in zip(*pair, strict=True)]
      for pair in zip(old, ref, strict=True)
    ]
  )


def construct(
  pairs: PairConstruction,
  drawn: RolloutBatch,
  values: Values,
  reward_BK: np.ndarray,
  present_BK: np.ndarray,
) -> tuple[list[Example], dict[str, list[np.ndarray]]]:
  """Makes examples in the objective's layout, and each field's arrays in order."""
  chosen = pairs.choose(reward_BK, present_BK, drawn.length_BK)
  examples, arrays = [], {field: [] for field in values}
  for b, columns, desirable in chosen:
    example, fields = drawn.examples[b], {"reward": reward_BK[b, columns]}
    if desirable is not None:
      fields["desirable"] = np.full(len(columns), desirable, np.float32)
    examples.append(
      dataclasses.replace(
        example,
        completions=tuple(example.completions[k] for k in columns),
        layout=pairs.layout,
        fields=fields,
      )
    )
    for field, by_prompt in values.items():
      arrays[field] += [by_prompt[b][k] for k in columns]
  return examples, arrays


def cut(
  data: Rollouts,
  seed: int,
  index: int,
  examples: Sequence[Example],
  arrays: Mapping[str, Sequence[np.ndarray]],
  pairs: PairConstruction,
  sizes: RowSizes,
) -> tuple[Batches, Cache]:
  """Splits an iteration into minibatches, with the cache for `references.fill`.

  Each pass is split into `minibatches` of equal numbers of rows, or one less where the
  pair construction left prompts out: a row occurs once in a pass, and the number of
  optimiser steps is that of the schedule unless there are fewer rows than minibatches.

  Args:
    data: the run's.
    seed: of the run.
    index: of the iteration.
    examples, arrays: of `construct`.
    pairs: the pair construction of `construct`.
    sizes: of the batches.
  """
  K = data.sampling.completions
  # Hashed together, so that iterations and seeds do not share orders.
  order = np.random.SeedSequence((seed, index)).generate_state(1)
  batches = pack.plan(
    examples,
    sizes.plan(examples, pairs.completions or K, pairs.rows(K)),
    seed=int(order[0]),
    epochs=data.ppo_epochs,
  )
  values = {field: np.concatenate(rows) for field, rows in arrays.items()}
  return _evened(batches, data), references.cache(values, batches.store)


def _evened(batches: Batches, data: Rollouts) -> Batches:
  """Distributes the rows evenly over steps, padded with empty rows."""
  passes, most = data.ppo_epochs, batches.rows_per_step
  rows = len(batches.group) // passes
  steps = min(data.minibatches, rows)
  whole, left = divmod(rows, steps)
  taken = np.full(steps, whole) + (np.arange(steps) < left)
  size = np.arange(most) < taken[:, None]  # of each row of each step of a pass
  row_start = np.concatenate([[0], np.tile(size.ravel(), passes).cumsum()])
  return dataclasses.replace(
    batches,
    row_start=row_start,
    epoch_start=np.arange(passes) * steps * most,
    steps=passes * steps,
  )


def largest(
  data: Rollouts,
  prompt: np.ndarray,
  stats: Sequence[TokenStat],
  pairs: PairConstruction,
  sizes: RowSizes,
) -> Batch | None:
  """Makes a minibatch of the largest shape: every prompt the longest, every completion
  at the limit; None where the pair construction selects no completions.

  Args:
    data: the run's.
    prompt: the longest one.
    stats: recorded statistics; see `rollouts_program.recorded_stats`.
    pairs: the pair construction.
    sizes: of the batches.
  """
  B, K = data.prompts_per_iteration, data.sampling.completions
  T = data.sampling.max_completion_tokens
  zeros = np.zeros((B, K, T), np.float32)
  drawn = RolloutBatch(
    iteration=0,
    row_B=np.arange(B),
    prompts=("",) * B,
    texts_BK=(("",) * K,) * B,
    examples=(Example("", prompt, (np.zeros(T, np.int32),) * K, Layout.SAMPLED),) * B,
    logp=zeros,
    ended_BK=zeros[..., 0] > 0,
  )
  fields = ("old_logp_BKT", "sampler_logp_BKT", *(stat.field for stat in stats))
  values = {field: zeros for field in fields}
  reward_BK = np.broadcast_to(np.arange(K, dtype=np.float32) - (K - 1) / 2, (B, K))
  present_BK = np.ones((B, K), np.float32)
  examples, arrays = construct(pairs, drawn, values, reward_BK, present_BK)
  if not examples:
    return None
  batches, cache = cut(data, 0, 0, examples, arrays, pairs, sizes)
  return references.fill(cache, batches[0])
