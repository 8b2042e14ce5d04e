"""Factories by name and arguments: defaults, nesting, refusals."""

import jax.numpy as jnp
import pytest

from xpo_jax import objectives
from xpo_jax.config import factories
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.feedback import reward_functions, reward_model
from xpo_jax.ops import kl_control
from xpo_jax.types import Layout


def own(beta: float, link: str = "log"):
  """A user's factory."""
  return objectives.dpo(beta)._replace(name=f"own_{link}")


def pair_of(first: object, others: tuple = (), scale: float = 1.0):
  """What a `Configured` makes, for these tests."""
  return first, others, scale


def test_objective_config_fills_in_the_defaults():
  hparams = ObjectiveConfig("dpo", beta=0.3).hparams
  assert hparams == {"beta": 0.3, "label_smoothing": 0.0}


def test_objective_config_takes_a_factory_or_its_name():
  assert ObjectiveConfig(objectives.kto, beta=0.2) == ObjectiveConfig("kto", beta=0.2)
  assert ObjectiveConfig("kto") != ObjectiveConfig("dpo")


def test_objective_config_builds_with_traced_hparams_on_top():
  built = ObjectiveConfig("dpo", beta=0.3).build(beta=jnp.float32(0.5))
  assert float(built.hparams["beta"]) == 0.5 and built.layout is Layout.PAIR


def test_objective_config_of_a_users_own_factory():
  config = ObjectiveConfig(own, beta=0.3, link="square")
  assert config.name == f"{__name__}:own"
  assert config.build().name == "own_square"


def test_objective_config_of_a_mixture_builds_its_objectives():
  members = (ObjectiveConfig("dpo", beta=0.5), ObjectiveConfig("sft"))
  config = ObjectiveConfig(objectives.mixture, weights=(1.0, 0.1), objectives=members)
  built = config.build().hparams["objectives"]
  assert [objective.name for objective in built] == ["dpo", "sft"]


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


def test_configured_builds_what_stands_among_its_arguments():
  nested = Configured(
    pair_of, first=Configured(pair_of, first=1), others=[Configured(pair_of, first=2)]
  )
  assert nested.build() == ((1, (), 1.0), ((2, (), 1.0),), 1.0)


def test_configured_is_shown_by_what_its_arguments_name():
  own = Configured(reward_functions.named, reward_function="my_rewards:exact")
  assert own.title == "named(my_rewards:exact)"
  model = Configured(reward_model.scorer, directory="hub:ORG/NAME")
  several = Configured(reward_functions.weighted, scorers=(own, model), weights=(1, 2))
  assert several.title == "weighted(named(my_rewards:exact), scorer(hub:ORG/NAME))"
  rule = Configured(kl_control.adaptive_kl, beta=0.1)
  assert rule.title == rule.name


def test_configured_refuses_an_argument_the_function_lacks():
  with pytest.raises(
    ValueError, match=r"has no argument 'target_kl'.*did you mean 'target'"
  ):
    Configured(kl_control.adaptive_kl, beta=0.1, target_kl=6.0)
  with pytest.raises(ValueError, match="needs a value for its argument beta"):
    Configured(kl_control.adaptive_kl)


def test_name_of_an_objective_is_its_name_in_the_index():
  assert factories.name_of(objectives.dpo) == "dpo"
  assert factories.name_of(pair_of) == f"{__name__}:pair_of"
