"""From judged rollouts to minibatches: what is recorded, chosen and packed."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xpo_jax.config.on_policy import OnlineExperiment
from xpo_jax.data import pack
from xpo_jax.data.pack import Batch, Batches
from xpo_jax.data.tokenise import Example
from xpo_jax.train import online_setup, references
from xpo_jax.train.online_setup import Run
from xpo_jax.train.references import Cache
from xpo_jax.train.rollouts import Rollouts
from xpo_jax.types import Layout, Params

Values = Mapping[str, Sequence[Sequence[np.ndarray]]]
"""Field -> for each prompt and completion an array with an entry for each token."""


def recorded(run: Run, drawn: Rollouts, sampler: Params, ref: Params) -> Values:
  """What is known of each token at birth: `old_logp_BKT` as sampled; in one pass of
  scoring, the reference's statistics and, where wanted, the sampler's values."""
  examples = drawn.examples
  batches = pack.eval_batches(
    examples, _sizes_of(run, examples, drawn.length_BK.shape[1])
  )
  roles = online_setup.roles(run, sampler) | {references.ROLE: ref}
  found = references.compute(batches, run.record, roles, run.place).values
  ends = np.cumsum(drawn.length_BK)[:-1]
  K = drawn.length_BK.shape[1]
  values = {"old_logp_BKT": drawn.logp}
  for field, flat in found.items():
    pieces = np.split(flat, ends)
    values[field] = [pieces[b : b + K] for b in range(0, len(pieces), K)]
  return values


def _sizes_of(
  run: Run, examples: Sequence[Example], K: int, rows: int = 1
) -> pack.PackSizes:
  shape = online_setup.row_shape(run, max(e.tokens for e in examples), K, rows)
  return pack.PackSizes(
    rows * run.experiment.rows_per_step,
    microbatches=run.experiment.microbatches,
    row_length=shape.L,
    groups_per_row=1,
    shape=shape,
  )


def seq_kl(values: Values) -> np.ndarray:
  """log pi_old - log pi_ref summed over each completion's tokens (k1), nats."""
  old, ref = values["old_logp_BKT"], values["ref_logp_BKT"]
  return np.array(
    [
      [(a - b).sum(dtype=np.float64) for a, b in zip(*pair, strict=True)]
      for pair in zip(old, ref, strict=True)
    ]
  )


def arranged(
  run: Run, drawn: Rollouts, values: Values, reward_BK, present_BK
) -> tuple[list[Example], dict[str, list[np.ndarray]]]:
  """Examples in the objective's layout, and each field's arrays in their order."""
  rows = run.arrangement.choose(reward_BK, present_BK, drawn.length_BK)
  examples, kept = [], {field: [] for field in values}
  for b, columns, desirable in rows:
    example, fields = drawn.examples[b], {"reward": reward_BK[b, columns]}
    if desirable is not None:
      fields["desirable"] = np.full(len(columns), desirable, np.float32)
    examples.append(
      dataclasses.replace(
        example,
        completions=tuple(example.completions[k] for k in columns),
        layout=run.arrangement.layout,
        fields=fields,
      )
    )
    for field, arrays in values.items():
      kept[field] += [arrays[b][k] for k in columns]
  return examples, kept


def batches_of(
  run: Run, index: int, examples: Sequence[Example], kept: Mapping[str, Any]
) -> tuple[Batches, Cache]:
  """The minibatches of an iteration, and what `references.fill` puts into them.

  Every pass is cut by itself into `minibatches` of as many rows, or one less where the
  arrangement left prompts out: a row stands once in a pass, and the number of updates
  stays that of the schedule unless there are fewer rows than minibatches.
  """
  experiment = run.experiment
  K = experiment.sampling.completions
  # One number from two, so that iterations and seeds do not share orders.
  order = np.random.SeedSequence((experiment.seed, index)).generate_state(1)
  batches = pack.plan(
    examples,
    _sizes_of(run, examples, run.arrangement.completions or K, run.arrangement.rows(K)),
    seed=int(order[0]),
    epochs=experiment.ppo_epochs,
  )
  values = {field: np.concatenate(arrays) for field, arrays in kept.items()}
  return _evened(batches, experiment), references.cache(values, batches.store)


def _evened(batches: Batches, experiment: OnlineExperiment) -> Batches:
  """The same rows, a group each, with empty ones where a step is not full."""
  passes, most = experiment.ppo_epochs, batches.rows_per_step
  rows, steps = len(batches.group) // passes, experiment.minibatches
  steps = min(steps, rows)
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


def largest(run: Run) -> Batch | None:
  """A minibatch of the largest shape: every prompt the longest, every completion at the
  limit; None where the arrangement takes none of rewards that all differ."""
  experiment, ids = run.experiment, max(run.prompts.ids, key=len)
  B, K = experiment.prompts_per_iteration, experiment.sampling.completions
  T = experiment.sampling.max_completion_tokens
  stats = online_setup.recorded(run.objective, experiment.sampling.temperature)
  zeros = np.zeros((B, K, T), np.float32)
  drawn = Rollouts(
    iteration=0,
    row_B=np.arange(B),
    prompts=("",) * B,
    texts_BK=(("",) * K,) * B,
    examples=(Example("", ids, (np.zeros(T, np.int32),) * K, Layout.SAMPLED),) * B,
    logp=zeros,
    ended_BK=zeros[..., 0] > 0,
  )
  values = {field: zeros for field in ("old_logp_BKT", *(s.field for s in stats))}
  reward_BK = np.broadcast_to(np.arange(K, dtype=np.float32) - (K - 1) / 2, (B, K))
  examples, kept = arranged(run, drawn, values, reward_BK, np.ones((B, K), np.float32))
  if not examples:
    return None
  batches, cache = batches_of(run, 0, examples, kept)
  return references.fill(cache, batches[0])
