"""What is wrong with an online run, said before anything of it is made."""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import transformers

from xpo_jax import scored
from xpo_jax.config import split_overlap
from xpo_jax.config.experiment import Scratch, Trained
from xpo_jax.config.on_policy import OnlineExperiment
from xpo_jax.data import records
from xpo_jax.data.sources import Loaded
from xpo_jax.models import hf_checkpoint
from xpo_jax.ops.kl_control import Controller, Observation
from xpo_jax.sharding import mesh as meshes
from xpo_jax.testing import toy
from xpo_jax.train import (
  aux_losses,
  critic,
  loading,
  metrics,
  online_setup,
  references,
  setup,
)
from xpo_jax.train.loading import Datasets
from xpo_jax.train.pair_construction import Arrangement
from xpo_jax.types import Layout, Objective

_RECORDED = frozenset({"reward_BK", "old_logp_BKT", online_setup.OLD_VALUE})


def check(experiment: OnlineExperiment, datasets: Datasets | None = None) -> None:
  """What can be refused before anything is made.

  Args:
    experiment: the run.
    datasets: see `loading.load`.

  Raises:
    ValueError: an objective that rollouts cannot feed, that the arrangement does not
      fit, that takes another column 0 than `Sampling.column0_source` brings or other
      rewards than `Feedback` gives, or that cannot tell rewards apart with so few
      completions; win rates of one completion; a controller of a beta that is not the
      objective's, or that may take it to 0 in one iteration; a function in the wrong
      field; a critic for an objective without values; a mesh that does not fit; a part
      that cannot be (`aux_losses.check`); held-out prompts that are trained on
      (`split_overlap.check`).
  """
  objective, made = experiment.objective.build(), online_setup.arrangement(experiment)
  if not isinstance(made, Arrangement):
    raise ValueError(
      f"OnlineExperiment.arrange is {experiment.arrange.name}, which makes "
      f"{type(made).__name__}; name a function that makes an arrange.Arrangement, such "
      "as arrange.best_worst"
    )
  name, completions = objective.name, experiment.sampling.completions
  if made.layout is not objective.layout:
    raise ValueError(
      f"{name} needs layout {objective.layout.name}, the arrangement makes "
      f"{made.layout.name}; see xpo_jax.train.pair_construction"
    )
  brought = _RECORDED | made.brings
  unknown = sorted(objective.columns - brought)
  if unknown:
    raise ValueError(
      f"{name} requires the field {unknown[0]}, which rollouts do not bring; they "
      f"bring {', '.join(sorted(brought))}"
    )
  roles = {role.split(".")[0] for stat in objective.stats for role in stat.roles}
  if roles - {"policy", references.ROLE}:
    raise ValueError(
      f"{name} reads the roles {sorted(roles)}; an online run has a policy and a ref"
    )
  first = experiment.sampling.column0_source
  if first != objective.column0_source:
    raise ValueError(
      f"Sampling.column0_source is {first!r}, and {name} is made for "
      f"{objective.column0_source!r} in "
      f"column 0; set Sampling.column0_source to {objective.column0_source!r}"
    )
  _check_feedback(objective, experiment)
  if completions == 1 and not _sees_rewards(objective, made):
    raise ValueError(
      f"{name} learns nothing from the rewards of one completion: its baseline or its "
      "pair is made of the others of the prompt; set Sampling.completions to 2 or more "
      "(is 1)"
    )
  if experiment.controller is not None:
    _check_controller(experiment)
  if experiment.critic_init is not None:
    critic.check(experiment.critic_init, objective)
  mesh = setup.make_mesh(experiment.mesh)
  if mesh is not None:
    meshes.check_batch(mesh, experiment.rows_per_step, experiment.microbatches)
    for part in experiment.parts:
      meshes.check_batch(mesh, part.data.rows_per_step, part.data.microbatches)
  aux_losses.check(experiment.parts, datasets or {})
  if experiment.loop.wandb is not None:
    metrics.check_wandb()
  split_overlap.check(experiment)


def load(experiment: OnlineExperiment, datasets: Datasets) -> Loaded:
  """The prompts' records of an experiment that `check` let pass.

  Raises:
    ValueError: what `check` refuses, unreadable rows that stop the run, no rows; what
      the start has no room for (`online_setup.check_room`), as far as that is known of
      a start that is not trained yet: all, but for prompts in a tokenizer to be made.
  """
  check(experiment, datasets)
  loaded = loading.load(experiment.prompts, experiment.prompts, datasets)
  if loaded.bad and experiment.prompts.bad_rows == "stop":
    raise records.BadRows(loaded.bad)
  if not loaded.records:
    raise ValueError(
      f"Prompts.path {experiment.prompts.path!r}: {loaded.name} holds no prompt"
    )
  _check_start(experiment, loaded, datasets)
  return loaded


