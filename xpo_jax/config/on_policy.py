"""An online experiment as a value: prompts, how to sample, who judges, how to learn.

One loop runs all of them (`online.train`): what differs between PPO, RLOO or iterative
DPO is the objective, the source of feedback and the arrangement, values handed in.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from xpo_jax.config import experiment
from xpo_jax.config.experiment import (
  AuxLossConfig,
  Evaluation,
  Loop,
  MeshShape,
  ObjectiveConfig,
  Start,
)
from xpo_jax.config.optim import Optimizer
from xpo_jax.data.sources import Reading
from xpo_jax.data.tokenise import Limits, Template
from xpo_jax.models.lora import Adapter


@dataclasses.dataclass(frozen=True, init=False)
class Configured:
  """Anything made by a function when the run starts: a judge, a rule, a controller.

  Attributes:
    name: "module:function".
    hparams: every argument of the function, defaults filled in; `Configured`s among
      them are made too, singly or in a list.
  """

  name: str
  hparams: Mapping[str, Any]

  def __init__(self, make: str | Callable[..., Any], /, **hparams: Any):
    """Takes the function or its name, and its arguments.

    Raises:
      ValueError: no such function, or an argument it lacks or misses.
    """
    name = make if isinstance(make, str) else experiment.name_of(make)
    object.__setattr__(self, "name", name)
    object.__setattr__(self, "hparams", experiment.bound(name, hparams))

  def build(self) -> Any:
    """What the function returns."""
    hparams = {name: _made(value) for name, value in self.hparams.items()}
    return experiment.factory(self.name)(**hparams)


def _made(value: Any) -> Any:
  if isinstance(value, Configured | ObjectiveConfig):
    return value.build()
  if type(value) in (list, tuple):
    return tuple(_made(item) for item in value)
  return value


@dataclasses.dataclass(frozen=True)
class Prompts:
  """What completions are sampled for. Equal prompts count once.

  Attributes:
    path: as `experiment.Data.path`; of a record only its prompt is used.
    split: of a TFDS or Hugging Face data set.
    portion: as `experiment.Data.portion`.
    limit: use only the first so many records, or None.
    reading: which columns mean what.
    template: how a prompt becomes text.
    limits: longest prompt in tokens; `limits.completion` is
      `Sampling.max_completion_tokens`'s.
    bad_rows: "stop" with a list of them, or "drop" them, counted and listed in a file.
    seed: order of the prompts, their portions and the held-out share.
  """

  path: str
  split: str = "train"
  portion: str | None = None
  limit: int | None = None
  reading: Reading = dataclasses.field(default_factory=Reading)
  template: Template = dataclasses.field(default_factory=Template)
  limits: Limits = dataclasses.field(default_factory=Limits)
  bad_rows: Literal["stop", "drop"] = "stop"
  seed: int = 0

  def __post_init__(self):
    _among(self, "bad_rows", ("stop", "drop"))
    experiment.check_portion(self)
    experiment.check_positive(self, "limit")
    experiment.check_not_negative(self, "seed")
    if self.limits.completion is not None:
      raise ValueError(
        f"Prompts.limits.completion is {self.limits.completion}; prompts have no "
        "completions, set Sampling.max_completion_tokens"
      )


@dataclasses.dataclass(frozen=True)
class Opponent:
  """Whom completions must beat: a mixture of the policy and the reference.

  Drawn token by token from policy^(1 - share) ref^share (`sample.Mixture`), judged
  against, kept with the rollouts, never trained on. Nash-MD (Munos et al. 2023,
  arXiv:2312.00886).

  Attributes:
    share: the reference's, in [0, 1]: 0 is self-play, 1 the best response to the
      reference. Paper: best at 0.125 to 0.375.
    of: the policy in the mixture: "sampler", who draws the completions; "average", the
      mean of the policy's weights that `Optimizer.ema` keeps (Nash-EMA, with share 0).
    completions: of each prompt; a win rate is the mean over them.
  """

  share: float = 0.25
  of: Literal["sampler", "average"] = "sampler"
  completions: int = 1

  def __post_init__(self):
    _among(self, "of", ("sampler", "average"))
    experiment.check_positive(self, "completions")
    if not 0 <= self.share <= 1:
      raise ValueError(f"Opponent.share is {self.share}; allowed: 0 <= share <= 1")


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How completions are drawn. The policy that is trained is the one that is sampled:
  every log-prob of the run, the reference's too, is taken at `temperature`.

  Attributes:
    completions: K of each prompt.
    max_completion_tokens: longest completion, EOS included.
    temperature: divides the logits.
    top_k: draw among the k likeliest tokens, or None. Recorded log-probs and ratios
      are those of the whole distribution.
    top_p: draw among the fewest tokens whose probability reaches p, or None.
    column0_source: where column 0 of K comes from: "sample", as the others; "greedy",
      the policy's likeliest tokens (ReMax's baseline); "reference", a sample of the
      reference (XPO).
    exploration_temperature: the last K // 2 completions are drawn at this temperature
      instead, or None: they explore for the others (the enhancer of Dong et al. 2024,
      arXiv:2405.07863). Their log-probs are recorded at `temperature`, so that ratios
      against them are not exact: for methods that learn from pairs.
    opponent: whom completions are judged against, where `Feedback.kind` is
      "win_rates"; None: the others of the prompt.
    staleness: iterations by which the sampler's weights are behind the policy's.
    prompts_at_once: decoded together until all have ended; None: all of an iteration.
    slots: instead, completions decoded at once, each place refilled as it falls free
      (`continuous_batching.sample`); the draws are the same.
  """

  completions: int = 4
  max_completion_tokens: int = 64
  temperature: float = 1.0
  top_k: int | None = None
  top_p: float | None = None
  column0_source: Literal["sample", "greedy", "reference"] = "sample"
  exploration_temperature: float | None = None
  opponent: Opponent | None = None
  staleness: int = 0
  prompts_at_once: int | None = None
  slots: int | None = None

  def __post_init__(self):
    _among(self, "column0_source", ("sample", "greedy", "reference"))
    experiment.check_positive(
      self, "completions", "max_completion_tokens", "top_k", "prompts_at_once", "slots"
    )
    if self.slots is not None and self.prompts_at_once is not None:
      raise ValueError(
        f"Sampling.slots is {self.slots} and prompts_at_once {self.prompts_at_once}; "
        "set one of them"
      )
    experiment.check_not_negative(self, "staleness")
    if not 0 < self.temperature < math.inf:
      raise ValueError(
        f"Sampling.temperature is {self.temperature}; allowed: a finite number > 0"
      )
    if self.top_p is not None and not 0 < self.top_p <= 1:
      raise ValueError(f"Sampling.top_p is {self.top_p}; allowed: 0 < top_p <= 1")
    if (
      self.exploration_temperature is not None
      and not 0 < self.exploration_temperature < math.inf
    ):
      raise ValueError(
        f"Sampling.exploration_temperature is {self.exploration_temperature}; allowed: "
        "a finite number > 0, or None"
      )
    if self.exploration_temperature is not None and (
      self.column0_source != "sample" or self.completions < 2
    ):
      raise ValueError(
        f"Sampling.exploration_temperature is {self.exploration_temperature}, with "
        f"column0_source {self.column0_source!r} and "
        f"completions {self.completions}; it takes half of at least 2 completions, all "
        "of them samples"
      )
    if self.column0_source != "sample" and self.completions < 2:
      raise ValueError(
        f"Sampling.column0_source is {self.column0_source!r}, which takes one of the "
        "completions, and "
        f"completions is {self.completions}; sample at least 2"
      )

  @property
  def own(self) -> slice:
    """The columns of K that are the policy's, drawn as `temperature` says."""
    explorers = 0 if self.exploration_temperature is None else self.completions // 2
    return slice(int(self.column0_source != "sample"), self.completions - explorers)


