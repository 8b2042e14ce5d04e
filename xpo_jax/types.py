"""Types shared by all of xpo_jax: records, statistics, objectives.

Shape suffixes (one key for the whole project): `B` prompts, `K` completions per
prompt, `T` completion tokens, `R` packed rows, `L` row length, `V` vocabulary,
`D` model width, `H` heads, `N` layers, `E` experts, `C` tokens in a chunk, `M`
microbatches.
"""

import enum
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

Array = jax.Array
State = Any  # a pytree of arrays: what a method carries between steps
Params = Any  # a pytree of arrays: the parameters of a model


class Layout(enum.Enum):
  """Meaning of the K completions of a prompt."""

  DEMO = "demo"  # K=1: a demonstration
  PAIR = "pair"  # K=2: column 0 chosen, column 1 rejected
  RATED = "rated"  # K=1: a completion with a reward or a thumbs-up bit
  RATED_MISMATCHED = "rated_mismatched"  # K=2: column 1 belongs to another prompt
  RANKED = "ranked"  # K=n: completions with rewards, padded columns not present
  SAMPLED = "sampled"  # K=n: rollouts of the current (or the old) policy

  @property
  def completions(self) -> int | None:
    """K of this layout, or None where any K is allowed."""
    fixed = {"demo": 1, "pair": 2, "rated": 1, "rated_mismatched": 2}
    return fixed.get(self.value)


class Reduced(NamedTuple):
  """How a statistic follows from reductions of logits over the vocabulary.

  Attributes:
    reductions: of `ops.head.reductions`.
    fn: maps their values, `[C]` each (of `Top` a pair of `[C, k]`), and then target_C
      to the statistic.
    detached: whether it has no gradient.
  """

  reductions: tuple[Hashable, ...]
  fn: Callable[..., Array]
  detached: bool = False


class TokenStat(NamedTuple):
  """A statistic per completion token, computed from model outputs at scoring time.

  Attributes:
    field: the field of `Scored` it fills, or, if there is none of that name, its key in
      `Scored.extra`.
    roles: outputs it reads, named after the decoder: "policy" (its logits, where the
      token is predicted), "policy.value" (its scalar head at that position, which has
      not read the token), "policy.reward" (its scalar head at the token itself, which
      has); the same of "critic", a separate decoder, or of a frozen set of the run
      such as "ref".
    fn: maps `({role: logits_CV, or value_C for a scalar head}, target_C)` to
      `[C, ...]`. A pure module-level function, so that equal statistics are the same
      object and nothing is compiled twice.
    reduced: the same without an array of logits, which large vocabularies need; None:
      `fn` alone, in chunks of tokens.
  """

  field: str
  roles: tuple[str, ...]
  fn: Callable[[Mapping[str, Array], Array], Array]
  reduced: Reduced | None = None

  @property
  def decoders(self) -> frozenset[str]:
    """The decoders that the roles belong to: "policy", "critic", "ref"."""
    return frozenset(role.split(".")[0] for role in self.roles)

  @property
  def scalar_heads(self) -> frozenset[str]:
    """The decoders whose scalar head it reads, at either position."""
    return frozenset(role.split(".")[0] for role in self.roles if "." in role)


@struct.dataclass
class Mean:
  """A mean before its division: summed over shards and microbatches, divided once.

  Attributes:
    total: scalar, the weighted sum.
    weight: scalar, the sum of weights; depends on data only, never on the policy.
  """

  total: Array
  weight: Array

  @property
  def value(self) -> Array:
    """`total / weight`; 0 where the weight is 0."""
    return self.total / jnp.where(self.weight == 0, 1, self.weight)

  def __add__(self, other: "Mean") -> "Mean":
    return Mean(self.total + other.total, self.weight + other.weight)


@struct.dataclass
class Routing:
  """How the router of a mixture of experts chose, summed over a row's real tokens and
  over layers; `E` are the experts.

  Attributes:
    chosen_RE: number of choices of each expert.
    prob_RE: sum of each expert's probability, which alone has a gradient.
    tokens_R: number of tokens, counted once in each layer.
  """

  chosen_RE: Array
  prob_RE: Array
  tokens_R: Array


