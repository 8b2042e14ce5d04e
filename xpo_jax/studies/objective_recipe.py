"""Makes the recipe of an objective from flags: `xpo train dpo --model M --data D`.

Every name of the index is such a recipe, and so is an objective of one's own,
"module:factory". `--data` trains on records, `--prompts` with `--reward` on samples of
the policy; every field of the experiment is a flag beside them. A recipe file is for
what is worth keeping.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from xpo_jax import objectives
from xpo_jax.config import command_line, trust
from xpo_jax.config.data import Data, Evaluation, Prompts
from xpo_jax.config.experiment import (
  Experiment,
  NamedReference,
  Pretrained,
  Rollouts,
)
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.optim import Optimizer
from xpo_jax.config.sampling import Feedback, Sampling
from xpo_jax.data import imports
from xpo_jax.data.formats import hub
from xpo_jax.data.sources import Reading
from xpo_jax.evaluation import evaluate_run
from xpo_jax.feedback import reward_functions, reward_model, rules, teacher
from xpo_jax.types import Layout, Objective

_LENGTH = "xpo_jax.feedback.rules:length"
HELD_OUT = 0.1  # share of the prompts
LEARNING_RATE, ADAPTER_LEARNING_RATE = 1e-5, 1e-4


def experiment(name: str, words: Sequence[str], prog: str) -> Experiment:
  """Makes the experiment of an objective from the words of a shell.

  Args:
    name: of the index, or "module:factory".
    words: flags.
    prog: the command, for messages and `--help`.

  Raises:
    ValueError: no model; no data or prompts, or what the objective cannot be trained
      on; and what the experiment refuses.
  """
  if words and not words[0].startswith("-"):
    raise ValueError(
      f"{prog} {words[0]}: an objective takes flags: {prog} --model DIR --data FILE"
    )
  parser = _parser(prog)
  given, flags = parser.parse_known_args(list(words))
  objective = ObjectiveConfig(name)
  built = objective.build()
  description = None
  if {"-h", "--help"} & set(flags):
    first = f"{objectives.summary(name)}\n\n" if name in objectives.NAMES else ""
    description = first + parser.format_help()
    _fill(given, built)
  _check(given, built, prog)
  adapted = any(word.startswith("--adapter.") for word in flags)
  default = Experiment(
    objective=objective,
    data=_rollouts(given, built)
    if given.prompts
    else Data(given.data, split=_splits("train", built)),
    start=Pretrained(_weights(given.model)),
    teacher=given.teacher and Pretrained(_weights(given.teacher)),
    references=tuple(map(_reference, given.references or ())),
    optimizer=Optimizer(
      learning_rate=ADAPTER_LEARNING_RATE if adapted else LEARNING_RATE
    ),
    evaluation=Evaluation(share=HELD_OUT)
    if given.held_out is None
    else Evaluation(given.held_out, split=_splits("test", built)),
  )
  return command_line.from_args(default, flags, prog, description)


def _splits(name: str, objective: Objective) -> str:
  """A split, or the one of its kind where a data set has several ("train_prefs")."""
  kind = "sft" if objective.layout is Layout.DEMO else "prefs"
  return f"{name}|{name}_{kind}"


def _fill(given: argparse.Namespace, objective: Objective) -> None:
  """Fills in what was not given, so that `--help` can list the fields."""
  given.model = given.model or "DIR"
  if _is_taught(objective):
    given.teacher = given.teacher or "DIR"
  if given.prompts is None and objective.layout is not Layout.SAMPLED:
    given.data = given.data or "FILE"
    return
  given.prompts = given.prompts or "FILE"
  given.reward = given.reward or ["xpo_jax.feedback.rules:sentiment"]


def _parser(prog: str) -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog=prog,
    add_help=False,
    allow_abbrev=False,
    usage=f"{prog} --model DIR (--data FILE | --prompts FILE --reward R) [--FIELD ...]",
    epilog=f"Defaults of these commands: a share of {HELD_OUT:g} of the prompts is "
    f"held out; the learning rate is {LEARNING_RATE:g}, with --adapter flags "
    f"{ADAPTER_LEARNING_RATE:g}. A record that is off is made by any of its flags "
    "(--adapter.rank 16).",
  )
  parser.add_argument(
    "--model",
    help="start: a Hugging Face directory, hub:ORG/NAME[@revision], a GGUF file, or a "
    "finished run",
  )
  parser.add_argument(
    "--teacher", help="of an objective that distils one: as --model, of its tokenizer"
  )
  parser.add_argument(
    "--references",
    nargs="+",
    metavar="ROLE=DIR",
    help="further references of an objective that reads some (d2o: ref_minus=DIR "
    "ref_plus=DIR), as --model",
  )
  parser.add_argument("--data", help="records: see data.path")
  parser.add_argument("--held-out", metavar="DATA", help="held-out data of its own")
  parser.add_argument("--prompts", metavar="DATA", help="prompts to sample for")
  parser.add_argument(
    "--reward",
    nargs="+",
    help="of samples: MODULE:FUNCTION, a reward model (its run, a directory, "
    "hub:ORG/NAME), or several",
  )
  parser.add_argument(
    "--reward-weights", nargs="+", type=float, help="of several; each is 1 by default"
  )
  return parser


def _check(given: argparse.Namespace, objective: Objective, prog: str) -> None:
  name = objective.name
  on_samples = f"{prog} --model DIR --prompts FILE"
  if not _is_taught(objective):
    on_samples += " --reward MODULE:FUNCTION"
  on_records = f"{prog} --model DIR --data FILE"
  if given.model is None:
    raise ValueError(f"{prog} needs --model, the weights to start from: {on_records}")
  if _is_taught(objective) and given.teacher is None:
    raise ValueError(
      f"{prog} needs --teacher, the model to learn from: {on_samples} --teacher DIR"
    )
  if given.teacher and not _is_taught(objective):
    raise ValueError(
      f"--teacher is {given.teacher}, and nothing of {name} reads it; leave it out"
    )
  if given.data and given.prompts:
    raise ValueError(
      f"--data is {given.data} and --prompts {given.prompts}: a run learns from "
      "records or from samples for prompts; give one of them"
    )
  if given.prompts is None:
    if objective.layout is Layout.SAMPLED:
      raise ValueError(
        f"{name} learns from samples of the policy and takes no records: {on_samples}"
      )
    if given.data is None:
      raise ValueError(
        f"{prog} needs --data, records to train on ({on_records}), or prompts to "
        f"sample for ({on_samples})"
      )
    if given.reward:
      raise ValueError(
        f"--reward {given.reward[0]} is of samples for prompts: give them by --prompts"
      )
  elif not given.reward and not _is_taught(objective):
    raise ValueError(
      f"--prompts {given.prompts} needs --reward, what the samples are judged by: "
      f"{on_samples}"
    )
  if given.reward_weights and len(given.reward_weights) != len(given.reward or ()):
    raise ValueError(
      f"--reward-weights {given.reward_weights}: as many as rewards, "
      f"{len(given.reward or ())}"
    )


def _is_taught(objective: Objective) -> bool:
  """Whether it learns from a teacher; a reward is then reported and not trained on."""
  return teacher.reads(objective.stats)


def _reference(text: str) -> NamedReference:
  role, equals, model = text.partition("=")
  if not (role and equals and model):
    raise ValueError(f"--references {text}: write ROLE=DIR, as in ref_minus=DIR")
  return NamedReference(role, Pretrained(_weights(model)))


def _weights(model: str) -> str:
  """The start by name: of a finished run its policy."""
  return str(evaluate_run.policy_dir(model)) if Path(model).is_dir() else model


def _rollouts(given: argparse.Namespace, objective: Objective) -> Rollouts:
  # Without a reward, which a teacher makes superfluous, the length is reported.
  scorers = [_scorer(name) for name in given.reward or [_LENGTH]]
  columns = dict.fromkeys(column for _, names in scorers for column in names)
  scorers = [scorer for scorer, _ in scorers]
  source = scorers[0]
  if len(scorers) > 1 or given.reward_weights:
    weights = given.reward_weights or [1.0] * len(scorers)
    source = Configured(
      reward_functions.weighted, scorers=tuple(scorers), weights=tuple(weights)
    )
  pairwise = objective.reward_kind == "pairwise"
  feedback = Feedback(source)
  if objective.reward_kind != "any":
    preference = Configured(rules.bradley_terry, scorer=source)
    feedback = Feedback(preference, kind="win_rates", include_self=not pairwise)
  sampling = Sampling(
    column0_source=objective.column0_source, teacher_share=objective.teacher_share
  )
  if pairwise:
    sampling = dataclasses.replace(sampling, completions=2)
  reading = Reading(columns=tuple(columns))
  return Rollouts(Prompts(given.prompts, reading=reading), feedback, sampling)


def _scorer(name: str) -> tuple[Configured, tuple[str, ...]]:
  """The scorer of a name, and the columns of the records that it reads."""
  if Path(name).is_dir() or name.startswith(hub.PREFIX):
    directory = name if name.startswith(hub.PREFIX) else evaluate_run.policy_dir(name)
    return Configured(reward_model.scorer, directory=str(directory)), ()
  if ":" not in name:
    raise ValueError(
      f"--reward {name}: neither MODULE:FUNCTION nor the directory of a reward model"
    )
  function = imports.function(name, "reward function")
  if reward_functions.is_factory(function):
    return Configured(name), ()
  trust.allow_used(name)
  columns = reward_functions.columns(function)
  return Configured(reward_functions.named, reward_function=name), columns