@dataclasses.dataclass(frozen=True)
class Feedback:
  """Who judges completions, and what becomes of the verdicts.

  Attributes:
    source: makes a `feedback.protocol.Scorer`, or a `Preference` for win rates.
    kind: "scores", a reward each; "win_rates", the mean probability to beat
      `Sampling.opponent`, or where there is none the prompt's completions. Held-out win
      rates are against the reference that the run started with.
    abstained: what a NaN does: "stop" the run, the completion shown; or "drop" the
      completion, counted.
    missing_eos: what happens to the reward of a completion that was cut at
      `Sampling.max_completion_tokens`: None leaves it; else this much is taken from it,
        or
      replaces it.
    missing_eos_rule: "subtract" (TRL; `missing_eos` >= 0) or "replace" (Ziegler et al.
      2019 with -1).
    include_self: whether, without an opponent, a completion also meets itself, a draw
      (1/2): SPPO's estimate, which draws win rates to 1/2 by a share 1 / K. False: it
      meets the K - 1 others, without bias (`ipo_md`, Nash-MD's self-play).
  """

  source: Configured
  kind: Literal["scores", "win_rates"] = "scores"
  abstained: Literal["stop", "drop"] = "stop"
  missing_eos: float | None = None
  missing_eos_rule: Literal["subtract", "replace"] = "subtract"
  include_self: bool = True

  def __post_init__(self):
    _among(self, "kind", ("scores", "win_rates"))
    _among(self, "abstained", ("stop", "drop"))
    _among(self, "missing_eos_rule", ("subtract", "replace"))
    if self.missing_eos is None:
      return
    if not math.isfinite(self.missing_eos):
      raise ValueError(
        f"Feedback.missing_eos is {self.missing_eos}; allowed: a finite number, or "
        "None to leave the rewards of cut completions as they are"
      )
    if self.missing_eos < 0 and self.missing_eos_rule == "subtract":
      raise ValueError(
        f"Feedback.missing_eos is {self.missing_eos}, which is subtracted: completions "
        "would be paid for being cut; give a number >= 0, or set "
        'Feedback.missing_eos_rule="replace" to make it their reward'
      )


