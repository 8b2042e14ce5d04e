"""A run on rollouts on a mesh is the run on one device: texts, opponents, updates."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.train.tiny_runs import MODEL, NASH, PLAIN
from xpo_jax.config import experiment as experiments
from xpo_jax.config.data import Evaluation
from xpo_jax.config.experiment import MeshShape, Scratch
from xpo_jax.config.optim import Optimizer
from xpo_jax.config.sampling import Opponent
from xpo_jax.models import generate
from xpo_jax.models.lora import Adapter
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


LORA = Adapter(rank=2, alpha=4.0, targets="query|up", dora=True)


@pytest.mark.parametrize(
  ("adapter", "to_sample"),
  [(None, None), (LORA, MeshShape(data=4, tensor=2))],
  ids=["all weights", "adapter, sampled on another mesh"],
)
def test_samples_on_a_mesh_are_those_of_one_device(
  adapter, to_sample, tmp_path, monkeypatch
):
  one = experiments.replace(
    PLAIN,
    adapter=adapter,
    iterations=2,
    prompts_per_iteration=8,
    sampling=dataclasses.replace(PLAIN.data.sampling, prompts_at_once=3),
    # With a small eps, Adam scales rounding errors of zero gradients up to whole steps.
    optimizer=Optimizer(learning_rate=1e-2, eps=1e-2),
  )
  split = experiments.replace(
    one,
    mesh=MeshShape(data=2, fsdp=2, tensor=2),
    sampling=dataclasses.replace(one.data.sampling, mesh=to_sample),
  )
  sampled_on, generated = [], generate.generate

  def watched(model, params, *args, batching, **how):
    mesh = batching.mesh
    sampled_on.append(mesh and tuple(mesh.shape.values()))
    if mesh is not None:
      assert {x.sharding.mesh for x in jax.tree.leaves(params)} == {mesh}
    return generated(model, params, *args, batching=batching, **how)

  monkeypatch.setattr(generate, "generate", watched)
  drawn = {}
  for name, experiment in (("one", one), ("split", split)):
    assert loop.train(experiment, tmp_path / name, say=lambda text: None).finished
    drawn[name] = [
      rollouts.read(tmp_path / name / run_directory.ROLLOUTS / f"{n:06d}.jsonl")
      for n in (1, 2)
    ]
  sizes = (2, 2, 2) if to_sample is None else (4, 1, 2)
  assert sampled_on == [None, None, sizes, sizes]
  for ours, theirs in zip(drawn["split"], drawn["one"], strict=True):
    assert ours.texts_BK == theirs.texts_BK
    for name in ("logp", "sampler_logp"):
      np.testing.assert_allclose(
        rollouts.flat(getattr(ours, name)),
        rollouts.flat(getattr(theirs, name)),
        atol=1e-5,
        rtol=0,
      )
  for ours, theirs in zip(
    *(metrics.read(tmp_path / name) for name in ("split", "one")), strict=True
  ):
    for measured in ("loss", "grad_norm", "rollout/reward", "rollout/kl"):
      assert ours[measured] == pytest.approx(theirs[measured], rel=1e-3, abs=1e-5)


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
