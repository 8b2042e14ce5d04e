"""Recipes at the papers' scale are sound as far as no weights or data are needed."""

import dataclasses

import pytest

from xpo_jax import cli
from xpo_jax.studies.atlas import find_tables, paper_scale
from xpo_jax.studies.atlas.paper_scale import OURS, Command, Recipe

RECIPES = paper_scale.recipes()


def recipe(command, chips=8):
  return Recipe("DPO", "a test", chips, (command,), "")


def dpo(**ours):
  return paper_scale.on_records(
    "dpo",
    "DIR",
    "FILE",
    {"the paper": {"objective.beta": 0.5}},
    run="test",
    parameters=1e9,
    examples=1000,
    batch=64,
    chips=8,
    prompt=256,
    completion=128,
    ours=ours,
  )


@pytest.mark.parametrize("paper", RECIPES)
def test_recipe_passes_what_check_needs_no_weights_for(paper):
  paper_scale.check(RECIPES[paper])


def test_every_paper_of_a_table_has_a_recipe():
  tables = map(find_tables.load, find_tables.files().values())
  assert {table.paper for table in tables} == RECIPES.keys()


def test_experiment_has_the_settings_that_are_shown():
  run = RECIPES["DPO"].commands[1].experiment
  assert run.objective.build().hparams["beta"] == 0.1
  assert (run.data.rows_per_step, run.data.groups_per_row) == (64, 1)
  assert (run.optimizer.kind, run.optimizer.learning_rate) == ("rmsprop", 1e-6)
  assert run.optimizer.warmup_steps == 150


def test_words_are_those_of_a_shell():
  words = dpo(**{"adapter.rslora": False, "data.also": ["A", "B"]}).words()
  assert words[:4] == ["train", "dpo", "--objective.beta", "0.5"]
  assert "--adapter.no-rslora" in words
  assert words[words.index("--data.also") :][1:3] == ["A", "B"]
  assert words[-1] == "--run-dir=runs/test"


@pytest.mark.parametrize(
  ("command", "chips", "message"),
  [
    (dpo(**{"mesh.tensor": 2}), 8, "the mesh has 16 devices, the recipe 8 chips"),
    (dpo(**{"data.epochs": 0}), 8, "epochs"),
    (dataclasses.replace(dpo(), parameters=1e12), 8, "2500 GB a chip"),
  ],
)
def test_wrong_recipe_is_refused(command, chips, message):
  with pytest.raises(ValueError, match=message):
    paper_scale.check(recipe(command, chips))


def test_batch_that_the_mesh_does_not_divide_is_refused():
  command = dpo(**{"data.rows-per-step": 60, "data.microbatches": 1})
  with pytest.raises(ValueError, match=r"rows=60 of a step .*'fsdp': 8"):
    paper_scale.check(recipe(command))


def test_setting_from_two_sources_is_refused():
  with pytest.raises(ValueError, match="'model' from two sources"):
    Command("dpo", 1e9, {"the paper": {"model": "A"}, OURS: {"model": "B"}}, run="test")


def test_what_a_source_states_is_not_ours():
  stated = {"objective.beta": 0.5, "data.rows-per-step": 128}
  command = paper_scale.on_records(
    "dpo",
    "DIR",
    "FILE",
    {"the paper": stated},
    run="test",
    parameters=1e9,
    examples=1000,
    batch=64,
    chips=8,
    prompt=256,
    completion=128,
  )
  assert command.settings["the paper"] == stated
  assert not stated.keys() & command.settings[OURS].keys()
  assert command.experiment.data.rows_per_step == 128


def test_chip_hours_are_those_of_the_operations():
  """Of records: (6 + 4) operations a parameter and token at 0.4 of 459e12 a second."""
  hours = 10 * 1e9 * (1000 * 512) / (0.4 * 459e12) / 3600
  assert paper_scale.chip_hours(dpo()) == pytest.approx(hours)


def test_tokens_of_rollouts_are_prompts_and_samples():
  command = paper_scale.on_rollouts(
    "rloo",
    "DIR",
    "FILE",
    "xpo_jax.feedback.rules:sentiment",
    {},
    run="test",
    parameters=1e9,
    batch=16,
    chips=8,
    prompt=100,
    completion=50,
    ours={"data.iterations": 10, "data.sampling.completions": 4},
  )
  samples = 10 * 16 * 4
  assert paper_scale.tokens(command) == (samples * 150, samples * 50)


def test_command_is_shown_with_sources_and_not_started_without_the_chips(capsys):
  assert cli.main(["reproduce", "dpo", "--scale", "paper"]) == 2
  out, err = capsys.readouterr()
  assert "at paper scale: not run" in out
  assert "xpo train dpo --objective.beta 0.1 --data.rows-per-step 64" in out
  assert "the paper's appendix B: objective.beta 0.1" in out
  assert "chip-hours" in out
  assert "not started: DPO at paper scale is for 8 x TPU v5p" in err
  assert cli.main(["reproduce", "dpo", "--scale", "paper", "--plan"]) == 0


def test_flags_of_cells_are_refused_at_paper_scale(capsys):
  assert cli.main(["reproduce", "dpo", "--scale", "paper", "--seeds", "3"]) == 2
  assert "leave out --seeds" in capsys.readouterr().err
