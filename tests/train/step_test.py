"""One step for every objective: exact accumulation, any split of devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xpo_jax import objectives, scored
from xpo_jax.config import optim
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.models import heads, lora, transformer
from xpo_jax.models.config import Experts
from xpo_jax.models.lora import Adapter
from xpo_jax.objectives import mixture
from xpo_jax.ops import experts
from xpo_jax.sharding import mesh as meshes
from xpo_jax.sharding import place
from xpo_jax.train import state, step
from xpo_jax.types import Layout, nothing_shared

KEY = jax.random.key(5)
LIVE = {"policy", "policy.value", "policy.reward", "ref"}  # what the tiny run can score
COLUMNS = {
  Layout.PAIR: set(),
  Layout.RATED: {"desirable_BK", "reward_BK"},
  Layout.RATED_MISMATCHED: {"desirable_BK", "reward_BK"},
  Layout.RANKED: {"reward_BK"},
}


def _representatives() -> dict[Layout, list[str]]:
  """One objective of every kind the trainer can tell apart, by layout.

  It sees the layout, the statistics, the columns, and whether rows share something or
  a state is kept; the maths are the conformance suite's.
  """
  groups, seen = {}, set()
  for name in objectives.NAMES:
    o = objectives.build(name)
    # A demonstration is column 0 of a pair.
    layout = Layout.PAIR if o.layout is Layout.DEMO else o.layout
    roles = {role for stat in o.stats for role in stat.roles}
    if layout not in COLUMNS or not roles <= LIVE:
      continue  # rollouts and second references: not of one offline run
    if not o.columns <= COLUMNS[layout]:
      continue
    kind = (
      o.layout,
      o.stats,
      o.columns,
      o.prepare is nothing_shared,
      bool(jax.tree.leaves(o.init())),
    )
    if kind not in seen:
      seen.add(kind)
      groups.setdefault(layout, []).append(name)
  return groups


# A weight per objective is traced, so objectives of one layout share one program.
GROUPS = _representatives()


@functools.cache
def _program(tiny, layout: Layout, microbatches: int, devices: int):
  """`one-hot weights -> (gradients, metrics)` of the objectives of a layout."""
  parts = [objectives.get(name)() for name in GROUPS[layout]]
  batch = tiny.batches(layout, microbatches)[0]
  whole = mixture((1.0,) * len(parts), parts)
  head = heads.init_reward_head(KEY, tiny.model.config.width)
  params = state.with_heads(whole, tiny.policy, head)
  frozen, mesh = {"ref": tiny.ref}, None
  if devices > 1:
    mesh = meshes.make_mesh(2, 2, 2)
    put = functools.partial(place.place_params, mesh)
    params = put(params, state.axes(tiny.model, params))
    frozen = {"ref": put(tiny.ref, state.axes(tiny.model, tiny.ref))}
    batch = place.place_batch(mesh, batch)
  models = {"policy": tiny.model, "ref": tiny.model}

  @jax.jit
  def run(weights, params, frozen, batch):
    objective = mixture(weights, parts)
    score_one = step.scorer(objective, models, frozen, mesh, None)
    grads, means, _ = step.gradient(
      objective, score_one, params, batch, objective.init(), KEY
    )
    return grads, step.divide(means)

  return lambda weights: run(weights, params, frozen, batch)


def _results(tiny, name: str, microbatches: int = 1, devices: int = 1):
  (layout,) = [k for k, names in GROUPS.items() if name in names]
  weights = tuple(jnp.float32(name == other) for other in GROUPS[layout])
  return jax.device_get(_program(tiny, layout, microbatches, devices)(weights))


def _largest(tree) -> float:
  return max(float(np.abs(x).max()) for x in jax.tree.leaves(tree))


def _assert_equal(got, want, tolerance: float):
  (grads, metrics), (wanted, numbers) = got, want
  assert _largest(wanted) > 1e-4  # an all-zero gradient would prove nothing
  gap = jax.tree.map(lambda a, b: a - b, grads, wanted)
  assert _largest(gap) < tolerance * max(_largest(wanted), 0.1)
  for name, value in numbers.items():
    if name != "padding":
      np.testing.assert_allclose(metrics[name], value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["kto", "beta_dpo", "sft"])
def test_microbatches_change_neither_gradient_nor_metrics(tiny, name):
  _assert_equal(_results(tiny, name, 4), _results(tiny, name), 1e-6)


@pytest.mark.parametrize("name", [n for names in GROUPS.values() for n in names])
def test_eight_devices_equal_one(tiny, name):
  _assert_equal(_results(tiny, name, devices=8), _results(tiny, name), 1e-5)


def test_router_loss_is_that_of_the_whole_batch(tiny):
  # A product of means over tokens: not a sum over microbatches, unless the choices of
  # the whole batch are known first.
  config = dataclasses.replace(tiny.model.config, experts=Experts(4, 2))
  model = transformer.model(config)
  params = {"lm": jax.tree.map(lambda x: 3 * x, model.init(KEY))}
  sft = objectives.sft()

  def loss(record, aux):
    assert record.routing is None  # of rows, where objectives index by B
    return sft.loss(record, aux)

  objective = sft._replace(loss=loss)
  score_one = step.scorer(objective, {"policy": model}, {}, None, None)

  @functools.partial(jax.jit, static_argnums=2)
  def run(params, batch, coefficient):
    grads, means, _ = step.gradient(
      objective, score_one, params, batch, objective.init(), KEY, coefficient
    )
    return grads, step.divide(means)

  whole, parts = (tiny.batches(Layout.DEMO, count)[0] for count in (1, 4))
  rows = transformer.Rows(
    whole.tokens_MRL[0],
    whole.segment_MRL[0],
    whole.branch_MRL[0],
    whole.position_MRL[0],
  )

  @jax.value_and_grad
  def balance(params):
    _, routing = transformer.states(model, params["lm"], rows)
    return experts.load_balance(routing, routing).value

  value, slope = jax.jit(balance)(params)
  got = run(params, whole, 0.5)
  _assert_equal(run(params, parts, 0.5), got, 1e-5)
  plain, numbers = run(params, whole, 0.0)
  assert "loss/router" not in numbers
  for metrics in (got[1], numbers):
    np.testing.assert_allclose(metrics["router_balance"], value, rtol=1e-5)
  np.testing.assert_allclose(got[1]["loss/router"], 0.5 * value, rtol=1e-5)
  total = numbers["loss"] + 0.5 * value
  np.testing.assert_allclose(got[1]["loss"], total, rtol=1e-5)
  expected = jax.tree.map(lambda g, s: g + 0.5 * s, plain, slope)
  assert _largest(jax.tree.map(lambda a, b: a - b, got[0], expected)) < 1e-5
  assert _largest(slope) > 1e-2


def test_microbatches_of_unequal_weight_are_what_is_tested(tiny):
  weight_MB = tiny.batches(Layout.PAIR, 4)[0].weight_MB
  assert len(set(weight_MB.sum(1))) > 1


def test_parameters_in_bfloat16_move_as_those_in_float32_in_the_mean(tiny):
  # A step is a small part of bfloat16's resolution: to the nearest, few would move.
  optimizer = optim.Optimizer(learning_rate=1e-4, schedule="constant", clip=None)
  models = {"policy": tiny.model, "ref": tiny.model}
  batch, axes = tiny.batches(Layout.PAIR)[0], tiny.model.logical_axes()
  chain = optim.transform(optimizer, axes, "bfloat16")
  update = step.make_step(objectives.dpo, models, optimizer, 9, moments="bfloat16")
  dtypes = state.lm_dtypes("bfloat16", axes)
  start = state.create(
    tiny.policy, chain, (), jax.random.key(0), ema=True, lm_dtypes=dtypes
  )
  before = jax.device_get(start.params)
  dtypes = jax.tree.map(lambda x: x.dtype, start)
  after, _ = update(start, {"ref": tiny.ref}, batch, step.hparams(optimizer))
  assert jax.tree.map(lambda x: x.dtype, after) == dtypes
  narrow = total = 0
  for x, y in zip(*map(jax.tree.leaves, (before, after.params)), strict=True):
    moved = np.asarray(y, np.float32) - np.asarray(x, np.float32)
    if x.dtype == np.float32:  # a vector
      assert moved.any()
      continue
    narrow += 1
    size = np.abs(np.asarray(x, np.float32))
    unit = 2.0 ** (np.floor(np.log2(np.maximum(size, 1e-6))) - 7)
    assert (np.abs(moved) <= unit + 1.01e-4).all()
    # Adam's first step is at most the rate: so large a share of units moves at most.
    expected = np.minimum(1e-4 / unit, 1).sum()
    total += np.count_nonzero(moved)
    assert np.count_nonzero(moved) < expected + 6 * expected**0.5
  assert narrow >= 8 and total > 20


def test_sweep_over_hparams_rate_and_seed_compiles_once(tiny):
  traces = []

  def build(**hparams):
    traces.append(hparams)
    return objectives.dpo(**hparams)

  optimizer = optim.Optimizer(learning_rate=1e-3, clip=None, ema=0.5)
  models = {"policy": tiny.model, "ref": tiny.model}
  batches = tiny.batches(Layout.PAIR)
  update = step.make_step(build, models, optimizer, len(batches))
  chain = optim.transform(optimizer, tiny.model.logical_axes())
  frozen = {"ref": tiny.ref}

  def first(beta, rate, seed):
    start = state.create(tiny.policy, chain, (), jax.random.key(seed), ema=True)
    hparams = step.hparams(optimizer, beta=beta)
    hparams["learning_rate"] = jnp.float32(rate)
    return update(start, frozen, batches[seed], hparams)

  slow, measured = first(0.1, 1e-3, 0)
  fast, _ = first(0.1, 2e-3, 0)
  _, strong = first(0.5, 1e-3, 0)
  _, other = first(0.1, 1e-3, 1)
  assert len(traces) == 1
  # The margin is beta times a log-ratio of the same two policies.
  np.testing.assert_allclose(
    strong["reward_margin"], 5 * measured["reward_margin"], rtol=1e-5
  )
  assert other["loss"] != measured["loss"]
  # Adam's first step is proportional to the rate; the average moves half of it.
  for before, once, twice, mean in zip(
    *map(jax.tree.leaves, (tiny.policy, slow.params, fast.params, slow.ema)),
    strict=True,
  ):
    np.testing.assert_allclose(twice - before, 2 * (once - before), atol=1e-6)
    np.testing.assert_allclose(mean, (before + once) / 2, atol=1e-7)


def test_hparams_of_a_build_are_the_defaults_where_not_swept():
  assert step.hparams(optim.Optimizer())["objective"] == {}


def _record(log_ratio: float):
  mask_BKT = np.array([[[1, 1, 0], [1, 0, 0]], [[1, 1, 1], [1, 1, 0]]], np.float32)
  return scored.from_token_logps(
    np.full(mask_BKT.shape, -1.0, np.float32),
    mask_BKT,
    np.full(mask_BKT.shape, -1.0 - log_ratio, np.float32),
    weight_B=np.array([1, 0], np.float32),
    extra={"entropy_BKT": np.full(mask_BKT.shape, 2.0, np.float32)},
  )


def test_observed_metrics_leave_filler_out_and_keep_columns_apart():
  seen = step.divide(step.observe(Layout.PAIR, _record(0.0)))
  wanted = {"length_chosen": 2, "length_rejected": 1, "entropy": 2, "kl_k3": 0}
  wanted |= {"logp_chosen": -2, "logp_rejected": -1, "loss": 0}
  assert {name: float(value) for name, value in seen.items()} == wanted


def test_kl_estimate_is_k3_of_the_log_ratio():
  seen = step.divide(step.observe(Layout.PAIR, _record(0.3)))
  np.testing.assert_allclose(seen["kl_k3"], np.exp(-0.3) - 1 + 0.3, rtol=1e-5)


def test_metrics_of_other_layouts_average_over_completions():
  seen = step.divide(step.observe(Layout.RANKED, _record(0.0)))
  assert float(seen["length"]) == 1.5


def test_needs_come_in_one_order_and_add_the_entropy_to_logits_only():
  fields = [stat.field for stat in step.stats(objectives.dpo())]
  assert fields == ["entropy_BKT", "logp_BKT", "ref_logp_BKT"]
  assert [s.field for s in step.stats(objectives.bradley_terry())] == [
    "reward_head_BKT"
  ]


@functools.cache
def _updated(tiny, adapter, devices=1):
  """One step that reads the reference live: parameters before and after, metrics."""
  use = ObjectiveConfig("tdpo2")
  objective = use.build()
  batch = tiny.batches(Layout.PAIR)[0]
  trained = lora.trainable_model(tiny.model, adapter)
  params = {"lm": trained.init(jax.random.key(0))}
  noise = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: x + 0.1 * noise.normal(size=x.shape).astype(np.float32), params
  )
  optimizer = optim.Optimizer(learning_rate=1e-2, schedule="constant", clip=None)
  chain = optim.transform(optimizer)
  made = (params, chain, objective.init(), jax.random.key(1))
  base, mesh, shardings = tiny.ref, None, None
  first = state.create(*made)
  if devices > 1:
    mesh = meshes.make_mesh(2, 2, 2)
    first, shardings = state.create_on(mesh, trained, *made)
    axes = {"lm": tiny.model.logical_axes()}
    base = place.place_params(mesh, base, axes)
    batch = place.place_batch(mesh, batch)
  run = step.make_step(
    use.build,
    {"policy": tiny.model, "ref": tiny.model},
    optimizer,
    10,
    mesh=mesh,
    shardings=shardings,
    adapter=adapter,
  )
  frozen = {state.BASE: base, "ref": base}
  after, measured = run(first, frozen, batch, step.hparams(optimizer))
  return params, jax.device_get(after.params), jax.device_get(measured)


WHOLE = Adapter(rank=2, alpha=4.0, dora=True)


def test_eight_devices_train_adapters_as_one(tiny):
  _, one, measured = _updated(tiny, WHOLE)
  _, eight, sharded = _updated(tiny, WHOLE, devices=8)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), one, eight)
  for name in ("loss", "grad_norm", "kl_k3"):
    np.testing.assert_allclose(measured[name], sharded[name], rtol=1e-4)


def test_l1_of_the_change_is_a_term_of_the_loss_and_shrinks_it(tiny):
  sparse = dataclasses.replace(WHOLE, l1=100.0)
  before, plain, without = _updated(tiny, WHOLE)
  _, after, measured = _updated(tiny, sparse)
  base = tiny.ref["lm"]
  change = lora.delta(base, before["lm"], WHOLE)
  by_hand = 100 * sum(np.abs(x).sum() for x in jax.tree.leaves(change))
  assert measured["loss/l1"] == pytest.approx(by_hand, rel=1e-5)
  assert measured["loss"] == pytest.approx(without["loss"] + by_hand, rel=1e-6)
  sizes = [float(lora.l1(base, p["lm"], WHOLE)) for p in (before, plain, after)]
  assert sizes[2] < 0.95 * min(sizes[:2])