@dataclasses.dataclass(frozen=True)
class OnlineExperiment:
  """One online run.

  Attributes:
    objective: what is minimised.
    prompts: what completions are sampled for.
    start: where policy and reference start.
    feedback: who judges.
    sampling: how completions are drawn.
    iterations: rounds of sampling, feedback and updates.
    prompts_per_iteration: B of a round.
    minibatches: optimiser steps that one pass over a round takes; divides B.
    ppo_epochs: passes over a round.
    microbatches: gradient accumulation; divides the prompts of a minibatch.
    arrange: makes a `pair_construction.Arrangement`, how K completions become the
      objective's layout; None: the layout's own (`pair_construction.DEFAULTS`).
    controller: makes a `kl_control.Controller` that moves the objective's `beta`
      after every iteration, or None.
    ref_update_every: the policy becomes the reference after every so many iterations;
      None: the reference is the start.
    optimizer: how.
    loop: logging and held-out evaluation, counted in iterations; a checkpoint is made
      after every iteration unless `checkpoint_every` says less often.
    mesh: over which devices.
    evaluation: held-out prompts, judged by the same feedback: a share, or a path.
    seed: of fresh weights, samples and the method's draws.
    parts: what else every update minimises, each on data of its own, at temperature 1
      (PPO-ptx: `sft` on pretraining text).
    critic_init: directory of a reward model (`feedback.reward_model`): values are then
      those of a critic apart that starts as it, of any size but the policy's tokenizer
      (InstructGPT). None: of a head on the policy's own hidden states, 0 at first.
    adapter: train low-rank adapters on the start, which stays as it is and is the
      reference too; None trains every weight. A critic is trained whole either way.
  """

  objective: ObjectiveConfig
  prompts: Prompts
  start: Start
  feedback: Feedback
  sampling: Sampling = dataclasses.field(default_factory=Sampling)
  iterations: int = 100
  prompts_per_iteration: int = 32
  minibatches: int = 1
  ppo_epochs: int = 1
  microbatches: int = 1
  arrange: Configured | None = None
  controller: Configured | None = None
  ref_update_every: int | None = None
  optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
  loop: Loop = dataclasses.field(default_factory=lambda: Loop(log_every=1))
  mesh: MeshShape = dataclasses.field(default_factory=MeshShape)
  evaluation: Evaluation = dataclasses.field(default_factory=Evaluation)
  seed: int = 0
  parts: tuple[AuxLossConfig, ...] = ()
  critic_init: str | None = None
  adapter: Adapter | None = None

  def __post_init__(self):
    experiment.check_names(self.parts)
    experiment.check_positive(
      self,
      "iterations",
      "prompts_per_iteration",
      "minibatches",
      "ppo_epochs",
      "microbatches",
      "ref_update_every",
    )
    if self.prompts_per_iteration % self.minibatches:
      raise ValueError(
        f"OnlineExperiment.minibatches is {self.minibatches}, which does not divide "
        f"prompts_per_iteration = {self.prompts_per_iteration}"
      )
    experiment.check_not_negative(self, "seed")
    self._check_opponent()
    if self.rows_per_step % self.microbatches:
      raise ValueError(
        f"OnlineExperiment.microbatches is {self.microbatches}, which does not divide "
        f"the {self.rows_per_step} prompts of a minibatch"
      )

  def _check_opponent(self) -> None:
    opponent = self.sampling.opponent
    if opponent is not None and self.feedback.kind != "win_rates":
      raise ValueError(
        f'Sampling.opponent needs Feedback.kind "win_rates" (is {self.feedback.kind!r})'
        ": who gives a score each compares with nobody"
      )
    if opponent is not None and opponent.of == "average" and not self.optimizer.ema:
      raise ValueError(
        'Opponent.of is "average"; set Optimizer.ema, the decay of that average'
      )
    if opponent is not None and opponent.of == "average" and self.adapter is not None:
      raise ValueError(
        'Opponent.of is "average" and OnlineExperiment.adapter is set: the mean of an '
        "adapter's factors is not that of the weights; set Opponent.of to "
        '"sampler", or adapter to None'
      )

  @property
  def rows_per_step(self) -> int:
    """Prompts of an optimiser step."""
    return self.prompts_per_iteration // self.minibatches


def _among(config: Any, field: str, allowed: tuple[str, ...]) -> None:
  value = vars(config)[field]
  if value not in allowed:
    raise ValueError(
      f"{type(config).__name__}.{field} is {value!r}; allowed: {allowed}"
    )
