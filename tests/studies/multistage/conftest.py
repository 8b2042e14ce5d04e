"""A policy for the functions that make records of its samples."""

import pytest

from tests.studies.tiny_task import TINY
from xpo_jax.studies import task as tasks
from xpo_jax.train import loop, run_directory


@pytest.fixture(scope="session")
def tiny_policy(tmp_path_factory):
  """Directory of the policy that SFT on the smallest task leaves."""
  run_dir = tmp_path_factory.mktemp("tiny_policy") / "sft"
  loop.train(tasks.sft(TINY), run_dir, say=lambda text: None)
  return str(run_dir / run_directory.POLICY)
