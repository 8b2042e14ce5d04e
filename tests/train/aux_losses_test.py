"""Several objectives in one update: the sum of their gradients, each its own mean."""

import dataclasses
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.quiet import quiet
from xpo_jax import objectives, scored
from xpo_jax.config import optim, yaml_file
from xpo_jax.config.data import Data
from xpo_jax.config.experiment import (
  AuxLossConfig,
  Experiment,
  Loop,
  MeshShape,
  Scratch,
)
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.config.optim import Optimizer
from xpo_jax.models import score
from xpo_jax.models.config import Config
from xpo_jax.train import aux_losses, loop, metrics, run_directory, state, step
from xpo_jax.types import AuxLoss, Layout

RUN = Experiment(
  ObjectiveConfig("dpo"),
  Data("pairs", rows_per_step=4, row_length=192, epochs=2, steps=5),
  Scratch(Config(320, 12, 1, 2, 2, 6, 16, tied=True, remat="none")),
  Optimizer(learning_rate=1e-2),
  Loop(log_every=1, checkpoint_every=1),
  MeshShape(data=1),
  aux_losses=(
    AuxLossConfig(
      0.5,
      ObjectiveConfig("sft"),
      Data("demos", rows_per_step=4, microbatches=2, row_length=96, steps=2),
      "keep",
    ),
  ),
)


def test_update_is_along_the_sum_of_the_gradients(tiny):
  main = objectives.dpo(beta=0.5)
  beside = (
    AuxLoss(2.0, objectives.sft(), "keep"),
    AuxLoss(0.25, objectives.retain_kl(), "near"),  # reads the reference as it is
  )
  batch, demos = (tiny.batches(x)[0] for x in (Layout.PAIR, Layout.DEMO))
  # The auxiliary microbatches are their own, and differ in weight.
  cut = tiny.batches(Layout.DEMO, microbatches=4)[0]
  assert len(set(cut.mask_MBKT.sum((1, 2, 3)))) > 1
  optimizer = optim.Optimizer(learning_rate=1e-2, schedule="constant", clip=None)
  chain = optim.transform(optimizer)
  models, frozen = {"policy": tiny.model, "ref": tiny.model}, {"ref": tiny.ref}
  update = step.make_step(lambda: main, models, optimizer, 1, aux_losses=beside)
  first = state.create(tiny.policy, chain, (), jax.random.key(0))
  both = {"keep": cut, "near": cut}
  after, found = update(first, frozen, batch, step.hparams(optimizer), both)

  def loss(params):
    def record(objective, batch):
      one = jax.tree.map(lambda x: x[0], batch)
      roles = {"policy": params, **frozen}
      return score.score(models, roles, objective.stats, one)

    whole = (AuxLoss(1.0, main, "run"), *beside)
    records = {"run": record(main, batch)}
    records |= {x.data: record(x.objective, demos) for x in beside}
    out = scored.evaluate_parts(whole, records)
    return out.loss, out.terms

  (total, terms), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(tiny.policy)
  np.testing.assert_allclose(found["loss"], total, rtol=1e-5)
  np.testing.assert_allclose(found["loss/dpo"], terms["run/dpo"], rtol=1e-5)
  for name, term in (("keep", "sft"), ("near", "retain_kl")):
    named = found[f"loss/{name}/{term}"]
    np.testing.assert_allclose(named, terms[f"{name}/{term}"], rtol=1e-5)
    assert float(named) > 0.01 and f"{name}/length" in found
  norm = jnp.sqrt(sum((x**2).sum() for x in jax.tree.leaves(grads)))
  np.testing.assert_allclose(found["grad_norm"], norm, rtol=1e-4)
  # Adam's moments before its division hold the gradient itself: 1 - b1 of it.
  (moments,) = [x for x in after.opt_state if hasattr(x, "mu")]
  for got, want in zip(*map(jax.tree.leaves, (moments.mu, grads)), strict=True):
    np.testing.assert_allclose(got / (1 - optimizer.b1), want, atol=1e-5)


def test_auxiliary_loss_with_a_state_is_refused(tiny):
  loss = AuxLoss(1.0, objectives.beta_dpo(), "more")
  with pytest.raises(ValueError, match="aux_losses 'more': beta_dpo keeps a state"):
    models = {"policy": tiny.model}
    step.make_step(objectives.sft, models, optim.Optimizer(), 1, aux_losses=(loss,))


@pytest.fixture(scope="module")
def whole(datasets, tmp_path_factory):
  """A run on records with an auxiliary loss, uninterrupted."""
  run_dir = tmp_path_factory.mktemp("runs") / "whole"
  assert loop.train(RUN, run_dir, datasets=datasets, say=quiet).finished
  return run_dir


def test_run_reports_its_auxiliary_losses_and_starts_their_data_again(whole):
  lines = metrics.read(whole)
  assert len(lines) == 5 and RUN.aux_losses[0].data.steps == 2
  names = {"loss/dpo", "loss/keep/sft", "keep/length", "keep/padding"}
  for at, line in enumerate(lines):
    assert names <= set(line)
    assert line["loss"] == pytest.approx(line["loss/dpo"] + line["loss/keep/sft"])
    length = lines[at % 2]["keep/length"]
    assert line["keep/length"] == length  # two batches, in turn
  assert lines[0]["keep/length"] != lines[1]["keep/length"]
  # Uniform over the vocabulary at first, nearly: 0.5 log 320.
  assert lines[0]["loss/keep/sft"] == pytest.approx(0.5 * np.log(320), rel=0.02)
  assert (
    json.loads((whole / "data.json").read_text())["aux_losses"]["keep"]["kept"] == 40
  )


def test_resumed_run_goes_on_with_the_same_auxiliary_batches(whole, datasets, tmp_path):
  def say(text):
    if text.startswith("step 2/"):
      os.kill(os.getpid(), signal.SIGTERM)

  run_dir = tmp_path / "run"
  stopped = loop.train(RUN, run_dir, datasets=datasets, say=say)
  assert not stopped.finished and stopped.steps == 3
  loop.resume(run_dir, RUN, datasets=datasets, say=quiet)
  for file in (whole / run_directory.POLICY).glob("*.safetensors"):
    assert (
      run_dir / run_directory.POLICY / file.name
    ).read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
  ("change", "match"),
  [
    ({"weight": 0.0}, "AuxLossConfig.weight is 0.0"),
    ({"name": "a/b"}, "AuxLossConfig.name is 'a/b'"),
    (
      {"objective": ObjectiveConfig("ppo")},
      "aux_losses 'keep': ppo reads what is recorded with",
    ),
    ({"data": Data("nowhere.jsonl")}, "nowhere.jsonl': no such file"),
    ({"data": Data("none")}, "aux_losses 'keep': none holds no row"),
  ],
)
def test_bad_auxiliary_loss_is_refused_by_name(change, match, datasets):
  with pytest.raises(ValueError, match=match):
    config = dataclasses.replace(RUN.aux_losses[0], **change)
    aux_losses.check((config,), datasets | {"none": []})


def test_two_auxiliary_losses_of_one_name_are_refused():
  with pytest.raises(ValueError, match="two aux_losses are called 'keep'"):
    dataclasses.replace(RUN, aux_losses=RUN.aux_losses * 2)


def test_configuration_holds_the_auxiliary_losses():
  assert yaml_file.from_dict(Experiment, yaml_file.to_dict(RUN)) == RUN
