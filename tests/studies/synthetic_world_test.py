"""Recipes on rollouts are found by name, refuse nothing, and run in miniature."""

import dataclasses
import zlib

import jax
import numpy as np
import pytest

from xpo_jax.config import experiment as experiments
from xpo_jax.config import yaml_file
from xpo_jax.config.data import Evaluation
from xpo_jax.config.experiment import AuxLossConfig, Loop, Pretrained, Rollouts
from xpo_jax.config.factories import Configured
from xpo_jax.config.sampling import Feedback
from xpo_jax.data import synthetic_reviews
from xpo_jax.data.tokenise import Limits
from xpo_jax.feedback import rules
from xpo_jax.studies import find_recipe, synthetic_world
from xpo_jax.studies.multistage.staged_world import World
from xpo_jax.train import loop, metrics, run_directory, validate

TINY = World(
  texts=60, vocab=320, width=8, layers=1, longest=4, row_length=40, sft_steps=1
)
# What only this method's line of metrics has, or must have.
SHOWS = {
  "rloo": "frac_informative_prompts",
  "ppo": "entropy",
  "ppo_ptx": "loss/text/sft",
  "reinforce": "baseline",
  "grpo": "clip_fraction",
  "dr_grpo": "clip_fraction",
  "dapo": "clip_fraction",
  "gspo": "clip_fraction",
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
}


@pytest.mark.parametrize("name", SHOWS)
def test_recipe_passes_every_check_that_needs_no_data(name, tmp_path):
  experiment = find_recipe.load(name).experiment
  assert isinstance(experiment.data, Rollouts)
  validate.check_rollouts(experiment, {})
  yaml_file.write(tmp_path, experiment)
  assert yaml_file.read(tmp_path)[0] == experiment
  assert experiment.start.experiment == synthetic_world.writer(
    World()
  )  # all start alike


@pytest.mark.parametrize("name", ["rloo", "direct_rlaif"])
def test_recipe_takes_texts_of_ones_own(name):
  experiment = find_recipe.load(name, ["source=mine.jsonl"]).experiment
  first, held_out = experiment.start.experiment.data, experiment.evaluation
  prompts = experiment.data.prompts
  assert first.path == prompts.path == held_out.path == "mine.jsonl"
  assert first.portion == prompts.portion == "train"
  assert held_out.portion == "test"
  # Texts may be longer than completions: those that are cut lose nothing.
  assert experiment.data.feedback.missing_eos is None
  assert find_recipe.load(name).experiment.data.feedback.missing_eos > 0


@pytest.fixture(scope="module")
def start(tmp_path_factory):
  """A policy that has seen one step: all recipes start from it."""
  run_dir = tmp_path_factory.mktemp("runs") / "start"
  loop.train(synthetic_world.writer(TINY), run_dir, say=_quiet)
  return run_dir / run_directory.POLICY


# What the tiny model writes holds no praise of any kind, but letters.
LETTERS = Configured(rules.cyclic_preference, patterns=("[a-h]", "[i-q]", "[r-z]"))
JUDGES = {"nash_md": Feedback(LETTERS, kind="win_rates")}


@pytest.mark.parametrize("name", SHOWS)
def test_recipe_learns_in_miniature(name, start, tmp_path, monkeypatch):
  # Of any text, for the tiny model writes nothing that a lexicon knows.
  monkeypatch.setattr(synthetic_reviews, "true_reward", _reward)
  whole = find_recipe.load(name).experiment
  data = whole.data
  small = experiments.replace(
    whole,
    prompts=dataclasses.replace(data.prompts, path="synthetic:60"),
    start=Pretrained(str(start), remat=False),
    feedback=JUDGES.get(name, data.feedback),
    sampling=dataclasses.replace(
      data.sampling,
      completions=min(data.sampling.completions, 2),
      max_completion_tokens=TINY.longest,
      prompts_at_once=None,
    ),
    iterations=2,
    prompts_per_iteration=4,
    minibatches=min(data.minibatches, 2),
    loop=Loop(log_every=1),
    evaluation=Evaluation(),
    aux_losses=tuple(map(_small, whole.aux_losses)),
  )
  done = loop.train(small, tmp_path / "run", say=_quiet)
  lines = metrics.read(tmp_path / "run")
  updates = small.data.minibatches * small.data.ppo_epochs
  assert [line["updates"] for line in lines] == [updates] * 2
  assert SHOWS[name] in lines[0]
  assert lines[0]["rollout/kl"] == pytest.approx(0, abs=1e-5)
  # In the second iteration the policy has moved, its reference with it if it is to.
  still = small.data.ref_update_every is not None
  assert (abs(lines[1]["rollout/kl"]) < 1e-5) == still
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(done.params))


def _small(loss: AuxLossConfig) -> AuxLossConfig:
  sizes = {"path": "synthetic:60", "rows_per_step": 2, "limits": Limits()}
  return dataclasses.replace(loss, data=dataclasses.replace(loss.data, **sizes))


def _reward(texts) -> np.ndarray:
  return np.array([zlib.crc32(t.encode()) % 997 / 997 for t in texts], np.float32)


def _quiet(text: str) -> None:
  del text
