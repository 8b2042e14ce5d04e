"""An experiment survives YAML, differs readably, and can be changed from a shell."""

import dataclasses

import pytest
import yaml

from xpo_jax import objectives
from xpo_jax.config import yaml_file
from xpo_jax.config.data import Data, Evaluation
from xpo_jax.config.experiment import (
  Experiment,
  Loop,
  MeshShape,
  Pretrained,
  Scratch,
  Stage,
)
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.config.optim import Optimizer
from xpo_jax.data.sources import Reading
from xpo_jax.data.tokenise import Limits
from xpo_jax.models.config import Config, Llama3Scaling, Rotary
from xpo_jax.ops import links
from xpo_jax.studies import find_recipe

MODEL = Config(
  vocab=64,
  width=8,
  layers=1,
  heads=2,
  kv_heads=1,
  head_dim=4,
  mlp_width=16,
  rotary=Rotary(theta=5e5, llama3=Llama3Scaling(8.0, 1.0, 4.0, 8192)),
)
SFT = Experiment(ObjectiveConfig("sft"), Data("texts.jsonl"), Scratch(MODEL))
RICH = Experiment(
  ObjectiveConfig(
    objectives.mixture,
    weights=(1.0, 0.1),
    objectives=(ObjectiveConfig("dpo"), ObjectiveConfig("sft")),
  ),
  Data("pairs.jsonl", limits=Limits(64, 32), reading=Reading(rename={"a": "chosen"})),
  Stage(SFT),
  Optimizer("rmsprop", 5e-7, clip=None, ema=0.99),
  Loop(eval_every=50),
  MeshShape(2, 2, 2),
  Evaluation(share=0.1),
  seed=3,
)
PLAIN = Experiment(
  ObjectiveConfig("dpo", beta=0.2), Data("pairs.jsonl"), Pretrained("gpt2")
)


@pytest.mark.parametrize("experiment", [SFT, RICH, PLAIN], ids=["sft", "rich", "plain"])
def test_experiment_survives_yaml(experiment, tmp_path):
  yaml_file.write(tmp_path, experiment)
  again, around = yaml_file.read(tmp_path)
  assert again == experiment
  assert yaml_file.difference(*map(yaml_file.to_dict, (again, experiment))) == []
  assert {"versions", "flags", "devices", "code"} == set(around)
  assert "jax" in around["versions"]


def test_config_is_plain_yaml(tmp_path):
  yaml_file.write(tmp_path, PLAIN)
  held = yaml.safe_load((tmp_path / yaml_file.FILE).read_text())["experiment"]
  assert held["objective"] == {"name": "dpo", "beta": 0.2, "label_smoothing": 0.0}
  assert held["start"]["kind"] == "Pretrained"


def test_difference_names_the_field_and_both_values():
  other = dataclasses.replace(
    PLAIN, objective=ObjectiveConfig("dpo", beta=0.5), data=Data("pairs.jsonl", seed=1)
  )
  lines = yaml_file.difference(*map(yaml_file.to_dict, (PLAIN, other)))
  assert lines == ["objective.beta: 0.2 -> 0.5", "data.seed: 0 -> 1"]


def test_change_is_refused_with_the_difference(tmp_path):
  with pytest.raises(
    ValueError, match=r"its data changed\n  rows: 3 -> 4\nput it back"
  ):
    yaml_file.refuse_change("data", tmp_path, {"rows": 3}, {"rows": 4})


def test_field_that_does_not_exist_is_refused_with_the_nearest():
  held = yaml_file.to_dict(PLAIN)
  held["optimizer"]["learning_rat"] = held["optimizer"].pop("learning_rate")
  with pytest.raises(ValueError, match=r"optimizer has no field learning_rat.*rate\?"):
    yaml_file.from_dict(Experiment, held)


def test_directory_without_config_is_not_a_run(tmp_path):
  with pytest.raises(ValueError, match=r"is not a run: it has no config\.yaml"):
    yaml_file.read(tmp_path)


def test_shell_overrides_fields_at_any_depth():
  args = (
    "--objective.beta 0.5 --data.limits.prompt 7 --optimizer.kind rmsprop "
    "--loop.eval-every 20 --start.directory opt --mesh.data 4"
  )
  got = yaml_file.from_args(PLAIN, args.split())
  assert got == Experiment(
    ObjectiveConfig("dpo", beta=0.5),
    Data("pairs.jsonl", limits=Limits(prompt=7)),
    Pretrained("opt"),
    Optimizer("rmsprop"),
    Loop(eval_every=20),
    MeshShape(data=4),
  )


def test_shell_gives_tuples_word_by_word():
  recipe = find_recipe.load("instructgpt").experiment
  got = yaml_file.from_args(recipe, "--gammas 0 1.5 --world.seeds 4".split())
  world = dataclasses.replace(recipe.world, seeds=(4,))
  assert got == dataclasses.replace(recipe, gammas=(0.0, 1.5), world=world)
  with pytest.raises(ValueError, match=r"World.seeds is \(\); one seed"):
    yaml_file.from_args(recipe, ["--world.seeds"])
  with pytest.raises(ValueError, match=r"World.seeds is \(3, 3\); .* twice"):
    yaml_file.from_args(recipe, ["--world.seeds", "3", "3"])


def test_shell_changes_the_objective_and_then_its_own_hparams():
  args = ["--objective", "simpo", "--objective.beta", "2.5", "--seed", "4"]
  got = yaml_file.from_args(PLAIN, args)
  assert got == dataclasses.replace(
    PLAIN, objective=ObjectiveConfig("simpo", beta=2.5), seed=4
  )


def test_structural_hparam_is_kept_and_set_by_its_name(tmp_path):
  experiment = dataclasses.replace(
    SFT, objective=ObjectiveConfig("gpo", link=links.HINGE)
  )
  assert experiment.objective.build().hparams["link"] is links.HINGE
  plain = yaml.safe_load(yaml.safe_dump(yaml_file.to_dict(experiment)))
  assert plain["objective"]["link"] == "hinge"
  again = yaml_file.from_dict(Experiment, plain)
  assert again.objective.build().hparams["link"] is links.HINGE
  args = ["--objective", "gpo", "--objective.link", "savage"]
  changed = yaml_file.from_args(SFT, args).objective
  assert changed.build().hparams["link"] is links.SAVAGE
  default = yaml_file.from_args(SFT, ["--objective", "gpo"]).objective
  assert default.build().hparams == objectives.gpo().hparams


def test_shell_reaches_the_stage_before():
  args = ["--start.experiment.optimizer.learning-rate", "0.5"]
  got = yaml_file.from_args(RICH, args)
  assert got.start.experiment.optimizer == Optimizer(learning_rate=0.5)
  assert got.objective == RICH.objective


def test_hparam_of_another_objective_is_refused(capsys):
  with pytest.raises(SystemExit):
    yaml_file.from_args(PLAIN, ["--objective.alpha", "0.5"])
  assert "objective.alpha" in capsys.readouterr().err


def test_bad_value_from_the_shell_is_refused():
  with pytest.raises(ValueError, match="beta must be"):
    yaml_file.from_args(PLAIN, ["--objective.beta", "-1"])


def test_code_digest_follows_the_code(tmp_path, monkeypatch):
  (tmp_path / "a.py").write_text("x = 1")
  monkeypatch.setattr(yaml_file.xpo_jax, "__path__", [str(tmp_path)])
  before = yaml_file.code_digest()
  assert yaml_file.code_digest() == before
  (tmp_path / "a.py").write_text("x = 2")
  assert yaml_file.code_digest() != before
