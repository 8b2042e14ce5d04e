"""A file from someone else names functions in vain, wherever it hides them."""

import json
import pickle
import sys

import pytest

from xpo_jax.config import experiment as experiments
from xpo_jax.config import trust, yaml_file
from xpo_jax.config.data import Data, Prompts
from xpo_jax.config.experiment import (
  AuxLossConfig,
  Experiment,
  Pretrained,
  Rollouts,
  Stage,
)
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.sampling import Feedback
from xpo_jax.feedback import rules

PLAIN = Experiment(ObjectiveConfig("dpo"), Data("pairs.jsonl"), Pretrained("gpt2"))
ONLINE = experiments.replace(
  PLAIN,
  data=Rollouts(
    Prompts("prompts.jsonl"),
    Feedback(
      Configured(rules.bradley_terry, scorer=Configured(rules.synthetic_reward))
    ),
    pair_construction=Configured("xpo_jax.train.pair_construction:best_worst"),
    kl_controller=Configured("xpo_jax.ops.kl_control:adaptive_kl", beta=0.1),
    critic_init=Stage(PLAIN),
  ),
  start=Stage(PLAIN),
  reference=Stage(PLAIN),
  aux_losses=(AuxLossConfig(1.0, ObjectiveConfig("sft"), Data("texts.jsonl")),),
)
FOREIGN = {"function": "{}", "command": "true"}
OBJECTIVE = {"name": "{}", "command": "true"}
# Where a name may hide: its path in `ONLINE`, and what stands there.
PLACES = {
  "objective": OBJECTIVE,
  "objective.beta": OBJECTIVE,
  "data.feedback.source": FOREIGN,
  "data.feedback.source.scorer": FOREIGN,
  "data.feedback.source.scorer.deep": {"x": [1, {"y": [FOREIGN]}]},
  "data.prompts.path": FOREIGN,
  "data.pair_construction": FOREIGN,
  "data.kl_controller": FOREIGN,
  "data.kl_controller.target": {"kind": "Data", "path": FOREIGN},
  "data.critic_init": FOREIGN,
  "data.critic_init.experiment.objective": OBJECTIVE,
  "start.experiment.data.path": FOREIGN,
  "start.experiment.data.transform": "{}",
  "reference.experiment.start": {"kind": "Stage", "experiment": {"data": FOREIGN}},
  "aux_losses.0.objective": OBJECTIVE,
  "aux_losses.0.data.transform": "{}",
  "evaluation.path": FOREIGN,
  "no_such_field": FOREIGN,
}


@pytest.fixture(autouse=True)
def nothing_trusted(monkeypatch):
  """As in a process that has made no value yet."""
  monkeypatch.setattr(trust, "_trusted", set())


@pytest.fixture
def foreign(tmp_path, monkeypatch):
  """The name of a function whose module leaves `marks/imported` when it is imported,
  and `marks/called` when it is called."""
  marks = tmp_path / "marks"
  marks.mkdir()
  (tmp_path / "harmless_mark.py").write_text(
    "from pathlib import Path\n"
    f"MARKS = Path({str(marks)!r})\n"
    "(MARKS / 'imported').touch()\n"
    "def made(command=''):\n"
    "  (MARKS / 'called').touch()\n"
  )
  monkeypatch.syspath_prepend(tmp_path)
  yield "harmless_mark:made", marks
  sys.modules.pop("harmless_mark", None)


def _hidden(value, name):
  """`value` with the name put in."""
  return json.loads(json.dumps(value).replace("{}", name))


def _with(path, value):
  """The plain data of `ONLINE` with a value at a path."""
  plain = json.loads(json.dumps(yaml_file.to_dict(ONLINE)))
  *parents, last = path.split(".")
  inner = plain
  for key in parents:
    inner = inner[int(key) if isinstance(inner, list) else key]
  inner[last] = value
  return plain


