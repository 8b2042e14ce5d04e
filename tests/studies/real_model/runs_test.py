"""Runs on a chat model's own samples: which pairs, which data, which measures."""

import numpy as np
import pytest

from xpo_jax.config.data import Data, Prompts
from xpo_jax.config.experiment import Rollouts
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.data import records, split
from xpo_jax.evaluation.bootstrap import Interval
from xpo_jax.feedback.protocol import Scores
from xpo_jax.studies.multistage import samples
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
def sampled(monkeypatch):
  """Replaces the samples of two prompts; the reward is a completion's length."""
  cut = records.Cut("the longest of all, but cut")
  texts = (("long enough", " ", cut, "c"), ("dd", "ddd", "dddd", "ddddd"))
  found = samples.Sampled(("p", "q"), texts)
  monkeypatch.setattr(samples, "texts_of", lambda *_: ["p", "q"])
  monkeypatch.setattr(samples, "sample", lambda *_, **__: found)
  monkeypatch.setattr(runs, "MIN_GAP", 4.0)


def own_pairs(**changes):
  return runs.own_pairs(
    "policy",
    Prompts("prompts"),
    lambda prompts, texts: Scores(np.array([len(text) for text in texts], np.float32)),
    max_completion_tokens=4,
    num_prompts=2,
    seed=0,
    temperature=1.0,
    **changes,
  )


def test_pair_is_of_best_and_worst_whole_completion_that_are_far_apart(sampled):
  (pair,) = own_pairs()
  assert (pair.prompt, pair.chosen, pair.rejected) == ("p", "long enough", "c")


def test_flipped_labels_call_the_worse_one_chosen(sampled):
  (true,), (flipped,) = own_pairs(), own_pairs(flipped=True)
  assert (flipped.chosen, flipped.rejected) == (true.rejected, true.chosen)


def test_length_biased_labeller_adds_to_the_reward_for_each_word():
  run = runs.experiment(ObjectiveConfig("dpo"), TASK, seed=0, labels="longer")
  score = run.data.path.arguments["reward"].build()
  good, bad, long = score(["p"] * 3, ["great", "awful", "awful " * 50]).value_N
  assert good > bad
  assert long > good


def test_runs_on_the_same_pairs_share_the_references_log_probs(tmp_path):
  def cache(name, labels="true"):
    config = ObjectiveConfig(name)
    run = runs.experiment(config, TASK, seed=0, labels=labels, store=tmp_path)
    return run.data.reference_cache

  assert cache("dpo") == cache("ipo") == cache("r_dpo")
  others = {cache("dpo"), cache("dpo", "flipped"), cache("dpo", "longer"), cache("kto")}
  assert len(others) == 4
  assert cache("simpo") is cache("tdpo2") is None  # no reference; live in the step


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
