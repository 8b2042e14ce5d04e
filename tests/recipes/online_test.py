"""Online recipes are found by name and refuse nothing before they start."""

import pytest

from xpo_jax.recipes import find
from xpo_jax.train import configure, online_setup
from xpo_jax.train.online_experiment import OnlineExperiment


@pytest.mark.parametrize("name", ["rloo", "ppo"])
def test_recipe_passes_every_check_that_needs_no_data(name, tmp_path):
  experiment = find.load(name).experiment
  assert isinstance(experiment, OnlineExperiment)
  online_setup.check(experiment)
  configure.write(tmp_path, experiment)
  assert configure.read(tmp_path)[0] == experiment
