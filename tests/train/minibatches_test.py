"""From rollouts to batches: every row carries its own prompt, tokens and records."""

import dataclasses

import numpy as np
import pytest

from xpo_jax.config.data import Prompts
from xpo_jax.config.experiment import Rollouts
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.sampling import Feedback, Sampling
from xpo_jax.data.tokenise import Example
from xpo_jax.feedback import rules
from xpo_jax.train import minibatches, pair_construction, references, rollouts_program
from xpo_jax.train.minibatches import RowSizes
from xpo_jax.train.pair_construction import PairConstruction
from xpo_jax.train.rollouts import RolloutBatch
from xpo_jax.types import Layout

B, K, T = 4, 3, 5
DATA = Rollouts(
  prompts=Prompts("synthetic:20"),
  feedback=Feedback(Configured(rules.synthetic_reward)),
  sampling=Sampling(completions=K, max_completion_tokens=T),
  prompts_per_iteration=B,
  minibatches=2,
)


def _cut(pairs: PairConstruction, examples, arrays, data=DATA, index=0):
  sizes = RowSizes(data.rows_per_step, data.microbatches, 4, T)
  return minibatches.cut(data, 0, index, examples, arrays, pairs, sizes)


def _drawn() -> tuple[RolloutBatch, minibatches.Values]:
  """Token t of completion k of prompt b is n = 100 b + 10 k + t, its log-prob -n."""
  rng = np.random.default_rng(0)
  lengths_BK = rng.integers(1, T + 1, (B, K))
  tokens = [
    [100 * b + 10 * k + np.arange(n, dtype=np.int32) for k, n in enumerate(row)]
    for b, row in enumerate(lengths_BK)
  ]
  prompt = np.arange(3, dtype=np.int32)
  drawn = RolloutBatch(
    iteration=0,
    row_B=np.arange(B),
    prompts=("",) * B,
    texts_BK=(("",) * K,) * B,
    examples=tuple(
      Example(f"row {b}", prompt, tuple(ys), Layout.SAMPLED)
      for b, ys in enumerate(tokens)
    ),
    logp=(),
    ended_BK=np.ones((B, K), bool),
  )
  logp = [[-y.astype(np.float32) for y in ys] for ys in tokens]
  return drawn, {"old_logp_BKT": logp}


