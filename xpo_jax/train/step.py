"""Makes the training step: scores, prepares, computes loss and gradient, updates.

Auxiliary losses (`types.AuxLoss`: PPO-ptx, a retain set) have further gradients, each
exact on its own batch, added before the optimiser.

Gradients are accumulated over microbatches without approximation. A loss is a sum of
means, each the ratio of a total and a weight, and weights depend on data alone. They
are summed over the whole batch first; then the gradient of `sum_m total_m / weight`
adds up over microbatches m, whatever their sizes.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from xpo_jax import scored
from xpo_jax.config import optim
from xpo_jax.data.pack import Batch
from xpo_jax.models import lora
from xpo_jax.models.lora import Adapter
from xpo_jax.models.score import score
from xpo_jax.models.transformer import Model
from xpo_jax.ops import experts, masked, policy_loss, token_stats
from xpo_jax.ops.tpu import chip
from xpo_jax.sharding import mesh as meshes
from xpo_jax.train import state as states
from xpo_jax.train.state import TrainState
from xpo_jax.types import (
  Array,
  Aux,
  AuxLoss,
  Layout,
  Loss,
  Mean,
  Objective,
  Params,
  Routing,
  Scored,
  State,
  TokenStat,
)

Step = Callable[..., tuple[TrainState, dict[str, Array]]]

ABSENT = float("-inf")  # value of a metric without a row in the batch
_TERM = "loss/"
# Folded into a step's key for stochastic rounding.
_MOMENTS, _PARAMS = np.uint32(0xFFFFFFFF), np.uint32(0xFFFFFFFE)
# Names of the columns of K in metrics; other layouts average over them.
_COLUMNS = {
  Layout.PAIR: ("chosen", "rejected"),
  Layout.RATED_MISMATCHED: ("completion", "mismatched"),
}


def make_step(
  build: Callable[..., Objective],
  models: Mapping[str, Model],
  optimizer: optim.Optimizer,
  steps: int,
  *,
  mesh: jax.sharding.Mesh | None = None,
  shardings: TrainState | None = None,
  adapter: Adapter | None = None,
  aux_losses: Sequence[AuxLoss] = (),
  moments: optim.Stored = "float32",
) -> Step:
  """Makes the jitted step `(state, frozen, batch, hyperparameters, aux_batches) ->
  (state, metrics)`. Within another jitted function, call `make_update`'s instead: JAX
  takes compiler options, which a step has on TPUs, of outermost functions alone.

  `frozen` maps each frozen role to `{"lm": params}` ({} where cached statistics stand
  in `batch.ref`). `hparams` is `{"objective": numeric hyperparameters,
  "learning_rate": peak}`, traced: a sweep over them, over the seed and over data of one
  shape compiles once. Keep their types from call to call (see `hparams`).
  `aux_batches` maps each auxiliary loss's `data` to its batch; it is omitted without
  auxiliary losses. The state is donated. Metrics are scalars on the device: fetch those
  of many steps at once, so that nothing blocks.

  Args:
    build: makes the objective from the hyperparameters that are traced:
      `ObjectiveConfig.build`, or `functools.partial(dpo, beta=0.1)`.
    models: role -> model; "policy", "ref" where an objective reads it in the step,
      "critic" where values have a decoder of their own.
    optimizer: see `optim.Optimizer`.
    steps: steps of the whole run, for the schedule.
    mesh: over which rows and parameters are sharded; None: one device.
    shardings: of the state on the mesh (`state.shardings`).
    adapter: trained adapter on the frozen role "base"; None: all weights are trained.
    aux_losses: further losses, each weighted and on its own batch; without state.
    moments: dtype of the optimiser's state in memory (`optim.Precision`).

  Returns:
    The step. Metrics: `loss`, `loss/<term>`, the objective's own by name, those of
    `observe`, `grad_norm` (before clipping), `learning_rate`; of an auxiliary loss the
    weighted `loss/<data>/<term>` and `<data>/<metric>`. A mixture of experts adds those
    of `with_router`; its `Model.router_loss` weighs the batch of the run, not those of
    auxiliary losses.

  Raises:
    ValueError: an auxiliary loss whose objective has a state.
  """
  update = make_update(
    build,
    models,
    optimizer,
    steps,
    mesh=mesh,
    adapter=adapter,
    aux_losses=aux_losses,
    moments=moments,
  )
  out = None if shardings is None else (shardings, None)
  options = chip.compiler_options(meshes.device_kind(mesh))
  return jax.jit(update, donate_argnums=0, out_shardings=out, compiler_options=options)


def make_update(
  build: Callable[..., Objective],
  models: Mapping[str, Model],
  optimizer: optim.Optimizer,
  steps: int,
  *,
  mesh: jax.sharding.Mesh | None = None,
  adapter: Adapter | None = None,
  aux_losses: Sequence[AuxLoss] = (),
  moments: optim.Stored = "float32",
) -> Step:
  """Makes the step as a function to be jitted; arguments and errors of `make_step`."""
  for aux_loss in aux_losses:
    if jax.tree.leaves(aux_loss.objective.init()):
      raise ValueError(
        f"aux_losses {aux_loss.data!r}: {aux_loss.objective.name} keeps a state from "
        "step to step; only the objective of the run may"
      )
  # A user's own module need not name axes that are not read.
  trained = lora.trainable_model(models["policy"], adapter)
  axes = trained.logical_axes() if optimizer.reads_axes else None
  chain = optim.transform(optimizer, axes, moments)

  def step(state, frozen, batch, hparams, aux_batches=None):
    objective = build(**hparams["objective"])
    key = jax.random.fold_in(state.key, state.step)
    score_one = scorer(objective, models, frozen, mesh, adapter)
    grads, means, method_state = gradient(
      objective,
      score_one,
      state.params,
      batch,
      state.method_state,
      key,
      models["policy"].router_loss,
    )
    for number, aux_loss in enumerate(aux_losses):
      score_aux = scorer(aux_loss.objective, models, frozen, mesh, adapter)
      own_key = jax.random.fold_in(key, number)
      aux_grads, aux_means = weighted(
        aux_loss, score_aux, state.params, aux_batches, own_key
      )
      grads = jax.tree.map(jnp.add, grads, aux_grads)
      means |= aux_means
    if adapter is not None and adapter.l1:
      base = frozen[states.BASE]["lm"]
      grads, means = _sparse(adapter, base, state.params, grads, means)
    grads = jax.tree.map(_wide, grads)
    extra = {} if moments == "float32" else {"key": jax.random.fold_in(key, _MOMENTS)}
    updates, opt_state = chain.update(grads, state.opt_state, state.params, **extra)
    share = optim.schedule(optimizer, steps, state.step)
    rate = hparams["learning_rate"] * share
    params = jax.tree.map(
      lambda p, u: _wide(p) - (rate * u).astype(_wide(p).dtype), state.params, updates
    )
    params = optim.rounded(jax.random.fold_in(key, _PARAMS), params, state.params)
    state = state.replace(
      step=state.step + 1,
      params=params,
      opt_state=opt_state,
      method_state=method_state,
      ema=optim.average(optimizer, state.ema, params),
    )
    return state, divide(means) | {
      "grad_norm": optax.global_norm(grads),
      "learning_rate": rate,
    }

  return step


def make_evaluation(
  build: Callable[..., Objective],
  models: Mapping[str, Model],
  *,
  mesh: jax.sharding.Mesh | None = None,
  adapter: Adapter | None = None,
) -> Callable[..., dict[str, Mean]]:
  """Makes the jitted `(params, frozen, method_state, batch, key, hyperparameters) ->
  means`.

  The metrics of a step before the division, so that they add over batches. The state of
  the objective is not updated.
  """

  def evaluate(params, frozen, method_state, batch, key, hparams):
    objective = build(**hparams["objective"])
    score_one = scorer(objective, models, frozen, mesh, adapter)
    scored_MB = jax.lax.map(functools.partial(score_one, params), batch)
    whole, routing = _without_routing(_merge(scored_MB))
    scored.check(objective, whole)
    aux, _ = objective.prepare(whole, method_state, key)
    loss = with_router(objective.loss(whole, aux), routing, routing)
    return observe(objective.layout, whole) | _named(loss) | _padding(batch)

  return jax.jit(evaluate)


def hparams(optimizer: optim.Optimizer, **objective: float) -> dict[str, Any]:
  """Makes the hyperparameters of a step as arrays of constant types, so that the step
  compiles once."""
  rate = jnp.float32(optimizer.learning_rate)
  traced = {name: jnp.float32(value) for name, value in objective.items()}
  return {"objective": traced, "learning_rate": rate}


def gradient(
  objective: Objective,
  score_one: Callable[[Params, Batch], Scored],
  params: Params,
  batch: Batch,
  method_state: State,
  key: Array,
  router_loss: float = 0.0,
) -> tuple[Params, dict[str, Mean], State]:
  """Computes the exact gradient of the objective on a whole batch.

  One forward and one backward pass; with several microbatches, an objective whose
  `prepare` reads the batch costs one more forward pass, without gradient, as does the
  load-balancing loss of a mixture of experts.

  Args:
    objective: the objective.
    score_one: `(params, microbatch) -> Scored`.
    params: the policy's parameters.
    batch: see `pack.Batch`.
    method_state: see `Objective.prepare`.
    key: the step's key.
    router_loss: see `with_router`.

  Returns:
    The gradient, all metrics as means over the whole batch, the new method state.
  """
  microbatches = batch.weight_MB.shape[0]
  if microbatches == 1:
    only = jax.tree.map(lambda x: x[0], batch)

    def whole_loss(params):
      record, routing = _without_routing(score_one(params, only))
      scored.check(objective, record)
      frozen = jax.lax.stop_gradient(record)
      aux, state = objective.prepare(frozen, method_state, key)
      loss = objective.loss(record, jax.lax.stop_gradient(aux))
      loss = with_router(loss, routing, routing, router_loss)
      means = observe(objective.layout, frozen) | _named(loss)
      return sum(term.value for term in loss.terms.values()), (means, state)

    grads, (means, state) = jax.grad(whole_loss, has_aux=True)(params)
    return grads, means | _padding(batch), state

  # Without gradient. The compiler removes unused computation from this pass: all of the
  # policy where `prepare` ignores the record, for weights depend on data alone.
  scored_MB = jax.lax.map(functools.partial(score_one, params), batch)
  whole, whole_routing = _without_routing(_merge(scored_MB))
  scored.check(objective, whole)
  aux, state = objective.prepare(whole, method_state, key)
  known = dict(batch.ref) | _frozen_statistics(objective, scored_MB)  # not twice
  batch = batch.replace(ref=known)
  loss = objective.loss(whole, aux)
  loss = with_router(loss, whole_routing, whole_routing, router_loss)
  weights = {n: term.weight for n, term in loss.terms.items()}
  rows = jax.tree.map(lambda x: x.reshape(microbatches, -1, *x.shape[1:]), aux.rows)

  def add(total, aux_loss):
    microbatch, rows = aux_loss

    def part_loss(params):
      record, routing = _without_routing(score_one(params, microbatch))
      loss = objective.loss(record, Aux(rows, aux.shared))
      # Not read from the other pass unless it is trained on, to save that.
      batch_routing = whole_routing if router_loss else routing
      loss = with_router(loss, routing, batch_routing, router_loss)
      means = observe(objective.layout, jax.lax.stop_gradient(record)) | _named(loss)
      terms = [Mean(term.total, weights[n]).value for n, term in loss.terms.items()]
      return sum(terms), means

    grads, means = jax.grad(part_loss, has_aux=True)(params)
    return jax.tree.map(jnp.add, total, grads), means

  zero = jax.tree.map(lambda x: jnp.zeros_like(_wide(x)), params)
  grads, means_M = jax.lax.scan(add, zero, (batch, rows))
  means = jax.tree.map(lambda x: x.sum(0), means_M)
  return grads, means | _padding(batch), state


def _wide(x: Array) -> Array:
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def weighted(
  aux_loss: AuxLoss,
  score_one: Callable[[Params, Batch], Scored],
  params: Params,
  batches: Mapping[str, Batch],
  key: Array,
) -> tuple[Params, dict[str, Mean]]:
  """Computes an auxiliary loss's weighted gradient on its batch, and its metrics."""
  grads, means, _ = gradient(
    aux_loss.objective,
    score_one,
    params,
    batches[aux_loss.data],
    aux_loss.objective.init(),
    key,
  )
  grads = jax.tree.map(lambda x: aux_loss.weight * x, grads)
  named = {}
  for name, mean in means.items():
    term = name.removeprefix(_TERM)
    if term == name:
      named[f"{aux_loss.data}/{name}"] = mean
    else:
      named[f"{_TERM}{aux_loss.data}/{term}"] = mean.replace(
        total=aux_loss.weight * mean.total
      )
  return grads, named


