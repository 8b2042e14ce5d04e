"""An objective's own recipe: start, data and rewards are flags."""

import json

import pytest

from tests import tiny_policy
from tests.quiet import quiet
from xpo_jax import cli, objectives
from xpo_jax.config.data import Data, Evaluation, Prompts
from xpo_jax.config.experiment import Pretrained, Rollouts
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.optim import Optimizer
from xpo_jax.data import synthetic_reviews
from xpo_jax.feedback import reward_functions, reward_model, rules, teacher
from xpo_jax.models.lora import Adapter
from xpo_jax.studies import find_recipe, objective_recipe
from xpo_jax.train import loop, run_directory, validate
from xpo_jax.types import Layout

ON_RECORDS = ["--model", "policy", "--data", "pairs.jsonl"]
ON_SAMPLES = ["--model", "policy", "--prompts", "maths.jsonl", "--reward"]
REWARDS = "tests.studies.example_rewards"


def _made(name, *words):
  return objective_recipe.experiment(name, words, f"xpo train {name}")


def test_flags_make_the_experiment():
  made = _made("dpo", *ON_RECORDS, "--objective.beta", "0.2", "--adapter.rank", "16")
  assert made.objective == ObjectiveConfig("dpo", beta=0.2)
  assert made.data == Data("pairs.jsonl", split="train|train_prefs")
  assert made.start == Pretrained("policy")
  assert made.adapter == Adapter(rank=16)
  assert made.evaluation == Evaluation(share=objective_recipe.HELD_OUT)
  assert made.optimizer == Optimizer(
    learning_rate=objective_recipe.ADAPTER_LEARNING_RATE
  )
  whole = _made("dpo", *ON_RECORDS, "--held-out", "test.jsonl")
  assert whole.evaluation == Evaluation("test.jsonl", split="test|test_prefs")
  assert _made("sft", *ON_RECORDS).data.split == "train|train_sft"
  assert whole.optimizer == Optimizer(learning_rate=objective_recipe.LEARNING_RATE)


def test_finished_run_is_a_start_by_its_policy(tmp_path):
  run = tmp_path / "sft"
  (run / run_directory.POLICY).mkdir(parents=True)
  (run / "config.yaml").touch()
  made = _made("dpo", "--model", str(run), "--data", "pairs.jsonl")
  assert made.start == Pretrained(str(run / run_directory.POLICY))


@pytest.mark.parametrize("name", objectives.NAMES)
def test_every_objective_is_a_recipe(name, monkeypatch):
  objective = ObjectiveConfig(name).build()
  taught = ["--teacher", "large"] if teacher.reads(objective.stats) else []
  if objective.layout is not Layout.SAMPLED:
    made = _made(name, *ON_RECORDS, *taught)
    assert made.objective.build().hparams == objective.hparams
    assert isinstance(made.data, Data)
    return
  made = _made(name, *ON_SAMPLES, f"{REWARDS}:exact_answer", *taught)
  assert isinstance(made.data, Rollouts)
  monkeypatch.setattr(validate, "_check_teacher", lambda experiment: None)  # no file
  validate.check_rollouts(made, {})


def test_teacher_is_a_flag_and_makes_the_reward_superfluous():
  made = _made("minillm", *ON_SAMPLES[:-1], "--teacher", "large")
  assert made.teacher == Pretrained("large")
  assert made.data.sampling.teacher_share == made.objective.build().teacher_share > 0
  assert made.data.feedback.source == Configured(rules.length)
  assert _made("kd", *ON_RECORDS, "--teacher", "large").teacher == Pretrained("large")


def test_reward_functions_rules_and_reward_models_are_rewards(tmp_path):
  data = _made("grpo", *ON_SAMPLES, f"{REWARDS}:exact_answer").data
  source = Configured(reward_functions.named, reward_function=f"{REWARDS}:exact_answer")
  assert data.feedback.source == source
  assert data.prompts.path == "maths.jsonl"
  assert data.prompts.reading.columns == ("answer",)
  rule = _made("grpo", *ON_SAMPLES, "xpo_jax.feedback.rules:length").data
  assert rule.feedback.source == Configured(rules.length)
  model = _made("grpo", *ON_SAMPLES, str(tmp_path)).data
  assert model.feedback.source == Configured(
    reward_model.scorer, directory=str(tmp_path)
  )
  of_hub = _made("grpo", *ON_SAMPLES, "hub:ORG/NAME").data
  assert of_hub.feedback.source == Configured(
    reward_model.scorer, directory="hub:ORG/NAME"
  )


