"""From rollouts to batches: every row carries its own prompt, tokens and records."""

import dataclasses

import numpy as np
import pytest

from tests.train.tiny_runs import MODEL
from xpo_jax.config.experiment import ObjectiveConfig, Scratch
from xpo_jax.config.on_policy import (
  Configured,
  Feedback,
  OnlineExperiment,
  Prompts,
  Sampling,
)
from xpo_jax.data.tokenise import Example
from xpo_jax.feedback import rules
from xpo_jax.train import (
  minibatches,
  online_setup,
  pair_construction,
  references,
  rollouts,
)
from xpo_jax.types import Layout

B, K, T = 4, 3, 5


def _run(objective: ObjectiveConfig, made: Configured) -> online_setup.Run:
  """As much of a run as batches are made from."""
  experiment = OnlineExperiment(
    objective,
    Prompts("world:20"),
    Scratch(MODEL),
    Feedback(Configured(rules.synthetic_reward)),
    Sampling(completions=K, max_completion_tokens=T),
    prompts_per_iteration=B,
    minibatches=2,
    arrange=made,
  )
  prompts = rollouts.PromptSet((), (), (), width=4)
  known = {"experiment": experiment, "arrangement": made.build(), "prompts": prompts}
  return online_setup.Run(**dict.fromkeys(online_setup.Run._fields) | known)


def _drawn() -> tuple[rollouts.Rollouts, minibatches.Values]:
  """Token t of completion k of prompt b is n = 100 b + 10 k + t, its log-prob -n."""
  rng = np.random.default_rng(0)
  lengths_BK = rng.integers(1, T + 1, (B, K))
  tokens = [
    [100 * b + 10 * k + np.arange(n, dtype=np.int32) for k, n in enumerate(row)]
    for b, row in enumerate(lengths_BK)
  ]
  prompt = np.arange(3, dtype=np.int32)
  drawn = rollouts.Rollouts(
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
  ("objective", "made"),
  [
    (ObjectiveConfig("dno"), Configured(pair_construction.all_pairs)),
    (
      ObjectiveConfig("cringe"),
      Configured(pair_construction.rated_by_threshold, threshold=0.0),
    ),
    (ObjectiveConfig("rloo"), Configured(pair_construction.as_sampled)),
  ],
  ids=["all_pairs", "rated", "as_sampled"],
)
def test_rows_of_a_prompt_share_its_step_count_and_keep_their_records(objective, made):
  run, (drawn, values) = _run(objective, made), _drawn()
  reward_BK = np.random.default_rng(1).normal(size=(B, K)).astype(np.float32)
  present_BK = np.ones((B, K), np.float32)
  present_BK[1, 0] = 0
  examples, kept = minibatches.arranged(run, drawn, values, reward_BK, present_BK)
  batches, cache = minibatches.batches_of(run, 0, examples, kept)
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
  rows = made.build().choose(reward_BK, present_BK, drawn.length_BK)
  assert sorted(seen) == sorted(row[:2] for row in rows)


@pytest.mark.parametrize(
  ("ties", "sizes"),
  [(0, [2, 2]), (1, [2, 1]), (2, [1, 1]), (3, [1])],  # of B = 4 prompts, in 2 steps
)
@pytest.mark.parametrize("microbatches", [1, 2])
def test_each_pass_is_cut_by_itself_where_prompts_are_left_out(
  ties, sizes, microbatches
):
  run, (drawn, values) = (
    _run(ObjectiveConfig("dpo"), Configured(pair_construction.best_worst)),
    _drawn(),
  )
  run = run._replace(
    experiment=dataclasses.replace(
      run.experiment, ppo_epochs=3, microbatches=microbatches
    )
  )
  reward_BK = np.array([[1, 0, 0]] * (B - ties) + [[1, 1, 1]] * ties, np.float32)
  examples, kept = minibatches.arranged(
    run, drawn, values, reward_BK, np.ones((B, K), bool)
  )
  orders = []
  for index in range(5):
    batches, cache = minibatches.batches_of(run, index, examples, kept)
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
  run, (drawn, values) = (
    _run(ObjectiveConfig("dno"), Configured(pair_construction.all_pairs)),
    _drawn(),
  )
  run = run._replace(experiment=dataclasses.replace(run.experiment, ppo_epochs=2))
  reward_BK = np.random.default_rng(1).normal(size=(B, K)).astype(np.float32)
  examples, kept = minibatches.arranged(run, drawn, values, reward_BK, np.ones((B, K)))
  batches, _ = minibatches.batches_of(run, 0, examples, kept)
  np.testing.assert_array_equal(batches.row_start, np.arange(2 * len(examples) + 1))
  np.testing.assert_array_equal(batches.epoch_start, [0, len(examples)])
  assert batches.steps == 4


@pytest.mark.parametrize(
  ("objective", "made", "columns"),
  [
    (ObjectiveConfig("dno"), Configured(pair_construction.all_pairs), 2),
    (ObjectiveConfig("rloo"), Configured(pair_construction.as_sampled), K),
  ],
  ids=["all_pairs", "as_sampled"],
)
def test_largest_batch_holds_the_longest_prompt_and_completions_at_the_limit(
  objective, made, columns
):
  run = _run(objective, made)
  ids = (np.arange(2, dtype=np.int32), np.arange(4, dtype=np.int32))
  prompts = rollouts.PromptSet(("a", "b"), ("", ""), ids, width=4)
  batch = minibatches.largest(
    run._replace(objective=objective.build(), prompts=prompts)
  )
  assert batch.mask_MBKT.shape[2:] == (columns, T)
  held = batch.mask_MBKT[batch.weight_MB > 0]
  assert held.size and held.all()  # not one completion is short of the limit
  assert batch.target_MRC.shape[-1] >= columns * T
  assert batch.ref["ref_logp_BKT"].shape == batch.mask_MBKT.shape