def _without_routing(record: Scored) -> tuple[Scored, Routing | None]:
  """Takes out the routing, which is by rows: objectives index all else by B and K."""
  return record.replace(routing=None), record.routing


def with_router(
  loss: Loss, part: Routing | None, whole: Routing | None, coefficient: float = 0.0
) -> Loss:
  """Adds the load-balancing loss of a mixture of experts; of other models, nothing.

  Args:
    loss: of the objective.
    part: routing of the examples of `loss`.
    whole: of the batch that their loss is a part of (`experts.load_balance`).
    coefficient: of the term `router`; 0: the metric alone.

  Returns:
    The loss with the metric `router_balance`, without the coefficient, and the term.
  """
  if part is None:
    return loss
  balance = experts.load_balance(part, whole)
  metrics = dict(loss.metrics) | {"router_balance": jax.lax.stop_gradient(balance)}
  if not coefficient:
    return loss.replace(metrics=metrics)
  term = balance.replace(total=coefficient * balance.total)
  return loss.replace(terms=dict(loss.terms) | {"router": term}, metrics=metrics)


def observe(layout: Layout, record: Scored) -> dict[str, Mean]:
  """Computes the metrics of a batch that every run reports.

  Per completion, by column where columns have a meaning (`logp_chosen`): `logp` the
  policy's summed log-prob in nats, `length` in tokens. Per completion token: `entropy`
  of the policy in nats; `kl_k3`, the estimate exp(-r) - 1 + r of KL(policy || ref) with
  r the log-ratio, on the batch's completions. The policy did not sample them, so it
  measures drift on the data and is not an unbiased KL. Where rollouts have the
  log-probs of the policy that sampled, also `ratio`, pi / pi_old, and `kl_old`, log
  pi_old - log pi: 1 and 0 in the first step on rollouts of the policy itself.
  """
  means = {"length": record.length_BK}
  if record.logp_BKT is not None:
    means["logp"] = masked.sum_T(record.logp_BKT, record.mask_BKT)
  names = _COLUMNS.get(layout)
  out = {}
  for name, x_BK in means.items():
    if names is None:
      out[name] = record.mean_BK(x_BK)
    else:
      out |= {f"{name}_{c}": record.mean_B(x_BK[:, k]) for k, c in enumerate(names)}
  weight_BKT = (
    record.mask_BKT * (record.present_BK * record.weight_B[:, None])[..., None]
  )
  tokens = weight_BKT.sum()
  if "entropy_BKT" in record.extra:
    out["entropy"] = Mean((record.extra["entropy_BKT"] * weight_BKT).sum(), tokens)
  if record.logp_BKT is not None and record.ref_logp_BKT is not None:
    log_ratio_BKT = record.logp_BKT - record.ref_logp_BKT
    k3_BKT = jnp.expm1(-log_ratio_BKT) + log_ratio_BKT
    out["kl_k3"] = Mean((k3_BKT * weight_BKT).sum(), tokens)
  if record.logp_BKT is not None and record.old_logp_BKT is not None:
    ratio_BKT = policy_loss.ratio(record.logp_BKT, record.old_logp_BKT)
    out["ratio"] = Mean((ratio_BKT * weight_BKT).sum(), tokens)
    gap_BKT = record.old_logp_BKT - record.logp_BKT
    out["kl_old"] = Mean((gap_BKT * weight_BKT).sum(), tokens)
  return out