def test_several_rewards_have_weights():
  names = [f"{REWARDS}:exact_answer", f"{REWARDS}:brevity"]
  flags = [*ON_SAMPLES, *names, "--reward-weights", "1", "0.5"]
  source = _made("grpo", *flags).data.feedback.source
  assert source.name == "xpo_jax.feedback.reward_functions:weighted"
  assert source.arguments["weights"] == (1.0, 0.5)
  equal = _made("grpo", *ON_SAMPLES, *names).data.feedback.source
  assert equal.arguments["weights"] == (1.0, 1.0)


@pytest.mark.parametrize("name", ["nash_md", "ipo_md"])
def test_objective_of_win_rates_compares_by_the_reward(name):
  made = _made(name, *ON_SAMPLES, f"{REWARDS}:exact_answer")
  assert made.data.feedback.kind == "win_rates"
  assert made.data.feedback.source.name == "xpo_jax.feedback.rules:bradley_terry"
  validate.check_rollouts(made, {})


@pytest.mark.parametrize(
  ("name", "words", "match"),
  [
    ("dpo", [], "needs --model, the weights"),
    ("gkd", ON_SAMPLES[:-1], "gkd needs --teacher, the model to learn from"),
    ("dpo", [*ON_RECORDS, "--teacher", "t"], "nothing of dpo reads it; leave it out"),
    ("dpo", ["--model", "m"], "needs --data, records to train on"),
    ("grpo", ["--model", "m"], "takes no records: xpo train grpo --model DIR --promp"),
    ("grpo", ON_RECORDS, "grpo learns from samples of the policy"),
    ("dpo", [*ON_RECORDS, "--prompts", "p"], "give one of them"),
    ("dpo", [*ON_RECORDS, "--reward", "a:b"], "give them by --prompts"),
    ("dpo", ON_SAMPLES[:-1], "needs --reward"),
    ("grpo", [*ON_SAMPLES, "nowhere"], "neither MODULE:FUNCTION nor the directory"),
    ("grpo", [*ON_SAMPLES, "no_such_module:f"], "No module named 'no_such_module'"),
    ("grpo", [*ON_SAMPLES, f"{REWARDS}:exact_anser"], "did you mean 'exact_answer'"),
    (
      "grpo",
      [*ON_SAMPLES, f"{REWARDS}:text_only"],
      r"takes \(text\); it must take `completions`",
    ),
    ("grpo", [*ON_SAMPLES, f"{REWARDS}:many"], r"takes \*arguments"),
    (
      "grpo",
      [*ON_SAMPLES, f"{REWARDS}:brevity", "--reward-weights", "1", "2"],
      "as many as rewards, 1",
    ),
    ("dpo", ["path=x", *ON_RECORDS], "an objective takes flags"),
  ],
)
def test_what_is_missing_or_too_much_is_said(name, words, match):
  with pytest.raises(ValueError, match=match):
    _made(name, *words)


def test_name_of_an_objective_and_a_recipe_file_is_told_apart_by_flags():
  assert "grpo" in find_recipe.names() and "dpo" not in find_recipe.names()
  assert not find_recipe.is_objective("grpo", ["source=FILE"])
  assert find_recipe.is_objective("grpo", ON_RECORDS)
  assert find_recipe.is_objective("dpo", [])
  assert find_recipe.is_objective("my_losses:mine", ON_RECORDS)
  assert not find_recipe.is_objective("dpo_hh", ON_RECORDS)
  assert not find_recipe.is_objective("dpo.py", ON_RECORDS)


@pytest.mark.parametrize("words", [["dpo"], ["grpo", "--prompts", "p.jsonl"]])
def test_help_lists_flags_and_fields(words, capsys):
  with pytest.raises(SystemExit):
    cli.main(["train", *words, "--help"])
  shown = capsys.readouterr().out
  for flag in ("--model", "--reward-weights", "--adapter.rank", "--objective.beta"):
    assert flag in shown
  assert ("--data.limits.prompt" in shown) == (words == ["dpo"])


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
  return tiny_policy.write(tmp_path_factory.mktemp("model") / "policy")


def _write(path, rows):
  path.write_text("\n".join(map(json.dumps, rows)) + "\n")
  return str(path)


