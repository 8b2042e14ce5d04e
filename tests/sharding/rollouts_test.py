"""A run on rollouts on a mesh is the run on one device: texts, opponents, updates."""

import dataclasses

import pytest

from tests.train.tiny_runs import MODEL, NASH
from xpo_jax.config import experiment as experiments
from xpo_jax.config.data import Evaluation
from xpo_jax.config.experiment import MeshShape, Scratch
from xpo_jax.config.sampling import Opponent
from xpo_jax.train import loop, metrics, rollouts, run_directory

SAMPLING = dataclasses.replace(
  NASH.data.sampling, opponent=Opponent(0.0, of="average", completions=3)
)
# Nash-EMA: the opponent is the mean of the policy's weights.
ONE = experiments.replace(
  NASH,
  start=Scratch(dataclasses.replace(MODEL, width=16, head_dim=8)),
  prompts_per_iteration=8,
  sampling=SAMPLING,
  optimizer=dataclasses.replace(NASH.optimizer, ema=0.5),
  evaluation=Evaluation(),
)
SPLIT = experiments.replace(
  ONE,
  mesh=MeshShape(data=2, fsdp=2, tensor=2),
  sampling=dataclasses.replace(SAMPLING, slots=4),
)


def test_split_run_with_refilled_slots_is_the_run_on_one_device(tmp_path):
  for name, experiment in (("one", ONE), ("split", SPLIT)):
    assert loop.train(experiment, tmp_path / name, say=lambda text: None).finished
  for iteration in (1, 2):
    path = f"{run_directory.ROLLOUTS}/{iteration:06d}.jsonl"
    one, split = (rollouts.read(tmp_path / name / path) for name in ("one", "split"))
    assert one.texts_BK == split.texts_BK and one.opponents_BJ == split.opponents_BJ
  for one, split in zip(
    *(metrics.read(tmp_path / name) for name in ("one", "split")), strict=True
  ):
    assert one["grad_norm"] > 0
    for measured in ("loss", "grad_norm", "rollout/reward", "rollout/kl"):
      assert split[measured] == pytest.approx(one[measured], rel=1e-3, abs=1e-5)