def divide(means: Mapping[str, Mean]) -> dict[str, Array]:
  """Divides totals by weights; `loss` is the sum of the divided terms.

  A metric of which the batch has nothing, such as one of rejected completions where
  none is, is `ABSENT`; see `present`.
  """
  terms = [mean.value for name, mean in means.items() if name.startswith(_TERM)]
  return {"loss": sum(terms)} | {
    name: mean.value
    if name.startswith(_TERM)
    else jnp.where(mean.weight == 0, ABSENT, mean.value)
    for name, mean in means.items()
  }


def present(metrics: Mapping[str, Any]) -> dict[str, float]:
  """Metrics as numbers, without those that are `ABSENT`."""
  numbers = {name: float(value) for name, value in metrics.items()}
  own = ("loss", "grad_norm")  # which may diverge
  return {
    name: value
    for name, value in numbers.items()
    if value != ABSENT or name in own or name.startswith(_TERM)
  }


def stats(objective: Objective) -> tuple[TokenStat, ...]:
  """Selects the statistics that a step scores: the objective's, and the entropy where
  logits are computed anyway; in an order that is the same in every process."""
  stats = set(objective.stats)
  fields = {stat.field for stat in stats}
  if ENTROPY.field not in fields and any("policy" in stat.roles for stat in stats):
    stats.add(ENTROPY)
  return tuple(sorted(stats, key=lambda stat: stat.field))


