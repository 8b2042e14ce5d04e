"""Configures an experiment: objective, data, start, optimiser, loop, evaluation.

Every class here is a frozen dataclass that refuses bad values when it is made. A value
can be printed, compared, stored as YAML (`yaml_file`), changed from a shell
(`command_line`) and run (`loop.train`). Hyperparameters of a method live in its
`ObjectiveConfig` and nowhere else. Stages compose: SFT, then a reward model, then PPO
is one value, with a `Stage` wherever weights are needed.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from xpo_jax.config import checks
from xpo_jax.config.data import Data, Evaluation, Prompts, title_of
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.mesh_shape import MeshShape
from xpo_jax.config.optim import Optimizer, Precision
from xpo_jax.config.sampling import Feedback, SamplerCorrection, Sampling
from xpo_jax.models.config import Config, Remat, check_remat
from xpo_jax.models.lora import Adapter
from xpo_jax.types import AuxLoss


@dataclasses.dataclass(frozen=True)
class Scratch:
  """Start from random weights.

  Attributes:
    model: the architecture.
    tokenizer: directory of a Hugging Face tokenizer; None trains a byte-level BPE of
      `model.vocab` entries on the data.
  """

  model: Config
  tokenizer: str | None = None


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """Start from a Hugging Face directory.

  Attributes:
    directory: config.json, safetensors, tokenizer; or "hub:ORG/NAME[@revision]", or a
      GGUF file (`models.weights_source`).
    compute_dtype: dtype of activations.
    remat: what of a block the backward pass computes again: "none", "full", "dots" or
      "offload"; see `Config.remat`.
  """

  directory: str
  compute_dtype: str = "float32"
  remat: Remat = "full"

  def __post_init__(self):
    check_remat("Pretrained", self.remat)


@dataclasses.dataclass(frozen=True)
class Stage:
  """The final weights of a run, to be used wherever weights are needed.

  As `Experiment.start` (SFT before DPO), `Experiment.reference`, `Experiment.teacher`,
  `Rollouts.critic_init`, or an argument of a `Configured` (the reward model of a judge,
  the policy that samples the data). The run is trained first, in a directory named by
  its digest, so that equal stages are trained once (`train.stages`).

  Attributes:
    experiment: the run.
  """

  experiment: "Experiment"


Start = Scratch | Pretrained | Stage


@dataclasses.dataclass(frozen=True)
class NamedReference:
  """Weights of a further reference, which an objective reads by a role of its own.

  D2O reads two: "ref_minus", a more harmful model, and "ref_plus", a more helpful one
  (Duan et al. 2024, arXiv:2403.03419); both may be the start.

  Attributes:
    role: as in the objective's statistics.
    weights: of the policy's architecture and tokenizer; frozen.
  """

  role: str
  weights: Pretrained | Stage


@dataclasses.dataclass(frozen=True)
class AuxLossConfig:
  """A further loss of a run, on data of its own: `types.AuxLoss` as a value.

  PPO-ptx is PPO with
  `AuxLossConfig(27.8, ObjectiveConfig("sft"), Data("texts.jsonl"))`; NPO's loss on the
  retain set is
  `AuxLossConfig(1.0, ObjectiveConfig("sft"), Data("keep.jsonl"), "retain")`.

  Attributes:
    weight: of its loss in the sum that is minimised; > 0.
    objective: what is minimised. A reference that it reads is the run's, scored with
      every step.
    data: its data. The steps of the run read its batches in turn and begin again
      after the last; each loss is divided by its own count, whatever the size of the
      run's.
    name: of its metrics: `loss/NAME/term`, `NAME/metric`.
  """

  weight: float
  objective: ObjectiveConfig
  data: Data
  name: str = "text"

  def __post_init__(self):
    if not 0 < self.weight < math.inf:
      raise ValueError(
        f"AuxLossConfig.weight is {self.weight}; it must be a number > 0"
      )
    if not self.name.isidentifier():
      raise ValueError(
        f"AuxLossConfig.name is {self.name!r}; it must be a word, as in 'text'"
      )

  def build(self) -> AuxLoss:
    """The loss that the step takes."""
    return AuxLoss(self.weight, self.objective.build(), self.name)


@dataclasses.dataclass(frozen=True)
class Loop:
  """Logging, evaluation and checkpoints. With `Rollouts`, a step is an iteration.

  Attributes:
    log_every: steps between two printed lines; metrics are fetched as often.
      None: 10 steps of records, every iteration of rollouts.
    eval_every: steps between two passes over the held-out data; None: after the last.
    checkpoint_every: steps between two checkpoints. None: after the last step of
      records, after every iteration of rollouts.
    checkpoint_minutes: minutes after a checkpoint, or after the start, when another is
      saved, whatever `checkpoint_every` says; on several hosts with the next line that
      is logged. None: off.
    keep: checkpoints kept, the newest ones.
    checkpoints: directory of this run's checkpoints, its whole path, or in a bucket,
      `gs://` or `s3://` (the extra `bucket`); None: `checkpoints/` in the run
      directory.
    wandb: project at Weights & Biases, or None; a resumed run goes on with its curves.
    evaluator: a function that makes an evaluation of the policy,
      `train.state.Policy -> {name: number}`, or None; such as
      `evaluation.evaluators.tasks` (lm-eval). Its numbers are metrics
      `evaluator/NAME`; its time is no time of a step.
    evaluator_every: steps between two calls of it; None: after the last.
  """

  log_every: int | None = None
  eval_every: int | None = None
  checkpoint_every: int | None = None
  checkpoint_minutes: float | None = 10.0
  keep: int = 2
  checkpoints: str | None = None
  wandb: str | None = None
  evaluator: Configured | None = None
  evaluator_every: int | None = None

  def __post_init__(self):
    checks.check_positive(self, "log_every", "eval_every", "checkpoint_every", "keep")
    checks.check_positive(self, "evaluator_every")
    if self.evaluator_every is not None and self.evaluator is None:
      raise ValueError(
        f"Loop.evaluator_every is {self.evaluator_every}, and Loop.evaluator is None; "
        "name a function that makes an evaluation, or leave it out"
      )
    if self.checkpoints is not None:
      checks.check_directory(self, "checkpoints")
    minutes = self.checkpoint_minutes
    if minutes is not None and not 0 < minutes < math.inf:
      raise ValueError(
        f"Loop.checkpoint_minutes is {minutes}; it must be a number > 0, or None for "
        "no checkpoints by time"
      )


@dataclasses.dataclass(frozen=True)
class Rollouts:
  """Training on completions that the policy samples, and their feedback.

  Attributes:
    prompts: prompts that completions are sampled for.
    feedback: reward model or judge.
    sampling: how completions are drawn.
    iterations: number of iterations: sampling, feedback and updates.
    prompts_per_iteration: B of an iteration.
    minibatches: optimiser steps of one pass over an iteration; divides B.
    ppo_epochs: passes over the rollouts of an iteration.
    microbatches: gradient accumulation; divides the prompts of a minibatch.
    pair_construction: makes a `pair_construction.PairConstruction`, how K completions
      become the objective's layout; None: the layout's own
      (`pair_construction.DEFAULTS`).
    kl_controller: makes a `kl_control.Controller` that moves the objective's `beta`
      after every iteration, or None.
    ref_update_every: the policy becomes the reference after every so many iterations;
      None: the reference stays.
    dynamic_sampling: DAPO's dynamic sampling (Yu et al. 2025, arXiv:2503.14476): an
      iteration trains on prompts alone whose completions differ in their rewards by the
      feedback, before the rules for length. It samples the next
      `prompts_per_iteration` prompts until it has so many of them, at most this many
      rounds in all, and trains on what it has. None: one round, every prompt is used.
    sampler_correction: importance weights for a sampler that is not the policy; None:
      off.
    allow_off_policy: lets an objective without an importance ratio
      (`Objective.on_policy`) take several updates of an iteration, or learn from stale
      samples (`Sampling.staleness`): its gradient is then biased, by how far the policy
      has moved since it sampled.
    critic_init: a reward model: values are then those of a critic of its own that
      starts as it, of any size but with the policy's tokenizer (InstructGPT); its
      directory (`feedback.reward_model`) or the `Stage` that trains it. None: values
      are of a head on the policy's own hidden states, 0 at first.
  """

  prompts: Prompts
  feedback: Feedback
  sampling: Sampling = dataclasses.field(default_factory=Sampling)
  iterations: int = 100
  prompts_per_iteration: int = 32
  minibatches: int = 1
  ppo_epochs: int = 1
  microbatches: int = 1
  pair_construction: Configured | None = None
  kl_controller: Configured | None = None
  ref_update_every: int | None = None
  dynamic_sampling: int | None = None
  sampler_correction: SamplerCorrection | None = None
  allow_off_policy: bool = False
  critic_init: str | Stage | None = None

  def __post_init__(self):
    sizes = ("iterations", "prompts_per_iteration", "minibatches", "ppo_epochs")
    checks.check_positive(
      self, *sizes, "microbatches", "ref_update_every", "dynamic_sampling"
    )
    if self.dynamic_sampling is not None and self.sampling.completions < 2:
      raise ValueError(
        f"Rollouts.dynamic_sampling is {self.dynamic_sampling} and "
        "Sampling.completions 1: rewards of a prompt differ where it has at least 2"
      )
    if self.prompts_per_iteration % self.minibatches:
      raise ValueError(
        f"Rollouts.minibatches is {self.minibatches}, which does not divide "
        f"prompts_per_iteration = {self.prompts_per_iteration}"
      )
    if self.rows_per_step % self.microbatches:
      raise ValueError(
        f"Rollouts.microbatches is {self.microbatches}, which does not divide the "
        f"{self.rows_per_step} prompts of a minibatch"
      )
    if self.sampling.opponent is not None and self.feedback.kind != "win_rates":
      raise ValueError(
        f'Sampling.opponent needs Feedback.kind "win_rates" (is {self.feedback.kind!r})'
        ": scores compare with no opponent"
      )
    buffer, limit = self.feedback.overlong_buffer, self.max_completion_tokens
    if buffer is not None and buffer > limit:
      raise ValueError(
        f"Feedback.overlong_buffer is {buffer}, above Sampling.max_completion_tokens = "
        f"{limit}: every completion would be penalised; DAPO's is a fifth of the limit"
      )

  @property
  def rows_per_step(self) -> int:
    """Prompts of an optimiser step."""
    return self.prompts_per_iteration // self.minibatches

  @property
  def title(self) -> str:
    """Name of the training data, for display."""
    judge = self.feedback.source.title
    return f"samples for {title_of(self.prompts.path)}, by {judge}"

  @property
  def source(self) -> Prompts:
    """The config that prompts are read by; see `Data.source`."""
    return self.prompts

  @property
  def max_completion_tokens(self) -> int:
    """Limit on the tokens of a completion."""
    return self.sampling.max_completion_tokens

  @property
  def temperature(self) -> float:
    """Temperature of sampling and of the log-probs."""
    return self.sampling.temperature


@dataclasses.dataclass(frozen=True)
class Experiment:
  """One run.

  Attributes:
    objective: what is minimised.
    data: records, or rollouts of the policy.
    start: initial weights of the policy.
    optimizer: optimiser and schedule.
    loop: logging, held-out evaluation, checkpoints.
    mesh: devices.
    evaluation: held-out data: records, or prompts whose completions the run's feedback
      judges.
    seed: of initial weights, samples and the method's random draws.
    adapter: train low-rank adapters on the start, which stays as it is and is the
      reference too; None trains every weight. A critic is trained whole either way.
    aux_losses: further losses, each on data of its own, at temperature 1
      (PPO-ptx: `sft` on pretraining text).
    reference: initial weights of the reference, of the policy's architecture and
      tokenizer; None: the policy's.
    teacher: weights of the frozen teacher that a distillation learns from, of any size
      but with the policy's tokenizer and vocabulary; None where nothing reads one.
    router_loss: coefficient of the load-balancing loss of a mixture of experts
      (`ops.experts.load_balance`) over the batches of the run, prompts included; 0:
      off. None: the start's own `Config.router_loss`, which a checkpoint's config.json
      sets by `output_router_logits` and `router_aux_loss_coef`.
    references: further frozen models of a run on records, one for each role of its own
      that the objective reads (`d2o`); () for other objectives.
    precision: dtypes of the trained weights, of the optimiser's state and of the base
      of adapters in memory.
  """

  objective: ObjectiveConfig
  data: Data | Rollouts
  start: Start
  optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
  loop: Loop = dataclasses.field(default_factory=Loop)
  mesh: MeshShape = dataclasses.field(default_factory=MeshShape)
  evaluation: Evaluation = dataclasses.field(default_factory=Evaluation)
  seed: int = 0
  adapter: Adapter | None = None
  aux_losses: tuple[AuxLossConfig, ...] = ()
  reference: Pretrained | Stage | None = None
  teacher: Pretrained | Stage | None = None
  router_loss: float | None = None
  references: tuple[NamedReference, ...] = ()
  precision: Precision = dataclasses.field(default_factory=Precision)

  def __post_init__(self):
    if self.router_loss is not None and not 0 <= self.router_loss < math.inf:
      raise ValueError(
        f"Experiment.router_loss is {self.router_loss}; it must be a number >= 0, or "
        "None for the start's own"
      )
    self._check_base()
    names = [loss.name for loss in self.aux_losses]
    for name in names:
      if names.count(name) > 1:
        raise ValueError(
          f"two aux_losses are called {name!r}; give each AuxLossConfig.name its own"
        )
    checks.check_not_negative(self, "seed")

  def _check_base(self) -> None:
    base, data = self.precision.base, self.data
    if base == "float32":
      return
    if self.adapter is None:
      raise ValueError(
        f"Precision.base is {base!r}, and Experiment.adapter None: without adapters no "
        "base is frozen; set an adapter, or Precision.base to 'float32' (the dtype of "
        "trained weights is Precision.params)"
      )
    if isinstance(data, Rollouts) and data.ref_update_every is not None:
      raise ValueError(
        f"Precision.base is {base!r}, and Rollouts.ref_update_every "
        f"{data.ref_update_every}: the reference becomes a merged policy, in float32; "
        "set Precision.base to 'float32', or ref_update_every to None"
      )


def replace(experiment: Experiment, **changes: Any) -> Experiment:
  """Replaces fields of an experiment, its own or those of its `data`, by name.

  Raises:
    ValueError: a field that neither has.
  """
  own = {field.name for field in dataclasses.fields(experiment)}
  inner = {field.name for field in dataclasses.fields(experiment.data)}
  unknown = sorted(set(changes) - own - inner)
  if unknown:
    raise ValueError(
      f"Experiment and {type(experiment.data).__name__} have no field {unknown[0]!r}; "
      f"theirs are {', '.join(sorted(own | inner))}"
    )
  nested = {name: value for name, value in changes.items() if name not in own}
  if nested:
    data = dataclasses.replace(changes.get("data", experiment.data), **nested)
    changes = {name: changes[name] for name in changes if name in own} | {"data": data}
  return dataclasses.replace(experiment, **changes)


def stages(value: Any, where: str = "") -> Iterator[tuple[str, Stage]]:
  """Yields the stages of a value with their paths, in the order of the fields; those
  within a stage are left out.

  Args:
    value: an experiment or any part of one.
    where: its path, "" for an experiment.
  """
  if isinstance(value, Stage):
    yield where, value
    return
  for name, item in children(value):
    yield from stages(item, f"{where}.{name}" if where else name)


def children(value: Any) -> list[tuple[str, Any]]:
  """Names and values directly within a config: fields, arguments, items."""
  if isinstance(value, Configured):
    return list(value.arguments.items())
  if dataclasses.is_dataclass(value) and not isinstance(value, ObjectiveConfig):
    return [(f.name, vars(value)[f.name]) for f in dataclasses.fields(value)]
  if type(value) in (list, tuple):
    return [(str(number), item) for number, item in enumerate(value)]
  return []
