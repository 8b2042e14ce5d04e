"""Tasks replace texts, policy and reward of a recipe; recipes on rollouts learn."""

import dataclasses
import zlib

import jax
import numpy as np
import pytest

from tests.quiet import quiet
from xpo_jax.config import experiment as experiments
from xpo_jax.config import yaml_file
from xpo_jax.config.data import Evaluation
from xpo_jax.config.experiment import (
  AuxLossConfig,
  Experiment,
  Loop,
  Pretrained,
  Rollouts,
  Stage,
)
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.sampling import Feedback
from xpo_jax.data import synthetic_reviews
from xpo_jax.data.tokenise import Limits
from xpo_jax.feedback import rules
from xpo_jax.studies import find_recipe
from xpo_jax.studies import task as tasks
from xpo_jax.studies.task import Task
from xpo_jax.train import loop, metrics, run_directory, validate

SMALL = Task(
  num_texts=60,
  vocab=320,
  width=8,
  layers=1,
  max_completion_tokens=4,
  row_length=40,
  sft_steps=1,
)
# A metric that the method of the recipe writes.
METRICS = {
  "rloo": "frac_informative_prompts",
  "ppo": "entropy",
  "ppo_ptx": "loss/text/sft",
  "reinforce": "baseline",
  "grpo": "clip_fraction",
  "dr_grpo": "clip_fraction",
  "dapo": "clip_fraction",
  "gspo": "clip_fraction",
  "gspo_token": "clip_fraction",
  "sapo": "gate",
  "gmpo": "clip_fraction",
  "lite_ppo": "clip_fraction",
  "reinforce_plus_plus": "clip_fraction",
  "reinforce_plus_plus_baseline": "clip_fraction",
  "entropy_bonus": "loss/entropy_bonus",
  "remax": "greedy_reward",
  "raft": "reward_kept",
  "online_dpo": "reward_margin",
  "iterative_dpo": "reward_margin",
  "exploratory_dpo": "logp_of_ref_sample",
  "sppo": "reward_margin",
  "dno": "reward_margin",
  "iterative_cringe": "loss/cringe",
  "nash_md": "win_rate",
  "direct_rlaif": "baseline",
  "gkd": "seq_divergence",
  "on_policy_distillation": "teacher_kl",
  "minillm": "loss/long_range",
}


@pytest.mark.parametrize("name", METRICS)
def test_recipe_passes_every_check_that_needs_no_data(name, tmp_path):
  experiment = find_recipe.load(name).experiment
  assert isinstance(experiment, Experiment) and isinstance(experiment.data, Rollouts)
  validate.check_rollouts(experiment, {})
  yaml_file.write(tmp_path, experiment)
  assert yaml_file.read(tmp_path)[0] == experiment
  assert experiment.start == Stage(tasks.sft(Task()))  # the same for all


@pytest.mark.parametrize("name", METRICS)
def test_recipe_takes_texts_and_a_policy_of_ones_own(name):
  given = find_recipe.load(name, ["source=mine.jsonl", "policy=gpt2"]).experiment
  assert given.start == Pretrained("gpt2", remat="none")
  assert given.data.prompts.path == given.evaluation.path == "mine.jsonl"
  assert given.data.prompts.portion == "train" and given.evaluation.portion == "test"
  assert {loss.data.path for loss in given.aux_losses} <= {"mine.jsonl"}
  # Texts may be longer than the limit: a cut completion loses nothing.
  assert given.data.feedback.missing_eos is None


def test_start_is_sft_on_the_training_portion_unless_a_policy_is_given():
  start = tasks.start(Task("mine.jsonl")).experiment
  assert (start.data.path, start.data.portion) == ("mine.jsonl", "train")
  assert tasks.start_weights(Task()) == tasks.start(Task())
  assert tasks.start_weights(Task(policy="gpt2")) == "gpt2"


def test_reward_of_ones_own_judges_rollouts():
  reward = Configured(rules.matches, pattern="good")
  made = tasks.on_rollouts(ObjectiveConfig("rloo"), Task(reward=reward), iterations=3)
  assert made.data.feedback.source == reward and made.data.iterations == 3


def test_seed_that_stands_twice_or_none_is_refused():
  for seeds in ((), (1, 1)):
    with pytest.raises(ValueError, match=r"Task\.seeds"):
      Task(seeds=seeds)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
  """A policy after one step of SFT, where all recipes start."""
  run_dir = tmp_path_factory.mktemp("runs") / "start"
  loop.train(tasks.sft(SMALL), run_dir, say=quiet)
  return run_dir / run_directory.POLICY


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
  """A larger policy after one step, of the same tokenizer."""
  run_dir = tmp_path_factory.mktemp("runs") / "teacher"
  larger = dataclasses.replace(SMALL, width=16)
  loop.train(tasks.sft(larger), run_dir, say=quiet)
  return Pretrained(str(run_dir / run_directory.POLICY), remat="none")


# The small model writes letters, which no kind of praise matches.
LETTERS = Configured(rules.cyclic_preference, patterns=("[a-h]", "[i-q]", "[r-z]"))
# It ends nothing either, and `dapo` leaves out what did not end.
SUCCESS = Configured(
  rules.at_least, scorer=Configured(rules.synthetic_reward), threshold=0.5
)
JUDGES = {
  "nash_md": Feedback(LETTERS, kind="win_rates"),
  "dapo": Feedback(SUCCESS, overlong_buffer=2),
}


@pytest.mark.parametrize("name", METRICS)
def test_recipe_learns_in_miniature(name, start, teacher, tmp_path, monkeypatch):
  # A reward of any text: the lexicon knows no word that the small model writes.
  monkeypatch.setattr(synthetic_reviews, "true_reward", _reward)
  whole = find_recipe.load(name).experiment
  data = whole.data
  small = experiments.replace(
    whole,
    prompts=dataclasses.replace(data.prompts, path="synthetic:60"),
    start=Pretrained(str(start), remat="none"),
    teacher=None if whole.teacher is None else teacher,
    feedback=JUDGES.get(name, data.feedback),
    sampling=dataclasses.replace(
      data.sampling,
      completions=min(data.sampling.completions, 2),
      max_completion_tokens=SMALL.max_completion_tokens,
      prompts_at_once=None,
    ),
    iterations=2,
    prompts_per_iteration=4,
    minibatches=min(data.minibatches, 2),
    loop=Loop(log_every=1),
    evaluation=Evaluation(),
    aux_losses=tuple(map(_small, whole.aux_losses)),
  )
  result = loop.train(small, tmp_path / "run", say=quiet)
  lines = metrics.read(tmp_path / "run")
  updates = small.data.minibatches * small.data.ppo_epochs
  assert [line["updates"] for line in lines] == [updates] * 2
  assert METRICS[name] in lines[0]
  assert lines[0]["rollout/kl"] == pytest.approx(0, abs=1e-5)
  # In the second iteration the policy has moved, and the reference with it if it is
  # updated.
  same = small.data.ref_update_every is not None
  assert (abs(lines[1]["rollout/kl"]) < 1e-5) == same
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(result.params))


def _small(loss: AuxLossConfig) -> AuxLossConfig:
  sizes = {"path": "synthetic:60", "rows_per_step": 2, "limits": Limits()}
  return dataclasses.replace(loss, data=dataclasses.replace(loss.data, **sizes))


def _reward(texts) -> np.ndarray:
  return np.array([zlib.crc32(t.encode()) % 997 / 997 for t in texts], np.float32)
