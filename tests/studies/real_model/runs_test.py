"""Runs on a chat model's own samples: which pairs, which data, which measures."""

import pytest

from xpo_jax.config.data import Data, Prompts
from xpo_jax.config.experiment import Rollouts
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.data import records, split
from xpo_jax.data.records import Pair
from xpo_jax.evaluation.bootstrap import Interval
from xpo_jax.studies.multistage import preference_pairs
from xpo_jax.studies.multistage.arm_table import ArmRow
from xpo_jax.studies.real_model import compare, opinions, runs

TASK = runs.task("policy")


def test_every_portion_has_the_prompts_that_the_task_asks_for():
  prompts = opinions.prompts()
  assert len({prompt.prompt for prompt in prompts}) == len(prompts)
  portions = split.by_prompt(prompts, split.PORTIONS)
  assert len(portions["train"]) >= TASK.num_prompts
  for portion in ("tune", "test"):
    assert len(portions[portion]) >= TASK.eval_prompts


@pytest.fixture
def ranked(monkeypatch):
  """Replaces the ranking of samples by three pairs, two of them with a cut text."""
  pairs = [
    Pair("whole", "p", "good", "bad"),
    Pair("chosen is cut", "p", records.Cut("good and"), "bad"),
    Pair("rejected is cut", "p", "good", records.Cut("bad and")),
  ]
  monkeypatch.setattr(preference_pairs, "ranked", lambda *_, **__: pairs)


def own_pairs(**changes):
  return runs.own_pairs(
    "policy",
    Prompts("prompts"),
    None,
    max_completion_tokens=4,
    num_prompts=1,
    seed=0,
    temperature=1.0,
    **changes,
  )


def test_pairs_with_a_cut_completion_are_left_out(ranked):
  assert [pair.uid for pair in own_pairs()] == ["whole"]


def test_flipped_labels_call_the_worse_one_chosen(ranked):
  (true,), (flipped,) = own_pairs(), own_pairs(labels="flipped")
  assert (flipped.chosen, flipped.rejected) == (true.rejected, true.chosen)


@pytest.mark.parametrize("name", ["dpo", "kto", "sft"])
def test_objective_of_records_learns_from_the_models_pairs(name):
  run = runs.experiment(ObjectiveConfig(name), TASK, seed=3)
  assert isinstance(run.data, Data) and isinstance(run.data.path, Configured)
  # Every seed has the same pairs; order, adapter and draws are its own.
  assert run.data.path.arguments["seed"] == 0
  assert (run.seed, run.data.seed) == (3, 3)
  assert run.adapter == TASK.adapter


@pytest.mark.parametrize("name", ["rloo", "grpo", "online_dpo"])
def test_objective_of_samples_learns_from_fresh_ones(name):
  run = runs.experiment(ObjectiveConfig(name), TASK, seed=3)
  assert isinstance(run.data, Rollouts)
  assert run.data.feedback.source == TASK.reward
  assert run.data.temperature == TASK.temperature
  assert run.data.prompts.portion == "train"
  assert run.adapter == TASK.adapter


def test_labels_of_fresh_samples_cannot_be_flipped():
  with pytest.raises(ValueError, match="rloo learns from the reward of its own"):
    runs.experiment(ObjectiveConfig("rloo"), TASK, seed=0, labels="flipped")


@pytest.mark.parametrize(
  ("check", "low", "high", "holds"),
  [
    (compare.raises, 0.1, 0.3, True),
    (compare.raises, -0.1, 0.3, False),
    (compare.raises, -0.3, -0.1, False),
    (compare.lowers, -0.3, -0.1, True),
    (compare.lowers, -0.3, 0.1, False),
  ],
)
def test_check_holds_where_the_whole_interval_does(check, low, high, holds):
  change = Interval((low + high) / 2, low, high, 0.1, 23)
  found = check(ArmRow("DPO", {"change": change}, 0.0))
  assert found.holds == holds
  assert f"DPO {check.__name__} the reward" in found.statement
