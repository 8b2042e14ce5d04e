"""Configures sampling of completions, the opponent, and feedback."""

import dataclasses
import math
from typing import Literal

from xpo_jax.config import checks
from xpo_jax.config.factories import Configured
from xpo_jax.config.mesh_shape import MeshShape
from xpo_jax.ops import sampler_correction


@dataclasses.dataclass(frozen=True)
class Opponent:
  """Opponent of win rates: a mixture of the policy and the reference.

  Its completions are sampled token by token from policy^(1 - share) ref^share
  (`sample.Mixture`), stored with the rollouts and never trained on. Nash-MD
  (Munos et al. 2023, arXiv:2312.00886).

  Attributes:
    share: the reference's, in [0, 1]: 0 is self-play, 1 the best response to the
      reference. Paper: best at 0.125 to 0.375.
    of: the policy in the mixture: "sampler", the policy that samples; "average", the
      moving average of its weights, see `Optimizer.ema` (Nash-EMA, with share 0).
    completions: of each prompt; a win rate is the mean over them.
  """

  share: float = 0.25
  of: Literal["sampler", "average"] = "sampler"
  completions: int = 1

  def __post_init__(self):
    checks.check_among(self, "of", ("sampler", "average"))
    checks.check_positive(self, "completions")
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
    top_k: draw among the k likeliest tokens, or None. Log-probs and ratios of the
      policy are those of the whole distribution; those of what is drawn from are
      recorded beside them (`SamplerCorrection`).
    top_p: draw among the fewest tokens whose probability reaches p, or None.
    column0_source: source of column 0 of K: "sample", as the others; "greedy",
      the policy's likeliest tokens (ReMax's baseline); "reference", a sample of the
      reference (XPO).
    exploration_temperature: temperature of the last K // 2 completions, or None for
      that of the others (the enhancer of Dong et al. 2024, arXiv:2405.07863).
      The policy's log-probs are recorded at `temperature`, so that ratios against
      them are not exact: for methods that learn from pairs, or with a
      `SamplerCorrection`.
    opponent: source of the completions to compare with, where `Feedback.kind` is
      "win_rates"; None: the others of the prompt.
    teacher_share: share of `Experiment.teacher` in the distribution that completions
      are sampled from, (1 - share) policy + share teacher at each token, in [0, 1).
      Log-probs are recorded under the policy. Only for an objective that corrects for
      it (`minillm`).
    staleness: iterations by which the sampler's weights lag behind the policy's.
    prompts_at_once: decoded together until all have ended; None: all of an iteration.
      On a mesh it is rounded up to a multiple of data x fsdp, as `slots` is.
    weights_dtype: dtype that weights are rounded to for sampling, as in an engine of
      lower precision; the policy's log-probs are then the trainer's, of the weights as
      they are. None: no rounding.
    slots: instead, number of decode slots, each refilled when its completion ends
      (`continuous_batching.sample`); the draws are the same.
    mesh: the run's devices as another mesh, on which an iteration's weights are placed
      anew to sample. Over `fsdp` they are gathered for every token; over `tensor` they
      stay where they are, and activations are summed: `MeshShape(tensor=8)` for a large
      model on many devices. None: the run's mesh.
  """

  completions: int = 4
  max_completion_tokens: int = 64
  temperature: float = 1.0
  top_k: int | None = None
  top_p: float | None = None
  column0_source: Literal["sample", "greedy", "reference"] = "sample"
  exploration_temperature: float | None = None
  opponent: Opponent | None = None
  teacher_share: float = 0.0
  staleness: int = 0
  prompts_at_once: int | None = None
  slots: int | None = None
  weights_dtype: Literal["bfloat16", "float16"] | None = None
  mesh: MeshShape | None = None

  def __post_init__(self):
    checks.check_among(self, "column0_source", ("sample", "greedy", "reference"))
    if self.weights_dtype is not None:
      checks.check_among(self, "weights_dtype", ("bfloat16", "float16"))
    checks.check_positive(
      self, "completions", "max_completion_tokens", "top_k", "prompts_at_once", "slots"
    )
    if self.slots is not None and self.prompts_at_once is not None:
      raise ValueError(
        f"Sampling.slots is {self.slots} and prompts_at_once {self.prompts_at_once}; "
        "set one of them"
      )
    checks.check_not_negative(self, "staleness")
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

    if not 0 <= self.teacher_share < 1:
      raise ValueError(
        f"Sampling.teacher_share is {self.teacher_share}; allowed: 0 <= share < 1"
      )
    plain = self.column0_source == "sample" and (
      (self.exploration_temperature, self.top_k, self.top_p) == (None, None, None)
    )
    if self.teacher_share and not plain:
      raise ValueError(
        f"Sampling.teacher_share is {self.teacher_share}, with column0_source "
        f"{self.column0_source!r}, exploration_temperature "
        f"{self.exploration_temperature}, top_k {self.top_k} and top_p {self.top_p}; "
        'set column0_source to "sample" and the others to None: every completion is '
        "of the whole mixture, which importance weights are computed for"
      )

  @property
  def own(self) -> slice:
    """The columns of K that are the policy's, drawn as `temperature` says."""
    explorers = 0 if self.exploration_temperature is None else self.completions // 2
    return slice(int(self.column0_source != "sample"), self.completions - explorers)


