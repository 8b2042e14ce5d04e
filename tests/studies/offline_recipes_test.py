"""Recipes of one run on records: they load, and train made small."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.quiet import quiet
from tests.studies import hash_reward
from tests.studies.tiny_task import TINY
from xpo_jax.config import yaml_file
from xpo_jax.config.experiment import Experiment, Pretrained, Stage
from xpo_jax.config.factories import Configured
from xpo_jax.studies import find_recipe
from xpo_jax.studies import task as tasks
from xpo_jax.studies.task import Task
from xpo_jax.train import loop, metrics, run_directory

# A metric that the objective of the recipe writes.
METRICS = {
  "dpo_shift": "reward_margin",
  "simper": "reward_margin",
  "bco_udm": "prompt_weight_rejected",
  "step_dpo": "reward_margin",
  "spin": "reward_margin",
}


@pytest.mark.parametrize("name", METRICS)
def test_recipe_is_a_value_that_takes_texts_and_a_policy_of_ones_own(name, tmp_path):
  experiment = find_recipe.load(name).experiment
  yaml_file.write(tmp_path, experiment)
  assert yaml_file.read(tmp_path)[0] == experiment
  given = find_recipe.load(name, ["source=mine.jsonl", "policy=gpt2"]).experiment
  while isinstance(given.start, Stage):  # SPIN's iterations
    given = given.start.experiment
  assert given.start == Pretrained("gpt2", remat="none")
  assert given.data.path.arguments["policy"] == "gpt2"


@pytest.mark.parametrize("number", ["0", "two"])
def test_number_of_spins_iterations_is_checked(number):
  with pytest.raises(ValueError, match="iterations"):
    find_recipe.load("spin", [f"iterations={number}"])


def test_spin_plays_against_the_iteration_before():
  last = find_recipe.load("spin", ["iterations=3"]).experiment
  for number in (3, 2):
    assert last.seed == number and last.reference is None  # its start
    assert last.start == last.data.path.arguments["policy"]
    last = last.start.experiment
  assert last.start == Stage(tasks.sft(Task()))


@pytest.fixture(scope="module")
def start(tmp_path_factory):
  """A policy after two steps of SFT, where all recipes start."""
  run_dir = tmp_path_factory.mktemp("runs") / "start"
  loop.train(tasks.sft(TINY), run_dir, say=quiet)
  return str(run_dir / run_directory.POLICY)


def _small(experiment: Experiment, start: str) -> Experiment:
  """The experiment on the smallest task; stages before it too."""
  arguments = dict(experiment.data.path.arguments)
  before = Pretrained(start, remat="none")
  if isinstance(arguments["policy"], Stage) and experiment.seed > 1:
    before = Stage(_small(experiment.start.experiment, start))
  arguments["policy"] = start if isinstance(before, Pretrained) else before
  arguments["max_completion_tokens"] = 6
  if "prompts" in arguments:
    arguments |= {"prompts": tasks.prompts(TINY), "num_prompts": 24}
    arguments["reward"] = Configured(hash_reward.scorer)
  else:
    arguments |= {"texts": tasks.sft(TINY).data, "num_texts": 8}
  if "words" in arguments:
    arguments["words"] = 1
  data = dataclasses.replace(
    experiment.data,
    path=Configured(experiment.data.path.name, **arguments),
    rows_per_step=2,
    steps=2,
  )
  return dataclasses.replace(experiment, start=before, data=data)


@pytest.mark.parametrize("name", METRICS)
def test_recipe_learns_in_miniature(name, start, tmp_path):
  small = _small(find_recipe.load(name).experiment, start)
  result = loop.train(small, tmp_path / "run", say=quiet)
  lines = metrics.read(tmp_path / "run")
  assert result.steps == 2 and METRICS[name] in lines[0]
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(result.params))