def _check_start(
  experiment: OnlineExperiment, loaded: Loaded, datasets: Datasets
) -> None:
  """What `online_setup.prepare` refuses, before a stage is trained."""
  start = experiment.start
  while isinstance(start, Trained):
    start = start.experiment.start
  if isinstance(start, Scratch):
    config, directory = start.model, start.tokenizer
  else:
    config, directory = hf_checkpoint.read_config(start.directory), start.directory
  longest = 1
  if config.rotary is None and directory is not None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    with tempfile.TemporaryDirectory() as scratch:  # for lists of bad rows
      made = online_setup.prompt_sets(
        experiment, loaded, tokenizer, Path(scratch), datasets
      )
    longest = made[0].width
  online_setup.check_room(config, experiment.sampling, longest)


def _check_feedback(objective: Objective, experiment: OnlineExperiment) -> None:
  feedback, sampling = experiment.feedback, experiment.sampling
  K, opponent = sampling.completions, sampling.opponent
  if objective.reward_kind != "any" and feedback.kind != "win_rates":
    raise ValueError(
      f"{objective.name} learns from win rates and Feedback.kind is {feedback.kind!r}; "
      'set it to "win_rates", and Feedback.source to a preference'
    )
  if feedback.kind == "win_rates" and opponent is None and K == 1:
    raise ValueError(
      "Sampling.completions is 1 and Feedback.kind 'win_rates': without an opponent it "
      "can beat nobody; set completions to 2 or more, or Sampling.opponent"
    )
  if objective.reward_kind != "pairwise":
    return
  if feedback.include_self or opponent is not None or K != 2:
    raise ValueError(
      f"{objective.name} learns from the probabilities of two completions to beat one "
      f"another, and Feedback.include_self is {feedback.include_self}, "
      f"Sampling.completions {K}, Sampling.opponent {opponent}; set them to False, 2 "
      "and None"
    )


def _check_controller(experiment: OnlineExperiment) -> None:
  rule = experiment.controller.build()
  if not isinstance(rule, Controller):
    raise ValueError(
      f"OnlineExperiment.controller is {experiment.controller.name}, which makes "
      f"{type(rule).__name__}; name a function that makes a controllers.Controller, "
      "such as controllers.adaptive_kl"
    )
  first = rule.beta
  name, hparams = experiment.objective.name, experiment.objective.hparams
  if not isinstance(hparams.get("beta"), float | int):
    raise ValueError(
      f"controller: {name} has no number beta to control, it has {hparams}"
    )
  if hparams["beta"] != first:
    raise ValueError(
      f"controller starts at beta {first}, {name} has beta {hparams['beta']}; give "
      "both "
      "the same"
    )
  each, K = experiment.prompts_per_iteration, experiment.sampling.completions
  # As far below its target as an estimate may be: the most that beta can fall.
  lowest = float(rule.update(first, Observation(-1e9, each * K)))
  if not lowest > 0:
    raise ValueError(
      f"controller: {experiment.controller.name} may take beta from {first} to "
      f"{lowest:g} in one iteration of {each * K} completions (prompts_per_iteration "
      f"{each} x Sampling.completions {K}), and beta must stay > 0; with "
      f"{dict(experiment.controller.hparams)} raise horizon above max_error x "
      f"{each * K}"
    )


def _sees_rewards(objective: Objective, made: Arrangement) -> bool:
  """Whether other rewards give another gradient where a prompt has one completion."""
  record = toy.scored_for(objective._replace(layout=Layout.RATED))
  length_BK, present_BK = np.asarray(record.length_BK), np.asarray(record.present_BK)
  least, most = (
    made.choose(np.full_like(present_BK, reward), present_BK, length_BK)
    for reward in (-1e30, 1e30)
  )
  if least != most:  # chosen or labelled by its reward alone
    return True
  if not least or objective.layout is not Layout.SAMPLED:
    return False
  reward_BK = np.asarray(record.reward_BK)

  def loss(logp_BKT, reward_BK):
    one = record.replace(logp_BKT=logp_BKT, reward_BK=reward_BK)
    key = jax.random.key(0)
    return scored.evaluate(objective, one, objective.init(), key).loss

  slope = jax.jit(jax.grad(loss))
  other_BK = reward_BK[::-1] + np.arange(len(reward_BK), dtype=np.float32)[:, None]
  found = [slope(record.logp_BKT, x_BK) for x_BK in (reward_BK, other_BK)]
  return bool(jnp.any(found[0] != found[1]))