@pytest.mark.parametrize("path", PLACES)
def test_foreign_name_is_refused_with_its_field_and_nothing_is_imported(path, foreign):
  name, marks = foreign
  plain = _with(path, _hidden(PLACES[path], name))
  with pytest.raises(trust.ForeignCode) as refused:
    yaml_file.from_dict(Experiment, plain)
  text = str(refused.value)
  assert text.startswith(f"experiment.{path}") and repr(name) in text
  assert text.endswith("add --trust harmless_mark") and "\n" not in text
  assert not list(marks.iterdir()) and "harmless_mark" not in sys.modules


@pytest.mark.parametrize(
  "name",
  [
    "os:system",
    "builtins:exec",
    "xpo_jax_other:made",
    "xpo_jax.config.factories:factory",  # imports what it is told to
    "xpo_jax.config.factories:Configured",
    "xpo_jax.studies.find_recipe:load",  # executes a file by path
    "xpo_jax.studies.find_recipe:importlib",
    "xpo_jax.studies.frontier.recipe_studies:run_recipe",
    "xpo_jax.cli:main",
    "xpo_jax.train.run_directory:write_json",
    "xpo_jax.feedback.rules:Path",
    "xpo_jax.feedback.rules:sentiment.__globals__",
    "xpo_jax.feedback.reward_model:dataclasses",
    "xpo_jax.studies.multistage.samples:Sampled",
    "xpo_jax.studies.multistage.ai_labels_data:noisy_pairs",
    "xpo_jax.ops.links:nothing",
  ],
)
def test_function_that_makes_nothing_of_a_run_is_refused(name):
  plain = _with("data.feedback.source", _hidden(FOREIGN, name))
  with pytest.raises(trust.ForeignCode, match=r"experiment.data.feedback.source names"):
    yaml_file.from_dict(Experiment, plain)


def test_objective_of_a_file_is_of_the_index_or_of_its_package():
  mixture = ObjectiveConfig(
    "xpo_jax.objectives._mixture:mixture",
    weights=(1.0, 0.1),
    objectives=(ObjectiveConfig("dpo"), ObjectiveConfig("sft")),
  )
  experiment = experiments.replace(PLAIN, objective=mixture)
  plain = yaml_file.to_dict(experiment)
  assert yaml_file.from_dict(Experiment, plain) == experiment
  judge = _with("objective", {"name": "xpo_jax.feedback.rules:synthetic_reward"})
  with pytest.raises(trust.ForeignCode, match=r"experiment.objective names"):
    trust.refuse_foreign(judge, "experiment")


def test_names_of_the_package_need_no_trust_and_are_not_listed():
  plain = yaml_file.to_dict(ONLINE)
  trust._trusted.clear()
  trust.refuse_foreign(plain, "experiment")
  assert trust.foreign_modules(plain) == []
  assert len(list(trust.names(plain, ""))) == 4


@pytest.mark.parametrize("allowed", ["harmless_mark", "harmless_mark:made"])
def test_trusted_name_is_built(allowed, foreign):
  name, marks = foreign
  trust.allow(allowed)
  plain = _with("data.pair_construction", _hidden(FOREIGN, name))
  experiment = yaml_file.from_dict(Experiment, plain)
  experiment.data.pair_construction.build()
  assert {path.name for path in marks.iterdir()} == {"imported", "called"}


def test_trust_of_a_package_is_of_its_modules_and_no_other():
  trust.allow("mine")
  trust.refuse_foreign({"function": "mine.rewards:made"}, "study")
  for name in ("mine_too:made", "other:made"):
    with pytest.raises(trust.ForeignCode):
      trust.refuse_foreign({"function": name}, "study")
  trust._trusted.clear()
  trust.allow("mine.rewards")
  with pytest.raises(trust.ForeignCode):
    trust.refuse_foreign({"function": "mine:made"}, "study")


