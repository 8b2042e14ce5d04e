"""An experiment survives YAML and differs readably; another format is refused."""

import dataclasses

import pytest
import yaml

from xpo_jax import objectives
from xpo_jax.config import experiment as experiments
from xpo_jax.config import yaml_file
from xpo_jax.config.data import Data, Evaluation, Prompts
from xpo_jax.config.experiment import (
  AuxLossConfig,
  Experiment,
  Loop,
  MeshShape,
  Pretrained,
  Rollouts,
  Scratch,
  Stage,
)
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.optim import Optimizer
from xpo_jax.config.sampling import Feedback, Opponent, Sampling
from xpo_jax.data import sealed_files
from xpo_jax.data.sources import Reading
from xpo_jax.data.tokenise import Limits
from xpo_jax.models.config import Config, Llama3Scaling, Rotary
from xpo_jax.ops import kl_control, links

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


def judge_of(model: object, others: tuple = (), scale: float = 1.0):
  """What a `Configured` makes, for these tests."""
  return model, others, scale


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
  reference=Stage(SFT),
)
PLAIN = Experiment(
  ObjectiveConfig("dpo", beta=0.2), Data("pairs.jsonl"), Pretrained("gpt2")
)
# Functions, stages and objectives among the arguments of functions.
ROLLOUTS = Experiment(
  objective=ObjectiveConfig("ppo", beta=0.02),
  data=Rollouts(
    prompts=Prompts("prompts.jsonl", limits=Limits(prompt=32)),
    feedback=Feedback(
      Configured(
        judge_of,
        model=Stage(PLAIN),
        others=(
          Configured(judge_of, model=1),
          ObjectiveConfig("gpo", link="hinge"),
        ),
      ),
      kind="win_rates",
      missing_eos=1.0,
    ),
    sampling=Sampling(opponent=Opponent(share=0.5, of="average")),
    pair_construction=Configured("xpo_jax.train.pair_construction:best_worst"),
    kl_controller=Configured(kl_control.adaptive_kl, beta=0.02),
    critic_init=Stage(PLAIN),
  ),
  start=Pretrained("policy"),
  optimizer=Optimizer(ema=0.5),
  aux_losses=(AuxLossConfig(27.8, ObjectiveConfig("sft"), Data("texts.jsonl")),),
)
MADE = experiments.replace(
  PLAIN, path=Configured(judge_of, model=Stage(SFT)), reference=Pretrained("other")
)
EVERY = {
  "sft": SFT,
  "rich": RICH,
  "plain": PLAIN,
  "rollouts": ROLLOUTS,
  "made": MADE,
}


@pytest.mark.parametrize("experiment", EVERY.values(), ids=EVERY)
def test_experiment_survives_yaml(experiment, tmp_path):
  yaml_file.write(tmp_path, experiment)
  again, around = yaml_file.read(tmp_path)
  assert again == experiment
  assert yaml_file.difference(*map(yaml_file.to_dict, (again, experiment))) == []
  listed = around.pop("trust", [])  # the module of the functions here
  assert listed == [__name__] * (experiment in (ROLLOUTS, MADE))
  assert {"format", "versions", "flags", "devices", "code"} == set(around)
  assert "jax" in around["versions"]


def test_config_is_plain_yaml(tmp_path):
  yaml_file.write(tmp_path, PLAIN)
  content = yaml.safe_load((tmp_path / yaml_file.FILE).read_text())
  assert content["format"] == yaml_file.FORMAT == 2
  plain = content["experiment"]
  assert plain["objective"] == {"name": "dpo", "beta": 0.2, "label_smoothing": 0.0}
  assert plain["start"]["kind"] == "Pretrained"
  assert plain["data"]["kind"] == "Data"


def test_functions_and_stages_are_plain_yaml(tmp_path):
  yaml_file.write(tmp_path, ROLLOUTS)
  content = yaml.safe_load((tmp_path / yaml_file.FILE).read_text())
  data = content["experiment"]["data"]
  assert data["kind"] == "Rollouts"
  assert data["pair_construction"] == {
    "function": "xpo_jax.train.pair_construction:best_worst",
    "length_penalty": 0.0,
  }
  assert data["kl_controller"]["function"] == "xpo_jax.ops.kl_control:adaptive_kl"
  assert data["kl_controller"]["beta"] == 0.02
  source = data["feedback"]["source"]
  assert source["function"] == f"{__name__}:judge_of" and source["scale"] == 1.0
  assert source["model"]["kind"] == data["critic_init"]["kind"] == "Stage"
  inner, objective = source["others"]
  assert inner["function"] == f"{__name__}:judge_of"
  assert objective["name"] == "gpo" and objective["link"] == "hinge"