@dataclasses.dataclass(frozen=True)
class SamplerCorrection:
  """Corrects gradients for a sampler that is not the policy of the trainer.

  Truncation, a sampler's own temperature or precision make completions off-policy. The
  correction weighs each token's gradient by min(pi_old / pi_sampler, cap), and leaves
  out tokens whose ratio is outside of bounds; pi_old is then scored by the trainer. See
  `ops.sampler_correction.corrected`, which names the sources.

  Attributes:
    cap: of the weight; > 0, `math.inf` for none; None: no weights.
    bounds: lowest and highest ratio of a token that carries loss; None: any.
    level: "token", each token's ratio; "sequence", that of the whole completion.
  """

  cap: float | None = 2.0
  bounds: tuple[float, float] | None = None
  level: Literal["token", "sequence"] = "token"

  def __post_init__(self):
    checks.check_among(self, "level", ("token", "sequence"))
    try:
      sampler_correction.check(self.cap, self.bounds)
    except ValueError as error:
      raise ValueError(f"SamplerCorrection.{error}") from error


@dataclasses.dataclass(frozen=True)
class Feedback:
  """Feedback on completions: reward model or judge, and the rules for its rewards.

  Attributes:
    source: makes a `feedback.protocol.Scorer`, or a `Preference` for win rates.
    kind: "scores", a reward each; "win_rates", the mean probability to beat
      `Sampling.opponent`, or where there is none the prompt's completions. Held-out win
      rates are against the reference that the run started with.
    abstained: on a NaN, "stop" the run and show the completion, or "drop" the
      completion and count it.
    missing_eos: penalty or reward of a completion that was cut at
      `Sampling.max_completion_tokens`, by `missing_eos_rule`; None: its reward is
      unchanged.
    missing_eos_rule: "subtract" (TRL; `missing_eos` >= 0) or "replace" (Ziegler et al.
      2019 with -1).
    overlong_buffer: DAPO's soft overlong punishment (`objectives.overlong_penalty`;
      Yu et al. 2025, arXiv:2503.14476): over the last so many tokens before
      `Sampling.max_completion_tokens` the reward falls by up to `overlong_weight`;
      None: off. Paper: a fifth of the limit.
    overlong_weight: the penalty at the limit, in units of the reward. Paper: 1.
    overlong_filtering: DAPO's overlong filtering: a completion of the policy that was
      cut at the limit carries no loss. It leaves its group as an abstention does, so
      that its reward is not in the group's baseline either; the paper masks its loss
      and leaves that open, TRL keeps it in the baseline.
    include_self: whether, without an opponent, the mean over the K completions of the
      prompt includes the completion itself, a tie (1/2): SPPO's estimate, biased
      towards 1/2 by a share 1 / K. False: the mean over the K - 1 others, unbiased
      (`ipo_md`, Nash-MD's self-play).
  """

  source: Configured
  kind: Literal["scores", "win_rates"] = "scores"
  abstained: Literal["stop", "drop"] = "stop"
  missing_eos: float | None = None
  missing_eos_rule: Literal["subtract", "replace"] = "subtract"
  include_self: bool = True
  overlong_buffer: int | None = None
  overlong_weight: float = 1.0
  overlong_filtering: bool = False

  def __post_init__(self):
    checks.check_among(self, "kind", ("scores", "win_rates"))
    checks.check_among(self, "abstained", ("stop", "drop"))
    checks.check_among(self, "missing_eos_rule", ("subtract", "replace"))
    checks.check_positive(self, "overlong_buffer")
    if not 0 < self.overlong_weight < math.inf:
      raise ValueError(
        f"Feedback.overlong_weight is {self.overlong_weight}; allowed: a finite number "
        "> 0, and overlong_buffer=None for no penalty"
      )
    if self.missing_eos is None:
      return
    if not math.isfinite(self.missing_eos):
      raise ValueError(
        f"Feedback.missing_eos is {self.missing_eos}; allowed: a finite number, or "
        "None to leave the rewards of cut completions as they are"
      )
    if self.missing_eos < 0 and self.missing_eos_rule == "subtract":
      raise ValueError(
        f"Feedback.missing_eos is {self.missing_eos}, which is subtracted: cut "
        "completions would gain reward; give a number >= 0, or set "
        'Feedback.missing_eos_rule="replace" to make it their reward'
      )
