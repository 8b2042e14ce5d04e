"""Every field of an experiment is a flag, at any depth."""

import dataclasses
from collections.abc import Callable

import jax
import pytest

from xpo_jax import objectives
from xpo_jax.config import experiment as experiments
from xpo_jax.config.command_line import from_args
from xpo_jax.config.data import Data, Prompts
from xpo_jax.config.experiment import (
  Experiment,
  Loop,
  MeshShape,
  Pretrained,
  Rollouts,
  Stage,
)
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.optim import Optimizer
from xpo_jax.config.sampling import Feedback, Opponent, Sampling
from xpo_jax.data.render import Template
from xpo_jax.data.tokenise import Limits
from xpo_jax.models.lora import Adapter
from xpo_jax.ops import kl_control, links

RECORDS = Experiment(
  ObjectiveConfig("dpo", beta=0.2), Data("pairs.jsonl"), Pretrained("gpt2")
)


def judge(name: str, scale: float = 1.0):
  """What a `Configured` makes, for these tests."""
  return name, scale


def placed_judge(
  name: str,
  mesh: jax.sharding.Mesh | None = None,
  truth: Callable[[str], float] | None = None,
):
  """What a `Configured` makes, with arguments that no words of a shell can say."""
  return name, mesh, truth


ROLLOUTS = Experiment(
  objective=ObjectiveConfig("ppo", beta=0.02),
  data=Rollouts(
    prompts=Prompts("prompts.jsonl"),
    feedback=Feedback(Configured(judge, name="a"), missing_eos=1.0),
    kl_controller=Configured(kl_control.adaptive_kl, beta=0.02),
  ),
  start=Pretrained("policy"),
)


@dataclasses.dataclass(frozen=True)
class Seeds:
  """A part of a study that refuses bad values."""

  seeds: tuple[int, ...] = (0, 1)

  def __post_init__(self):
    if not self.seeds or len(set(self.seeds)) < len(self.seeds):
      raise ValueError(f"Seeds.seeds is {self.seeds}; at least one, none of them twice")


@dataclasses.dataclass(frozen=True)
class Study:
  """What a recipe returns that is no `Experiment`."""

  gammas: tuple[float, ...] = (0.0, 1.0, 30.0)
  part: Seeds = dataclasses.field(default_factory=Seeds)


def test_flags_override_fields_at_any_depth():
  args = (
    "--objective.beta 0.5 --data.limits.prompt 7 --optimizer.kind rmsprop "
    "--loop.eval-every 20 --start.directory opt --mesh.data 4"
  )
  got = from_args(RECORDS, args.split())
  assert got == Experiment(
    ObjectiveConfig("dpo", beta=0.5),
    Data("pairs.jsonl", limits=Limits(prompt=7)),
    Pretrained("opt"),
    Optimizer("rmsprop"),
    Loop(eval_every=20),
    MeshShape(data=4),
  )


def test_flags_reach_arguments_of_functions_and_sampling():
  flags = ["--data.kl-controller.target", "3", "--data.sampling.completions", "8"]
  flags += ["--data.feedback.source.scale", "2", "--data.feedback.missing-eos", "0.5"]
  data = from_args(ROLLOUTS, flags).data
  assert data.kl_controller.build().beta == 0.02
  assert data.kl_controller.arguments["target"] == 3
  assert data.sampling.completions == 8
  assert data.feedback.source.build() == ("a", 2)
  assert data.feedback.missing_eos == 0.5


def test_path_may_be_given_where_a_function_or_a_stage_could_stand():
  assert from_args(RECORDS, ["--data.path", "b.jsonl"]).data.path == "b.jsonl"
  args = ["--data.prompts.path", "p.jsonl", "--data.critic-init", "reward"]
  data = from_args(ROLLOUTS, args).data
  assert data.prompts.path == "p.jsonl" and data.critic_init == "reward"


def test_flags_reach_an_opponent_where_there_is_one():
  run = experiments.replace(
    ROLLOUTS,
    feedback=Feedback(ROLLOUTS.data.feedback.source, kind="win_rates"),
    sampling=Sampling(opponent=Opponent(share=0.5, of="average")),
  )
  changed = from_args(run, ["--data.sampling.opponent.share", "0.125"])
  assert changed.data.sampling.opponent == Opponent(share=0.125, of="average")
  assert from_args(ROLLOUTS, []).data.sampling.opponent is None


def test_tuples_are_given_word_by_word():
  got = from_args(Study(), "--gammas 0 1.5 --part.seeds 4".split())
  assert got == Study((0.0, 1.5), Seeds((4,)))
  with pytest.raises(ValueError, match=r"Seeds.seeds is \(\); at least one"):
    from_args(Study(), ["--part.seeds"])
  with pytest.raises(ValueError, match=r"Seeds.seeds is \(3, 3\); .* twice"):
    from_args(Study(), ["--part.seeds", "3", "3"])


def test_another_objective_has_its_own_hparams_as_flags():
  args = ["--objective", "simpo", "--objective.beta", "2.5", "--seed", "4"]
  got = from_args(RECORDS, args)
  assert got == dataclasses.replace(
    RECORDS, objective=ObjectiveConfig("simpo", beta=2.5), seed=4
  )