def test_adapters_are_trained_on_pairs_from_the_shell(policy, tmp_path, capsys):
  texts, others = synthetic_reviews.generate(30, 0), synthetic_reviews.generate(30, 1)
  rows = [
    {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    for (prompt, chosen), (_, rejected) in zip(texts, others, strict=True)
    if chosen != rejected
  ]
  data = _write(tmp_path / "pairs.jsonl", rows)
  flags = f"--model {policy} --data {data} --adapter.rank 2 --data.steps 1"
  run = str(tmp_path / "run")
  words = [*flags.split(), "--data.rows-per-step", "4", "--mesh.data", "1"]
  assert cli.main(["train", "dpo", "--run-dir", run, *words]) == 0
  assert "report:" in capsys.readouterr().out
  assert (tmp_path / "run" / run_directory.ADAPTER).is_dir()


def test_samples_are_rewarded_by_a_column_of_the_record(policy, tmp_path):
  rows = [{"prompt": f"{n} and 1 is", "answer": str(n + 1)} for n in range(8)]
  made = _made(
    "rloo",
    *f"--model {policy} --prompts {_write(tmp_path / 'sums.jsonl', rows)}".split(),
    *f"--reward {REWARDS}:answer_as_number {REWARDS}:brevity".split(),
    *"--reward-weights 1 0.5 --data.iterations 1".split(),
    *"--data.prompts-per-iteration 4".split(),
    *"--data.sampling.completions 2 --data.sampling.max-completion-tokens 3".split(),
    *"--evaluation.share 0 --mesh.data 1".split(),
  )
  run = tmp_path / "run"
  loop.train(made, run, say=quiet)
  (file,) = (run / run_directory.ROLLOUTS).glob("*.jsonl")
  lines = [json.loads(line) for line in file.read_text().splitlines()]
  lines = [line for line in lines if "reward" in line]
  assert len(lines) == 8
  for line in lines:
    answer = float(line["prompt"].split()[0]) + 1
    assert line["reward"] == answer - 0.5 * len(line["completion"])
  (measured,) = (run / "metrics.jsonl").read_text().splitlines()
  measured = json.loads(measured)
  total = measured["rollout/reward"]
  alone = [
    measured[f"rollout/reward/{name}"] for name in ("answer_as_number", "brevity")
  ]
  assert total == pytest.approx(alone[0] + 0.5 * alone[1], rel=1e-5)
  assert made.data.prompts == Prompts(
    str(tmp_path / "sums.jsonl"), reading=made.data.prompts.reading
  )


def test_check_reads_the_data_of_an_objective(policy, tmp_path, capsys):
  data = _write(
    tmp_path / "chats.jsonl",
    [
      {
        "messages": [
          {"role": "user", "content": f"and {n}?"},
          {"role": "assistant", "content": "no"},
        ]
      }
      for n in range(40)
    ],
  )
  words = ["--model", str(policy), "--data", data, "--mesh.data", "1"]
  assert cli.main(["check", "sft", *words]) == 0
  shown = capsys.readouterr().out
  assert "rows 40, kept 40" in shown and "nothing was trained" in shown


def test_column_that_the_data_lack_is_said_with_what_brings_it(
  policy, tmp_path, capsys
):
  rows = [
    {"prompt": f"{n} is", "chosen": " a number", "rejected": " a word"}
    for n in range(40)
  ]
  data = _write(tmp_path / "pairs.jsonl", rows)
  words = ["--model", str(policy), "--data", data, "--mesh.data", "1"]
  margins = "xpo_jax.objectives._bradley_terry:margin_bradley_terry"
  for name, reads, fix in (
    ("dno", "dno reads reward_BK", "`probability` to pairs, or train on samples"),
    ("bco_udm", "bco_udm reads prompt_weight_BK", "prompt_matching:weighted"),
    (margins, "reads margin_BK", "give every pair a `margin`, or train bradley_terry"),
  ):
    assert cli.main(["check", name, *words]) == 2
    said = capsys.readouterr().err
    assert f"{reads}, which pairs.jsonl:" in said and fix in said


@pytest.mark.parametrize(("typed", "meant"), [("dpoo", "dpo"), ("rlhff", "rlhf")])
def test_misspelt_name_is_of_the_nearest_objective_or_recipe(typed, meant):
  with pytest.raises(ValueError, match=rf"{typed}.* \(did you mean '{meant}'\?\)"):
    find_recipe.path_of(typed)