@pytest.mark.parametrize(
  "pairs",
  [
    pair_construction.all_pairs(),
    pair_construction.rated_by_threshold(threshold=0.0),
    pair_construction.as_sampled(),
  ],
  ids=["all_pairs", "rated", "as_sampled"],
)
# A completion without a reward, or one of every prompt.
@pytest.mark.parametrize("absent", [(1, 0), (slice(None), 0)], ids=["one", "each"])
def test_rows_of_a_prompt_share_its_step_count_and_keep_their_records(pairs, absent):
  drawn, values = _drawn()
  reward_BK = np.random.default_rng(1).normal(size=(B, K)).astype(np.float32)
  present_BK = np.ones((B, K), np.float32)
  present_BK[absent] = 0
  examples, arrays = minibatches.construct(pairs, drawn, values, reward_BK, present_BK)
  batches, cache = _cut(pairs, examples, arrays)
  assert len(batches) == 2  # minibatches, however many rows a prompt has
  seen = []
  for step in range(len(batches)):
    batch = references.fill(cache, batches[step])
    for b in np.flatnonzero(batch.weight_MB[0]):
      columns = []
      for column in np.flatnonzero(batch.present_MBK[0, b]):
        kept_T = batch.mask_MBKT[0, b, column] > 0
        at = batch.index_MBKT[0, b, column][kept_T]
        tokens = batch.target_MRC[0].reshape(-1)[at]
        old_logp = batch.ref["old_logp_BKT"][0, b, column][kept_T]
        np.testing.assert_array_equal(tokens, -old_logp)
        prompt, k = divmod(int(tokens[0]), 100)
        columns.append(k // 10)
        reward = reward_BK[prompt, columns[-1]]
        assert batch.fields["reward_BK"][0, b, column] == reward
        if "desirable_BK" in batch.fields:
          assert batch.fields["desirable_BK"][0, b, column] == (reward > 0)
      seen.append((prompt, columns))
  rows = pairs.choose(reward_BK, present_BK, drawn.length_BK)
  assert sorted(seen) == sorted(row[:2] for row in rows)


@pytest.mark.parametrize(
  ("ties", "sizes"),
  [(0, [2, 2]), (1, [2, 1]), (2, [1, 1]), (3, [1])],  # of B = 4 prompts, in 2 steps
)
@pytest.mark.parametrize("microbatches", [1, 2])
def test_each_pass_is_cut_by_itself_where_prompts_are_left_out(
  ties, sizes, microbatches
):
  pairs, (drawn, values) = pair_construction.best_worst(), _drawn()
  data = dataclasses.replace(DATA, ppo_epochs=3, microbatches=microbatches)
  reward_BK = np.array([[1, 0, 0]] * (B - ties) + [[1, 1, 1]] * ties, np.float32)
  examples, arrays = minibatches.construct(
    pairs, drawn, values, reward_BK, np.ones((B, K), bool)
  )
  orders = []
  for index in range(5):
    batches, cache = _cut(pairs, examples, arrays, data, index)
    assert len(batches) == 3 * len(sizes)
    steps = []
    for step in range(len(batches)):
      batch = references.fill(cache, batches[step])
      assert batch.tokens_MRL.shape[:2] == (microbatches, 2 // microbatches)
      steps.append(batch.row_MB[batch.weight_MB > 0].tolist())
      assert batches.epoch_of(step) == step // len(sizes)
    for once in np.split(np.arange(len(steps)), 3):
      assert [len(steps[at]) for at in once] == sizes
      seen = [row for at in once for row in steps[at]]
      assert sorted(seen) == list(range(B - ties))
    orders.append(steps)
  assert ties == 3 or any(order != orders[0] for order in orders)


def test_rows_are_those_of_the_plan_where_none_is_left_out():
  pairs, (drawn, values) = pair_construction.all_pairs(), _drawn()
  reward_BK = np.random.default_rng(1).normal(size=(B, K)).astype(np.float32)
  examples, arrays = minibatches.construct(
    pairs, drawn, values, reward_BK, np.ones((B, K))
  )
  batches, _ = _cut(pairs, examples, arrays, dataclasses.replace(DATA, ppo_epochs=2))
  np.testing.assert_array_equal(batches.row_start, np.arange(2 * len(examples) + 1))
  np.testing.assert_array_equal(batches.epoch_start, [0, len(examples)])
  assert batches.steps == 4


@pytest.mark.parametrize(
  ("name", "pairs", "columns"),
  [
    ("dno", pair_construction.all_pairs(), 2),
    ("rloo", pair_construction.as_sampled(), K),
  ],
  ids=["all_pairs", "as_sampled"],
)
def test_largest_batch_holds_the_longest_prompt_and_completions_at_the_limit(
  name, pairs, columns
):
  stats = rollouts_program.recorded_stats(ObjectiveConfig(name).build(), Sampling())
  sizes = RowSizes(DATA.rows_per_step, DATA.microbatches, 4, T)
  prompt = np.arange(4, dtype=np.int32)
  batch = minibatches.largest(DATA, prompt, stats, pairs, sizes)
  assert batch.mask_MBKT.shape[2:] == (columns, T)
  held = batch.mask_MBKT[batch.weight_MB > 0]
  assert held.size and held.all()  # not one completion is short of the limit
  assert batch.target_MRC.shape[-1] >= columns * T
  assert batch.ref["ref_logp_BKT"].shape == batch.mask_MBKT.shape


def test_few_row_lengths_hold_every_group():
  sizes = RowSizes(2, 1, prompt_width=7, max_completion_tokens=8)
  shapes = {n: sizes.shape(n, 2) for n in range(1, 7 + 2 * 8 + 1)}
  assert all(shape.L >= n for n, shape in shapes.items())
  assert len(set(shapes.values())) <= 4


def test_minibatches_of_an_iteration_have_an_order_of_their_own():
  pairs, (drawn, _) = pair_construction.as_sampled(), _drawn()

  def order(index):
    data = dataclasses.replace(DATA, minibatches=1)
    batches, _ = _cut(pairs, drawn.examples, {}, data, index)
    return tuple(batches.groups_of(0))

  orders = [order(index) for index in range(8)]
  assert orders == [order(index) for index in range(8)]
  assert len(set(orders)) > 3  # of 24


def test_kl_is_the_sum_of_the_log_ratios_of_a_completion():
  values = {
    "old_logp_BKT": [[np.float32([-1, -2]), np.float32([-3])]],
    "ref_logp_BKT": [[np.float32([-2, -2]), np.float32([-1])]],
  }
  np.testing.assert_array_equal(minibatches.seq_kl(values), [[1.0, -2.0]])