def test_options_name_every_module_once_and_are_safe_in_a_shell():
  plain = [{"function": n} for n in ("a:f", "b; rm -r x:f", "a:g")]
  with pytest.raises(trust.ForeignCode) as refused:
    trust.refuse_foreign(plain, "study")
  assert refused.value.options == "--trust a --trust 'b; rm -r x'"


def test_names_in_a_list_with_commas_are_found():
  with pytest.raises(trust.ForeignCode, match=r"study.only names 'os:system'"):
    trust.refuse_foreign({"only": "dpo, os:system"}, "study")


def test_what_this_process_made_is_trusted_here(foreign):
  name, _ = foreign
  made = {
    "function": lambda: Configured(name, command="true"),
    "transform": lambda: Data("pairs.jsonl", transform=name),
  }
  for field, make in made.items():
    make()
    trust.refuse_foreign({field: name}, "study")
    trust._trusted.clear()
    with pytest.raises(trust.ForeignCode):
      trust.refuse_foreign({field: name}, "study")


def test_value_that_another_process_hands_over_is_trusted(foreign):
  name, _ = foreign
  handed = pickle.dumps(Configured(name, command="true"))
  trust._trusted.clear()
  assert pickle.loads(handed) == Configured(name, command="true")
  trust._trusted.clear()
  pickle.loads(handed)
  trust.refuse_foreign({"function": name}, "study")


def test_use_of_one_function_of_the_package_trusts_no_other():
  trust.allow_used("xpo_jax.studies.multistage.arms:train")
  trust.refuse_foreign({"function": "xpo_jax.studies.multistage.arms:train"}, "study")
  with pytest.raises(trust.ForeignCode):
    trust.refuse_foreign({"function": "xpo_jax.studies.multistage.arms:policy"}, "x")


def _asks(url):
  source = {
    "function": "xpo_jax.feedback.endpoint:preference",
    "endpoint": {"model": "m", "base_url": url, "api_key_variable": "SECRET"},
  }
  return _with("data.feedback.source", source)


@pytest.mark.parametrize(
  ("url", "option"),
  [
    ("https://elsewhere.example:8000/v1", "https://elsewhere.example:8000"),
    ("https://api.openai.com.example/v1", "https://api.openai.com.example"),
    ("https://localhost@example/v1", "https://localhost@example"),
    ("elsewhere", "elsewhere"),
  ],
)
def test_file_sends_texts_and_keys_to_no_foreign_server(url, option):
  with pytest.raises(trust.ForeignCode) as refused:
    yaml_file.from_dict(Experiment, _asks(url))
  assert refused.value.options == f"--trust {option}"
  assert str(refused.value).startswith(
    f"experiment.data.feedback.source.endpoint.base_url is {url!r}, a server that you"
  )
  assert trust.foreign_modules(_asks(url)) == [option]
  trust.allow(option)
  yaml_file.from_dict(Experiment, _asks(url))


def test_own_host_the_default_and_what_this_process_asks_are_trusted():
  for url in (
    "http://localhost:8000/v1",
    "http://[::1]/v1",
    "https://api.openai.com/v1",
  ):
    trust.refuse_foreign(_asks(url), "experiment")
  settings = {"model": "m", "base_url": "http://node7:8000/v1"}
  Configured("xpo_jax.feedback.endpoint:preference", endpoint=settings)
  trust.refuse_foreign(_asks("http://node7:8000/v2"), "experiment")
  with pytest.raises(trust.ForeignCode):
    trust.refuse_foreign(_asks("http://node7:8001/v1"), "experiment")


def test_what_a_file_says_about_trust_grants_nothing(foreign, tmp_path):
  name, marks = foreign
  yaml_file.write(tmp_path, PLAIN)
  path = tmp_path / yaml_file.FILE
  text = path.read_text().replace("transform: null", f"transform: {name}")
  path.write_text(text + "trust: [harmless_mark]\n")
  with pytest.raises(trust.ForeignCode, match=r"experiment.data.transform names"):
    yaml_file.read(tmp_path)
  assert not list(marks.iterdir())
