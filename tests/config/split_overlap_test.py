"""What an earlier stage may train on, beside what a run holds out.

Whether prompts meet is known without reading a row; here they are read, and counted.
"""

import dataclasses

import pytest

from tests.train.tiny_runs import MODEL, ONLINE
from xpo_jax.config import experiment as experiments
from xpo_jax.config import split_overlap
from xpo_jax.config.data import Data, Evaluation, Prompts
from xpo_jax.config.experiment import (
  AuxLossConfig,
  Experiment,
  Scratch,
  Stage,
)
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.sampling import Feedback
from xpo_jax.data import split
from xpo_jax.feedback import reward_model
from xpo_jax.studies import find_recipe
from xpo_jax.train import loading

PATH = "synthetic:200"


def _stage(share=0.0, **data) -> Experiment:
  cut = Data(PATH, **data)
  held = Evaluation(share=share)
  return Experiment(ObjectiveConfig("sft"), cut, Scratch(MODEL), evaluation=held)


def _run(before: Experiment, held: Evaluation, **data) -> Experiment:
  return Experiment(
    ObjectiveConfig("sft"), Data(PATH, **data), Stage(before), evaluation=held
  )


def _online(before: Experiment, held: Evaluation, **prompts) -> Experiment:
  changed = {"start": Stage(before), "prompts": Prompts(PATH, **prompts)}
  return experiments.replace(ONLINE, evaluation=held, **changed)


def _prompts(data, share: float, side: str) -> set[str]:
  rows = loading.load(data, data, {}).records
  if share:
    sides = {"train": 1 - share, "held_out": share}
    rows = split.by_prompt(rows, sides, data.seed)[side]
  return set(map(split.prompt_text, rows))


@pytest.mark.parametrize("make", [_run, _online])
@pytest.mark.parametrize(
  ("inner", "outer", "said"),
  [
    ({"share": 0.2}, {}, None),
    ({"share": 0.3}, {}, None),
    ({"share": 0.1}, {}, "prompts 0% to 90% .* holds out prompts 80% to 100%"),
    ({}, {}, "trains on all prompts of 'synthetic:200'"),
    ({"share": 0.2, "seed": 1}, {}, r"start.experiment.data.seed is 1, .*seed is 0"),
    ({"share": 0.2}, {"seed": 1}, r"start.experiment.data.seed is 0, .*seed is 1"),
    ({"share": 0.2, "seed": 1}, {"seed": 1}, None),
    ({"portion": "train"}, {}, None),
    ({"portion": "test"}, {}, "trains on prompts 90% to 100%"),
  ],
)
def test_refused_where_prompts_of_the_stage_are_held_out(make, inner, outer, said):
  before = _stage(**inner)
  run = make(before, Evaluation(share=0.2), **outer)
  trained_on = _prompts(before.data, before.evaluation.share, "train")
  meet = trained_on & _prompts(run.data.source, 0.2, "held_out")
  assert bool(meet) == (said is not None)
  if said is None:
    split_overlap.check(run)
  else:
    with pytest.raises(ValueError, match=said):
      split_overlap.check(run)


def test_portions_part_a_path_by_the_runs_own_seed():
  held = Evaluation(PATH, portion="test")
  split_overlap.check(_online(_stage(portion="train"), held, portion="train"))
  split_overlap.check(_online(_stage(portion="tune"), held, portion="train"))
  for before in (_stage(), _stage(portion="test"), _stage(portion="train", seed=3)):
    with pytest.raises(ValueError, match=r"start\.experiment\.data"):
      split_overlap.check(_online(before, held, portion="train"))
  elsewhere = Evaluation("synthetic:300", portion="test")
  split_overlap.check(_online(_stage(), elsewhere))


@pytest.mark.parametrize(
  ("inner", "outer"),
  [({"also": (f"{PATH}=0.5",)}, {}), ({}, {"also": (PATH,)})],
  ids=["of the stage", "of the run"],
)
def test_further_sources_of_records_count(inner, outer):
  def run(share):
    data = Data("synthetic:300" if inner else PATH, **inner)
    own = Data("synthetic:300" if outer else PATH, **outer)
    before = Experiment(
      ObjectiveConfig("sft"), data, Scratch(MODEL), evaluation=Evaluation(share=share)
    )
    held = Evaluation(share=0.2)
    return Experiment(ObjectiveConfig("sft"), own, Stage(before), evaluation=held)

  split_overlap.check(run(0.2))
  with pytest.raises(ValueError, match=f"trains on all prompts of '{PATH}'"):
    split_overlap.check(run(0.0))


def test_stages_of_stages_count_and_so_do_auxiliary_losses():
  held = Evaluation(share=0.2)
  first, second = _stage(), _stage(share=0.2)
  second = dataclasses.replace(second, start=Stage(first))
  with pytest.raises(ValueError, match=r"start\.experiment\.start\.experiment\.data"):
    split_overlap.check(_run(second, held))
  loss = AuxLossConfig(1.0, ObjectiveConfig("sft"), Data(PATH))
  run = dataclasses.replace(_run(_stage(share=0.2), held), aux_losses=(loss,))
  with pytest.raises(
    ValueError, match=r"aux_losses\[text\].data trains on all prompts"
  ):
    split_overlap.check(run)


def test_the_reward_model_of_a_judge_counts():
  held = Evaluation(share=0.2)
  for share, says in ((0.2, None), (0.0, r"data\.feedback\.source\.directory")):
    judge = Configured(reward_model.scorer, directory=Stage(_stage(share=share)))
    run = experiments.replace(
      _online(_stage(share=0.2), held), feedback=Feedback(judge)
    )
    if says is None:
      split_overlap.check(run)
    else:
      with pytest.raises(ValueError, match=says):
        split_overlap.check(run)


@pytest.mark.parametrize("name", ["rloo", "ppo_ptx"])
def test_own_recipes_hold_out_what_nothing_trains_on(name):
  split_overlap.check(find_recipe.load(name).experiment)