@pytest.mark.parametrize("change", [{"format": 1}, {"format": 3}, {}], ids=str)
def test_another_format_is_refused_in_one_line_that_names_both(change, tmp_path):
  yaml_file.write(tmp_path, PLAIN)
  path = tmp_path / yaml_file.FILE
  content = yaml.safe_load(path.read_text())
  del content["format"]  # as before formats were written: format 1
  path.write_text(yaml.safe_dump(content | change))
  other = change.get("format", 1)
  with pytest.raises(
    ValueError, match=rf"has format {other}, .* reads format 2"
  ) as say:
    yaml_file.read(tmp_path)
  assert "\n" not in str(say.value) and str(path) in str(say.value)


def test_changed_byte_is_refused_in_one_line_that_names_the_file(tmp_path):
  yaml_file.write(tmp_path, PLAIN)
  path = tmp_path / yaml_file.FILE
  whole = path.read_bytes()
  for at in range(0, len(whole), 7):
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(ValueError, match=r"config\.yaml differs from its") as say:
      yaml_file.content(tmp_path)
    assert "\n" not in str(say.value)


def test_user_may_edit_the_file_without_its_checksum(tmp_path):
  yaml_file.write(tmp_path, PLAIN)
  path = tmp_path / yaml_file.FILE
  *lines, checksum = path.read_text().splitlines(keepends=True)
  assert checksum.startswith("# checksum: ")
  path.write_text("".join(lines).replace("beta: 0.2", "beta: 0.3"))
  assert yaml_file.content(tmp_path)["experiment"]["objective"]["beta"] == 0.3
  path.write_bytes(b"format: 2\xff")
  with pytest.raises(ValueError, match=r"config\.yaml is not UTF-8"):
    yaml_file.content(tmp_path)


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("a: &a [*a]", r"\*a is an alias; write the value out"),
    ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", r"\*a is an alias"),
    ("a: " + 5000 * "[" + 5000 * "]", "nested too deep"),
  ],
)
def test_endless_and_deep_files_are_refused_in_one_line(text, expected, tmp_path):
  (tmp_path / yaml_file.FILE).write_text(f"format: 2\nexperiment: 1\n{text}\n")
  with pytest.raises(ValueError, match=f"config.yaml is .*{expected}") as refused:
    yaml_file.read(tmp_path)
  assert "\n" not in str(refused.value)


def test_equal_values_are_written_out_each_time(tmp_path):
  shared = (1, 2)
  objective = ObjectiveConfig(
    "xpo_jax.objectives._mixture:mixture",
    weights=shared,
    objectives=(ObjectiveConfig("dpo"), ObjectiveConfig("sft")),
  )
  stage = Stage(Experiment(objective, Data("a.jsonl"), Pretrained("gpt2")))
  experiment = Experiment(objective, Data("a.jsonl"), stage)
  yaml_file.write(tmp_path, experiment)
  assert "&" not in (tmp_path / yaml_file.FILE).read_text()
  assert yaml_file.read(tmp_path)[0] == experiment


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
  plain = yaml_file.to_dict(PLAIN)
  plain["optimizer"]["learning_rat"] = plain["optimizer"].pop("learning_rate")
  with pytest.raises(ValueError, match=r"optimizer has no field learning_rat.*rate\?"):
    yaml_file.from_dict(Experiment, plain)


@pytest.mark.parametrize(("old", "new"), [(True, "full"), (False, "none")])
def test_boolean_remat_of_an_older_run_is_read_as_a_policy(old, new, tmp_path):
  scratch = Scratch(dataclasses.replace(MODEL, remat=new))
  run = experiments.replace(PLAIN, start=scratch, reference=Pretrained("b", remat=new))
  yaml_file.write(tmp_path, run)
  file = tmp_path / yaml_file.FILE
  content = yaml.safe_load(file.read_text())
  content["experiment"]["start"]["model"]["remat"] = old
  content["experiment"]["reference"]["remat"] = old
  file.unlink()
  sealed_files.write_commented(file, yaml.safe_dump(content))
  assert f"remat: {str(old).lower()}" in file.read_text()
  assert yaml_file.read(tmp_path)[0] == run


def test_directory_without_config_is_not_a_run(tmp_path):
  with pytest.raises(ValueError, match=r"is not a run: it has no config\.yaml"):
    yaml_file.read(tmp_path)


def test_structural_hparam_is_kept_by_its_name():
  experiment = dataclasses.replace(
    SFT, objective=ObjectiveConfig("gpo", link=links.HINGE)
  )
  assert experiment.objective.build().hparams["link"] is links.HINGE
  plain = yaml.safe_load(yaml.safe_dump(yaml_file.to_dict(experiment)))
  assert plain["objective"]["link"] == "hinge"
  again = yaml_file.from_dict(Experiment, plain)
  assert again.objective.build().hparams["link"] is links.HINGE


def test_code_digest_follows_the_code(tmp_path, monkeypatch):
  (tmp_path / "a.py").write_text("x = 1")
  monkeypatch.setattr(yaml_file.xpo_jax, "__path__", [str(tmp_path)])
  before = yaml_file.code_digest()
  assert yaml_file.code_digest() == before
  (tmp_path / "a.py").write_text("x = 2")
  assert yaml_file.code_digest() != before