def test_structural_hparam_is_set_by_its_name():
  args = ["--objective", "gpo", "--objective.link", "savage"]
  changed = from_args(RECORDS, args).objective
  assert changed.build().hparams["link"] is links.SAVAGE
  default = from_args(RECORDS, ["--objective", "gpo"]).objective
  assert default.build().hparams == objectives.gpo().hparams


def test_flags_reach_the_stage_before():
  run = dataclasses.replace(RECORDS, start=Stage(RECORDS))
  args = ["--start.experiment.optimizer.learning-rate", "0.5"]
  got = from_args(run, args)
  assert got.start.experiment.optimizer == Optimizer(learning_rate=0.5)
  assert got.objective == RECORDS.objective


def test_flags_reach_a_stage_among_arguments():
  source = Configured(judge, name=Stage(RECORDS))
  run = experiments.replace(ROLLOUTS, feedback=Feedback(source))
  args = ["--data.feedback.source.name.experiment.seed", "5"]
  got = from_args(run, args).data.feedback.source
  assert got.arguments["name"] == Stage(experiments.replace(RECORDS, seed=5))


def test_hparam_of_another_objective_is_refused(capsys):
  with pytest.raises(SystemExit):
    from_args(RECORDS, ["--objective.alpha", "0.5"])
  assert "objective.alpha" in capsys.readouterr().err


def test_bad_value_is_refused():
  with pytest.raises(ValueError, match="beta must be"):
    from_args(RECORDS, ["--objective.beta", "-1"])


def test_flag_of_an_optional_record_makes_it():
  got = from_args(RECORDS, ["--adapter.rank", "16", "--adapter.targets", "query|value"])
  assert got.adapter == Adapter(rank=16, targets="query|value")
  assert from_args(RECORDS, []).adapter is None
  flags = ["--reference.directory", "ref", "--reference.remat", "none"]
  assert from_args(RECORDS, flags).reference == Pretrained("ref", remat="none")


def test_required_field_of_an_optional_record_is_asked_for(capsys):
  with pytest.raises(SystemExit):
    from_args(RECORDS, ["--reference.remat", "none"])
  assert "--reference.directory" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["--start.no-remat", "--start.remat True"])
def test_flag_of_a_choice_as_a_boolean_is_refused_with_those_there_are(words, capsys):
  with pytest.raises(SystemExit):
    from_args(RECORDS, words.split())
  error = capsys.readouterr().err
  assert all(name in error for name in ("none", "full", "dots", "offload"))


def test_optional_record_is_checked_with_the_other_flags():
  flags = "--data.sampling.opponent.share 0.5 --data.feedback.kind win_rates"
  got = from_args(ROLLOUTS, flags.split())
  assert got.data.sampling.opponent == Opponent(share=0.5)
  with pytest.raises(ValueError, match=r'needs Feedback.kind "win_rates"'):
    from_args(ROLLOUTS, flags.split()[:2])


def test_function_is_given_by_its_name_and_then_has_flags():
  where, name = "--data.pair-construction", "xpo_jax.train.pair_construction:all_pairs"
  got = from_args(ROLLOUTS, [where, name, f"{where}.gap", "0.5"]).data.pair_construction
  assert (got.name, got.arguments) == (name, {"gap": 0.5})
  with pytest.raises(ValueError, match="needs the name of a function"):
    from_args(ROLLOUTS, [where, "--seed", "1"])


def test_mapping_is_words_of_names_and_values():
  flags = "--data.reading.rename question=prompt a.b=completions"
  got = from_args(RECORDS, flags.split()).data
  assert got.reading.rename == {"question": "prompt", "a.b": "completions"}
  again = from_args(dataclasses.replace(RECORDS, data=got), ["--seed", "2"]).data
  assert again == got
  flags = "--data.template.arguments enable_thinking=false mode=7up"
  arguments = from_args(RECORDS, flags.split()).data.template.arguments
  assert arguments == {"enable_thinking": False, "mode": "7up"}
  with pytest.raises(
    ValueError, match=r"Reading.rename is given 'x'; write NAME=VALUE"
  ):
    from_args(RECORDS, ["--data.reading.rename", "x"])


def test_strings_of_a_mapping_stay_strings_beside_other_flags():
  arguments = {"date": "2024", "on": "true", "deep": {"a": [1]}, "plain": "x=y", "n": 3}
  data = dataclasses.replace(RECORDS.data, template=Template(arguments=arguments))
  made = from_args(dataclasses.replace(RECORDS, data=data), ["--data.epochs", "2"])
  assert made.data.template.arguments == arguments and made.data.epochs == 2


def test_help_lists_records_that_are_off(capsys):
  with pytest.raises(SystemExit):
    from_args(RECORDS, ["--help"])
  shown = capsys.readouterr().out
  for flag in ("--adapter.rank", "--data.reading.rename", "--objective.beta"):
    assert flag in shown


def test_argument_that_words_cannot_say_is_no_flag(capsys):
  feedback = Feedback(Configured(placed_judge, name="a"), missing_eos=1.0)
  data = dataclasses.replace(ROLLOUTS.data, feedback=feedback)
  experiment = dataclasses.replace(ROLLOUTS, data=data)
  with pytest.raises(SystemExit):
    from_args(experiment, ["--help"])
  shown = capsys.readouterr().out
  assert "source.name" in shown
  assert "source.mesh" not in shown and "source.truth" not in shown
  assert from_args(experiment, ["--seed", "3"]).data == data
