"""An experiment refuses what it cannot do, when it is made."""

import jax.numpy as jnp
import pytest

from xpo_jax import objectives
from xpo_jax.config.data import Data, Evaluation
from xpo_jax.config.experiment import Experiment, Loop, MeshShape, Pretrained
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.types import Layout


def own(beta: float, link: str = "log"):
  """A user's factory."""
  return objectives.dpo(beta)._replace(name=f"own_{link}")


def test_use_fills_in_the_defaults():
  hparams = ObjectiveConfig("dpo", beta=0.3).hparams
  assert hparams == {"beta": 0.3, "label_smoothing": 0.0}


def test_use_takes_a_factory_or_its_name():
  assert ObjectiveConfig(objectives.kto, beta=0.2) == ObjectiveConfig("kto", beta=0.2)
  assert ObjectiveConfig("kto") != ObjectiveConfig("dpo")


def test_use_builds_with_traced_hparams_on_top():
  built = ObjectiveConfig("dpo", beta=0.3).build(beta=jnp.float32(0.5))
  assert float(built.hparams["beta"]) == 0.5 and built.layout is Layout.PAIR


def test_use_of_a_users_own_factory():
  use = ObjectiveConfig(own, beta=0.3, link="square")
  assert use.name == f"{__name__}:own"
  assert use.build().name == "own_square"


def test_use_of_a_mixture_builds_its_parts():
  parts = (ObjectiveConfig("dpo", beta=0.5), ObjectiveConfig("sft"))
  built = ObjectiveConfig(
    objectives.mixture, weights=(1.0, 0.1), objectives=parts
  ).build()
  assert [part.name for part in built.hparams["objectives"]] == ["dpo", "sft"]


@pytest.mark.parametrize(
  ("name", "hparams", "says"),
  [
    ("dpo_", {}, "did you mean 'dpo'"),
    ("dpo", {"bta": 1.0}, "dpo has no hyperparameter 'bta'.*did you mean 'beta'"),
    ("dpo", {"gamma": 1.0}, "its hyperparameters: beta, label_smoothing"),
    ("dpo", {"beta": 0.0}, "beta must be .*> 0"),
    ("simpo", {"beta": -1}, "beta must be .*> 0"),
    (own, {}, "needs a value for its hyperparameter beta"),
    ("xpo_jax.objectives:nothing", {}, "no factory 'nothing'"),
  ],
)
def test_bad_objective_is_refused(name, hparams, says):
  with pytest.raises(ValueError, match=says):
    ObjectiveConfig(name, **hparams)


@pytest.mark.parametrize(
  ("make", "says"),
  [
    (lambda: Data("x", bad_rows="skip"), "Data.bad_rows is 'skip'; allowed"),
    (lambda: Data("x", rows_per_step=0), "Data.rows_per_step is 0"),
    (lambda: Data("x", rows_per_step=6, microbatches=4), "microbatches is 4.*divide"),
    (lambda: Data("x", rows_per_step=2.5), "rows_per_step is 2.5; .* whole number"),
    (lambda: Data("x", seed=-1), "Data.seed is -1; .* at least 0"),
    (lambda: Data("x", seed=0.5), "Data.seed is 0.5; .* whole number"),
    (
      lambda: Experiment(ObjectiveConfig("dpo"), Data("x"), Pretrained("x"), seed=-1),
      "Experiment.seed is -1",
    ),
    (lambda: MeshShape(fsdp=0), "MeshShape.fsdp is 0"),
    (lambda: Loop(log_every=0), "Loop.log_every is 0"),
    (lambda: Evaluation(share=1.0), "Evaluation.share is 1.0"),
    (lambda: Evaluation(path="a", share=0.1), "not both"),
    (
      lambda: Data("x", portion="half"),
      "Data.portion is 'half'; allowed: train, tune, test",
    ),
    (lambda: Evaluation("x", portion="all"), "Evaluation.portion is 'all'; allowed"),
  ],
)
def test_bad_value_is_refused_by_field(make, says):
  with pytest.raises(ValueError, match=says):
    make()
