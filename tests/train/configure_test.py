"""An experiment survives YAML, differs readably, and can be changed from a shell."""

import dataclasses

import pytest
import yaml

from xpo_jax import links, objectives
from xpo_jax.data.sources import Reading
from xpo_jax.data.tokenise import Limits
from xpo_jax.models.config import Config, Llama3Scaling, Rotary
from xpo_jax.recipes import find
from xpo_jax.train import configure
from xpo_jax.train.experiment import (
  Data,
  Evaluation,
  Experiment,
  Loop,
  MeshShape,
  Pretrained,
  Scratch,
  Trained,
  Use,
)
from xpo_jax.train.optim import Optimizer

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
SFT = Experiment(Use("sft"), Data("texts.jsonl"), Scratch(MODEL))
RICH = Experiment(
  Use(objectives.mixture, weights=(1.0, 0.1), objectives=(Use("dpo"), Use("sft"))),
  Data("pairs.jsonl", limits=Limits(64, 32), reading=Reading(rename={"a": "chosen"})),
  Trained(SFT),
  Optimizer("rmsprop", 5e-7, clip=None, ema=0.99),
  Loop(eval_every=50),
  MeshShape(2, 2, 2),
  Evaluation(share=0.1),
  seed=3,
)
PLAIN = Experiment(Use("dpo", beta=0.2), Data("pairs.jsonl"), Pretrained("gpt2"))


@pytest.mark.parametrize("experiment", [SFT, RICH, PLAIN], ids=["sft", "rich", "plain"])
def test_experiment_survives_yaml(experiment, tmp_path):
  configure.write(tmp_path, experiment)
  again, around = configure.read(tmp_path)
  assert again == experiment
  assert configure.difference(*map(configure.to_dict, (again, experiment))) == []
  assert {"versions", "flags", "devices", "code"} == set(around)
  assert "jax" in around["versions"]


def test_config_is_plain_yaml(tmp_path):
  configure.write(tmp_path, PLAIN)
  held = yaml.safe_load((tmp_path / configure.FILE).read_text())["experiment"]
  assert held["objective"] == {"use": "dpo", "beta": 0.2, "label_smoothing": 0.0}
  assert held["start"]["kind"] == "Pretrained"


def test_difference_names_the_field_and_both_values():
  other = dataclasses.replace(
    PLAIN, objective=Use("dpo", beta=0.5), data=Data("pairs.jsonl", seed=1)
  )
  lines = configure.difference(*map(configure.to_dict, (PLAIN, other)))
  assert lines == ["objective.beta: 0.2 -> 0.5", "data.seed: 0 -> 1"]


def test_change_is_refused_with_the_difference(tmp_path):
  with pytest.raises(
    ValueError, match=r"its data changed\n  rows: 3 -> 4\nput it back"
  ):
    configure.refuse_change("data", tmp_path, {"rows": 3}, {"rows": 4})


def test_field_that_does_not_exist_is_refused_with_the_nearest():
  held = configure.to_dict(PLAIN)
  held["optimizer"]["learning_rat"] = held["optimizer"].pop("learning_rate")
  with pytest.raises(ValueError, match=r"optimizer has no field learning_rat.*rate\?"):
    configure.from_dict(Experiment, held)


def test_directory_without_config_is_not_a_run(tmp_path):
  with pytest.raises(ValueError, match=r"is not a run: it has no config\.yaml"):
    configure.read(tmp_path)


def test_shell_overrides_fields_at_any_depth():
  args = (
    "--objective.beta 0.5 --data.limits.prompt 7 --optimizer.kind rmsprop "
    "--loop.eval-every 20 --start.directory opt --mesh.data 4"
  )
  got = configure.from_args(PLAIN, args.split())
  assert got == Experiment(
    Use("dpo", beta=0.5),
    Data("pairs.jsonl", limits=Limits(prompt=7)),
    Pretrained("opt"),
    Optimizer("rmsprop"),
    Loop(eval_every=20),
    MeshShape(data=4),
  )


def test_shell_gives_tuples_word_by_word():
  recipe = find.load("instructgpt").experiment
  got = configure.from_args(recipe, "--gammas 0 1.5 --world.seeds 4".split())
  world = dataclasses.replace(recipe.world, seeds=(4,))
  assert got == dataclasses.replace(recipe, gammas=(0.0, 1.5), world=world)
  with pytest.raises(ValueError, match=r"World.seeds is \(\); one seed"):
    configure.from_args(recipe, ["--world.seeds"])
  with pytest.raises(ValueError, match=r"World.seeds is \(3, 3\); .* twice"):
    configure.from_args(recipe, ["--world.seeds", "3", "3"])


def test_shell_changes_the_objective_and_then_its_own_knobs():
  args = ["--objective", "simpo", "--objective.beta", "2.5", "--seed", "4"]
  got = configure.from_args(PLAIN, args)
  assert got == dataclasses.replace(PLAIN, objective=Use("simpo", beta=2.5), seed=4)


def test_structural_knob_is_kept_and_set_by_its_name(tmp_path):
  experiment = dataclasses.replace(SFT, objective=Use("gpo", link=links.HINGE))
  assert experiment.objective.build().knobs["link"] is links.HINGE
  plain = yaml.safe_load(yaml.safe_dump(configure.to_dict(experiment)))
  assert plain["objective"]["link"] == "hinge"
  again = configure.from_dict(Experiment, plain)
  assert again.objective.build().knobs["link"] is links.HINGE
  args = ["--objective", "gpo", "--objective.link", "savage"]
  changed = configure.from_args(SFT, args).objective
  assert changed.build().knobs["link"] is links.SAVAGE
  default = configure.from_args(SFT, ["--objective", "gpo"]).objective
  assert default.build().knobs == objectives.gpo().knobs


def test_shell_reaches_the_stage_before():
  args = ["--start.experiment.optimizer.learning-rate", "0.5"]
  got = configure.from_args(RICH, args)
  assert got.start.experiment.optimizer == Optimizer(learning_rate=0.5)
  assert got.objective == RICH.objective


def test_knob_of_another_objective_is_refused(capsys):
  with pytest.raises(SystemExit):
    configure.from_args(PLAIN, ["--objective.alpha", "0.5"])
  assert "objective.alpha" in capsys.readouterr().err


def test_bad_value_from_the_shell_is_refused():
  with pytest.raises(ValueError, match="beta must be"):
    configure.from_args(PLAIN, ["--objective.beta", "-1"])


def test_code_digest_follows_the_code(tmp_path, monkeypatch):
  (tmp_path / "a.py").write_text("x = 1")
  monkeypatch.setattr(configure.xpo_jax, "__path__", [str(tmp_path)])
  before = configure.code_digest()
  assert configure.code_digest() == before
  (tmp_path / "a.py").write_text("x = 2")
  assert configure.code_digest() != before