@struct.dataclass
class Scored:
  """Input of an objective: arrays laid out `B` x `K` x `T`.

  Fields that were not requested are None. Log-probabilities are in nats. Build one with
  the functions of `xpo_jax.scored`; half precision is promoted to float32 there.

  Attributes:
    mask_BKT: 1 on completion tokens, EOS included; None in a record of summed
      log-probs (T=1), which an objective that reads tokens refuses.
    length_BK: tokens of each completion.
    present_BK: 0 on a padded column of a ragged list.
    weight_B: 0 on filler rows.
    row_B: global row number, folded into the PRNG key of random draws.
    logp_BKT: log pi(y_t | x, y_<t) of the policy, the only field with a gradient
      besides `value_BKT`, `reward_head_BKT` and statistics that read the policy.
    ref_logp_BKT: the same under the frozen reference.
    old_logp_BKT: the same under the policy that generated the data.
    sampler_logp_BKT: the same under the distribution that the data were drawn from: the
      generating policy after truncation, at the sampler's own temperature and
      precision (`ops.sampler_correction`).
    value_BKT: scalar head at the position that predicts each token: V of the state
      before it.
    old_value_BKT: the same, recorded at sampling time.
    reward_head_BKT: scalar head at each token, which it has read: at the last token, a
      reward model's output on the whole completion.
    ref_kl_BKT: KL(ref || policy) over the whole vocabulary at each position.
    reward_BK: reward of each completion.
    reward_BKT: reward of each token.
    desirable_BK: 1 thumbs up, 0 thumbs down.
    margin_BK: margin of a pair in column 0, in units of the reward; >= 0.
    prompt_weight_BK: weight of the prompt of each completion (`bco_udm`).
    extra: further statistics, by name.
    routing: of the policy, where it is a mixture of experts, by rows; the step takes it
      out before an objective reads the record.
  """

  mask_BKT: Array | None
  length_BK: Array
  present_BK: Array
  weight_B: Array
  row_B: Array
  logp_BKT: Array | None = None
  ref_logp_BKT: Array | None = None
  old_logp_BKT: Array | None = None
  sampler_logp_BKT: Array | None = None
  value_BKT: Array | None = None
  old_value_BKT: Array | None = None
  reward_head_BKT: Array | None = None
  ref_kl_BKT: Array | None = None
  reward_BK: Array | None = None
  reward_BKT: Array | None = None
  desirable_BK: Array | None = None
  margin_BK: Array | None = None
  prompt_weight_BK: Array | None = None
  extra: Mapping[str, Array] = struct.field(default_factory=dict)
  routing: Routing | None = None

  def mean_B(self, x_B: Array) -> Mean:
    """Mean over prompts; filler rows are excluded, whatever they hold."""
    real_B = jnp.where(self.weight_B == 0, 0, x_B)
    return Mean((real_B * self.weight_B).sum(), self.weight_B.sum())

  def mean_BK(self, x_BK: Array) -> Mean:
    """Mean over completions; filler rows and absent columns are excluded."""
    weight_BK = self.present_BK * self.weight_B[:, None]
    real_BK = jnp.where(weight_BK == 0, 0, x_BK)
    return Mean((real_BK * weight_BK).sum(), weight_BK.sum())


class Aux(NamedTuple):
  """Output of `prepare`, passed to `loss`; no gradient flows into it.

  Attributes:
    rows: pytree of arrays with leading axis B, sliced with the rows.
    shared: pytree shared by all rows (KTO's z0, beta-DPO's beta).
  """

  rows: Any = ()
  shared: Any = ()


@struct.dataclass
class Loss:
  """Output of an objective.

  Attributes:
    terms: the loss is the sum of these means, each divided by its own weight.
    metrics: reported, not minimised.
    per_example_B: the loss of each row where every term is a mean over rows, else
      None.
  """

  terms: dict[str, Mean]
  metrics: dict[str, Mean]
  per_example_B: Array | None = None


def no_state() -> State:
  """`Objective.init` of a stateless method."""
  return ()


def nothing_shared(scored: Scored, state: State, key: Array) -> tuple[Aux, State]:
  """`Objective.prepare` of a method without shared quantities or random draws."""
  del scored, key
  return Aux(), state


class Objective(NamedTuple):
  """A preference-optimisation method, built by a factory named after its paper.

  Attributes:
    name: the factory's name.
    hparams: the factory's arguments.
    layout: required meaning of the K completions.
    stats: the statistics that `loss` and `prepare` read; no others are computed.
    columns: data columns it requires ("reward_BK", "desirable_BK").
    loss: `(scored, aux) -> Loss`, pure, per row; no key, no state.
    prepare: `(scored, state, key) -> (Aux, state)`: reads the whole batch without
      gradient and returns shared quantities and random draws. `nothing_shared` costs
      nothing.
    init: returns the initial state, a pytree of arrays.
    reads_tokens: whether it reads single tokens; it then refuses a record of summed
      log-probs.
    column0_source: required source of column 0 of sampled completions: "sample", as the
      others; "greedy", greedy decoding of the policy; "reference", a sample of the
      reference.
    on_policy: whether its gradient is meant for samples of the current policy alone,
      because no importance ratio weighs them. A run then refuses samples of another
      (`Rollouts.allow_off_policy`).
    reward_kind: required content of `reward_BK`: "any" numbers; "win_rates",
      probabilities of beating an opponent or a group; "pairwise", the probabilities
      that each of two completions beats the other, which add up to 1.
    teacher_share: required share of a teacher in the distribution that completions are
      sampled from, token by token; 0: the policy alone.
  """

  name: str
  hparams: Mapping[str, Any]
  layout: Layout
  stats: frozenset[TokenStat]
  loss: Callable[[Scored, Aux], Loss]
  columns: frozenset[str] = frozenset()
  prepare: Callable[[Scored, State, Array], tuple[Aux, State]] = nothing_shared
  init: Callable[[], State] = no_state
  reads_tokens: bool = False
  column0_source: Literal["sample", "greedy", "reference"] = "sample"
  on_policy: bool = False
  reward_kind: Literal["any", "win_rates", "pairwise"] = "any"
  teacher_share: float | Array = 0.0


class AuxLoss(NamedTuple):
  """One of several objectives that share an update but not a batch.

  PPO-ptx is PPO on rollouts plus SFT on pretraining text; NPO with a retain set is NPO
  on the forget set plus SFT on the retain set.

  Attributes:
    weight: coefficient of its loss.
    objective: evaluated on the batch named by `data`.
    data: name of its batch.
  """

  weight: float | Array
  objective: Objective
  data: str


class EvaluatedLoss(NamedTuple):
  """Result of `scored.evaluate`.

  Attributes:
    loss: scalar, the sum of the divided terms.
    per_example_B: see `Loss`.
    terms: each divided term.
    metrics: each divided metric.
    state: the method's state after this batch.
  """

  loss: Array
  per_example_B: Array | None
  terms: Mapping[str, Array]
  metrics: Mapping[str, Array]
  state: State