# Reported, never trained on.
ENTROPY = token_stats.detached(token_stats.ENTROPY)


def scorer(objective, models, frozen, mesh, adapter=None):
  wanted = stats(objective)
  models = dict(models) | {"policy": lora.attached_model(models["policy"], adapter)}

  def score_one(params: Params, microbatch: Batch) -> Scored:
    roles = states.roles(params, frozen, adapter) | frozen
    return score(models, roles, wanted, microbatch, mesh=mesh)

  return score_one


def _named(loss: Loss) -> dict[str, Mean]:
  return {f"{_TERM}{n}": term for n, term in loss.terms.items()} | dict(loss.metrics)


def _sparse(
  adapter: Adapter,
  base: Params,
  params: Params,
  grads: Params,
  means: Mapping[str, Mean],
) -> tuple[Params, dict[str, Mean]]:
  """Adds the L1 norm of the adapters' changes to loss and gradient."""

  def penalty(lm: Params) -> Array:
    return adapter.l1 * lora.l1(base, lm, adapter)

  value, d_lm = jax.value_and_grad(penalty)(params["lm"])
  grads = grads | {"lm": jax.tree.map(jnp.add, grads["lm"], d_lm)}
  return grads, dict(means) | {f"{_TERM}l1": Mean(value, jnp.ones_like(value))}


def _padding(batch: Batch) -> dict[str, Mean]:
  """Fraction of the computed tokens that are padding."""
  empty = (batch.segment_MRL == 0).astype(jnp.float32)
  return {"padding": Mean(empty.sum(), jnp.float32(empty.size))}


def _frozen_statistics(objective: Objective, record: Scored) -> dict[str, Array]:
  """Statistics that do not read the policy, by field."""
  fields = vars(record) | dict(record.extra)
  stats = [stat for stat in objective.stats if "policy" not in stat.decoders]
  return {stat.field: fields[stat.field] for stat in stats}


def _merge(scored_MB: Scored) -> Scored:
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), scored_MB)
