"""Properties that every objective must have.

One program per objective computes the whole batch and the same batch in microbatches;
most properties are that program on another version of the batch.
"""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from xpo_jax import objectives, scored
from xpo_jax.ops import sampler_correction
from xpo_jax.testing import toy
from xpo_jax.types import Array, Aux, Loss, Mean, Objective, Scored, State

MIXTURE = "mixture of a coupled and a token-mean objective"
CORRECTED = "objective corrected for its sampler"
ENTROPY = "an objective with an entropy bonus"
BATCH_SCALED = "rewards scaled over the batch"
EVERY = [*objectives.NAMES, MIXTURE, CORRECTED, ENTROPY, BATCH_SCALED]
ROWS, FILLER, SLICES = 8, 5, 2
OPTIONAL = {"old_logp_BKT", "old_value_BKT", "ref_logp_BKT", "ref_kl_BKT", "reward_BK"}
OPTIONAL |= {"sampler_logp_BKT", "reward_BKT", "desirable_BK", "logp_BKT", "value_BKT"}
OPTIONAL |= {"reward_head_BKT", "margin_BK", "prompt_weight_BK"}
KEY = 7


@pytest.fixture(scope="module", params=EVERY)
def name(request):
  """An objective; its tests run in sequence and share compiled programs."""
  yield request.param
  for cached in (objective, batch, start, program, base):
    cached.cache_clear()


@functools.cache
def objective(name: str) -> Objective:
  if name == MIXTURE:
    parts = (objectives.beta_dpo(), objectives.sft())
    return objectives.mixture((1.0, 0.3), parts)
  if name == CORRECTED:
    grpo = objectives.grpo()
    return sampler_correction.corrected(grpo, cap=1.05, bounds=(0.9, 1.2))
  if name == ENTROPY:
    return objectives.entropy_bonus(objectives.grpo(), 0.1)
  if name == BATCH_SCALED:
    return objectives.grpo(scale_rewards="batch")
  return objectives.build(name)


@functools.cache
def batch(name: str) -> Scored:
  s = toy.scored_for(objective(name), B=ROWS)
  return s.replace(weight_B=s.weight_B.at[FILLER].set(0))


@functools.cache
def start(name: str) -> State:
  """A state that has seen a batch, so that it is not all zeros; () where there is
  none."""
  o = objective(name)
  if not jax.tree.leaves(o.init()):
    return o.init()
  seen = toy.scored_for(o, B=ROWS, seed=9)
  return scored.evaluate(o, seen, o.init(), jax.random.key(3)).state


def policy_fields(name: str) -> set[str]:
  """Fields with a gradient: log-probs, values, statistics that read the policy."""
  own = {s.field for s in objective(name).stats if any("policy" in r for r in s.roles)}
  return own | {"logp_BKT", "value_BKT", "reward_head_BKT"}


def get(s: Scored, fields: set[str]) -> dict[str, Array]:
  return {name: (vars(s) | dict(s.extra))[name] for name in sorted(fields)}


def put(s: Scored, fields: dict[str, Array | None]) -> Scored:
  own = {name: x for name, x in fields.items() if name in vars(s)}
  other = {name: x for name, x in fields.items() if name not in vars(s)}
  return s.replace(**own, extra={**s.extra, **other})


def value_of(means: dict[str, Mean]) -> Array:
  return sum(mean.value for mean in means.values())


def in_microbatches(o: Objective, s: Scored, aux: Aux) -> Loss:
  """As in training: a loss per slice, undivided means added."""
  size = ROWS // SLICES
  total = None
  for i in range(SLICES):
    cut = jax.tree.map(lambda x, i=i: x[i * size : (i + 1) * size], (s, aux.rows))
    out = o.loss(cut[0], Aux(cut[1], aux.shared))
    out = (dict(out.terms), dict(out.metrics))
    add = functools.partial(jax.tree.map, jnp.add)
    total = out if total is None else add(total, out)
  return Loss(*total)


@functools.cache
def program(name: str):
  """The whole batch and the same in microbatches: values and gradients."""
  o = objective(name)

  def run(s: Scored, state: State, seed: int) -> dict[str, Any]:
    key = jax.random.key(seed)
    given = get(s, policy_fields(name))

    def sliced(fields):
      r = put(s, fields)
      aux, _ = o.prepare(jax.lax.stop_gradient(r), state, key)
      out = in_microbatches(o, r, aux)
      return value_of(out.terms), out

    (micro, means), micro_grad = jax.value_and_grad(sliced, has_aux=True)(given)
    return whole(name, s, state, seed) | {
      "micro": micro,
      "micro_metrics": {name: mean.value for name, mean in means.metrics.items()},
      "micro_grad": micro_grad,
      "weights": jax.tree.map(
        lambda mean: mean.weight,
        (means.terms, means.metrics),
        is_leaf=lambda x: isinstance(x, Mean),
      ),
    }

  return jax.jit(run)


def whole(name: str, s: Scored, state: State, seed: int) -> dict[str, Any]:
  def loss(fields):
    out = scored.evaluate(objective(name), put(s, fields), state, jax.random.key(seed))
    return out.loss, out

  given = get(s, policy_fields(name))
  (_, out), grad = jax.value_and_grad(loss, has_aux=True)(given)
  return {"out": out._asdict(), "grad": grad}


@functools.cache
def base(name: str) -> dict[str, Any]:
  return jax.device_get(program(name)(batch(name), start(name), KEY))


def close(actual: Any, expected: Any, rtol: float = 3e-6) -> None:
  chex.assert_trees_all_close(actual, expected, rtol=rtol, atol=1e-6)


def poisoned(s: Scored) -> Scored:
  """Padding, and the whole filler row, filled with values that must not be read."""
  odd_BKT = np.arange(s.mask_BKT.size).reshape(s.mask_BKT.shape) % 2
  junk_BKT = jnp.where(odd_BKT, 1e4, -1e4)
  dead_BKT = (s.mask_BKT == 0) | (s.weight_B == 0)[:, None, None]

  def poison(x: Array | None) -> Array | None:
    if x is None or x.shape[:3] != dead_BKT.shape or x.dtype != jnp.float32:
      return x
    trailing = tuple(range(3, x.ndim))
    dead, junk = (jnp.expand_dims(y, trailing) for y in (dead_BKT, junk_BKT))
    return jnp.where(dead, junk, x)

  fields = {name: poison(vars(s)[name]) for name in OPTIONAL}
  return s.replace(**fields, extra={k: poison(x) for k, x in s.extra.items()})


def test_loss_metrics_and_gradient_are_finite(name):
  chex.assert_tree_all_finite(base(name))
  assert base(name)["out"]["loss"] != 0


def test_per_example_rows_make_up_the_loss(name):
  out = base(name)["out"]
  if out["per_example_B"] is None or name == "beta_dpo":  # which draws rows
    return
  mean = batch(name).mean_B(out["per_example_B"]).value
  close(mean, out["loss"])


def test_jit_equals_no_jit(name):
  out = scored.evaluate(objective(name), batch(name), start(name), jax.random.key(KEY))
  close(out._asdict(), base(name)["out"])


def test_poisoned_padding_changes_nothing(name):
  s = poisoned(batch(name))
  result = jax.device_get(program(name)(s, start(name), KEY))
  whole = result["out"] | {"per_example_B": None}
  close(whole, base(name)["out"] | {"per_example_B": None})
  close(result["grad"], base(name)["grad"])
  live_BKT = np.asarray(s.mask_BKT * s.weight_B[:, None, None])
  for field, grad in result["grad"].items():
    assert not np.asarray(grad)[live_BKT == 0].any(), f"gradient on padding of {field}"


def test_permuting_prompts_changes_nothing(name):
  order = np.random.default_rng(0).permutation(ROWS)
  s = jax.tree.map(lambda x: x[order], batch(name))
  result = jax.device_get(program(name)(s, start(name), KEY))
  expected = dict(base(name)["out"])
  if expected["per_example_B"] is not None:
    expected["per_example_B"] = expected["per_example_B"][order]
  close(result["out"], expected)
  close(result["grad"], jax.tree.map(lambda g: g[order], base(name)["grad"]))


def test_sharded_over_8_devices_equals_single(name):
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  rows = NamedSharding(mesh, PartitionSpec("data"))
  everywhere = NamedSharding(mesh, PartitionSpec())
  s = jax.device_put(batch(name), rows)
  state = jax.device_put(start(name), everywhere)
  run = jax.jit(functools.partial(whole, name))
  result = jax.device_get(run(s, state, KEY))
  close(result["out"], base(name)["out"])
  close(result["grad"], base(name)["grad"])


def test_microbatched_equals_whole(name):
  result = base(name)
  close(result["micro"], result["out"]["loss"])
  close(result["micro_metrics"], result["out"]["metrics"])
  close(result["micro_grad"], result["grad"])


def test_weights_of_means_do_not_depend_on_the_policy(name):
  other = toy.scored_for(objective(name), B=ROWS, seed=21)
  s = put(batch(name), get(other, policy_fields(name)))
  result = jax.device_get(program(name)(s, start(name), KEY))
  assert abs(result["out"]["loss"] - base(name)["out"]["loss"]) > 1e-4
  close(result["weights"], base(name)["weights"])


def test_nothing_beyond_stats_and_columns_is_read(name):
  o = objective(name)
  read = {stat.field for stat in o.stats} | o.columns
  s = batch(name)
  extra = {field: x for field, x in s.extra.items() if field in read}
  bare = s.replace(extra=extra, **dict.fromkeys(OPTIONAL - read))
  key = jax.random.key(KEY)
  jax.eval_shape(lambda s: scored.evaluate(o, s, start(name), key), bare)


def test_missing_stat_or_column_is_named(name):
  o = objective(name)
  for field in {stat.field for stat in o.stats} | o.columns:
    s = put(batch(name), {field: None})
    with pytest.raises(ValueError, match=rf"{o.name} .*{field}"):
      scored.evaluate(o, s, start(name), jax.random.key(KEY))


def test_state_keeps_tree_shapes_and_types(name):
  o, state = objective(name), start(name)
  chex.assert_trees_all_equal_shapes_and_dtypes(o.init(), state)
  after = program(name)(batch(name), state, KEY)["out"]["state"]
  chex.assert_trees_all_equal_shapes_and_dtypes(state, after)


def test_half_precision_gives_a_float32_loss(name):
  o = objective(name)
  half = toy.scored(o.layout.completions or 3, ROWS, dtype=jnp.bfloat16)
  half = half.replace(extra=batch(name).extra)
  key = jax.random.key(KEY)
  out = jax.eval_shape(lambda s: scored.evaluate(o, s, start(name), key), half)
  chex.assert_type(jax.tree.leaves(out), jnp.float32)


def test_restored_state_gives_the_same_next_loss(name, tmp_path):
  state = base(name)["out"]["state"]
  restored = state
  if jax.tree.leaves(state):
    with ocp.StandardCheckpointer() as checkpointer:
      checkpointer.save(tmp_path / "state", state)
      checkpointer.wait_until_finished()
      restored = checkpointer.restore(tmp_path / "state", target=state)
  run = program(name)
  expected = run(batch(name), state, KEY + 1)
  actual = run(batch(name), restored, KEY + 1)
  chex.assert_trees_all_equal(actual, expected)


def test_gradient_matches_finite_differences(name, monkeypatch):
  o = objective(name)
  with jax.enable_x64(True):
    s = toy.scored_for(o, 2, 3)
    s = jax.tree.map(lambda x: jnp.asarray(x, np.float64), s)
    s = s.replace(row_B=jnp.arange(2))
    given = get(s, policy_fields(name))
    rng = np.random.default_rng(0)
    along = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), given)
    step = 1e-6

    @jax.jit
    def slopes(s, given, along):
      key, state = jax.random.key(KEY), o.init()
      aux, _ = o.prepare(s, state, key)  # no gradient flows through it

      def loss(fields):
        return value_of(o.loss(put(s, fields), aux).terms)

      exact = jax.tree.map(jnp.vdot, jax.grad(loss)(given), along)
      # Values under stop_gradient are held fixed.
      stopped = []
      monkeypatch.setattr(jax.lax, "stop_gradient", lambda x: stopped.append(x) or x)
      loss(given)

      def moved(size):
        replay = iter(stopped)
        monkeypatch.setattr(jax.lax, "stop_gradient", lambda _: next(replay))
        return loss(jax.tree.map(lambda x, d: x + size * d, given, along))

      return sum(exact.values()), (moved(step) - moved(-step)) / (2 * step)

    exact, slope = slopes(s, given, along)
    np.testing.assert_allclose(slope, exact, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("gap", [1000.0, -1000.0])
def test_extreme_inputs_stay_finite(name, gap):
  """One token or none, log-ratios of +-1000 nats, certainty, one kind of label."""
  s = batch(name)
  side_K = np.where(np.arange(s.logp_BKT.shape[1]) == 0, gap / 2, -gap / 2)
  side_BKT = np.broadcast_to(side_K[:, None], s.logp_BKT.shape)
  logp_BKT = jnp.asarray(side_BKT - 500, jnp.float32)
  one_BKT = jnp.zeros_like(s.mask_BKT).at[:, :, 0].set(1).at[1].set(0)
  s = s.replace(
    mask_BKT=one_BKT,
    length_BK=one_BKT.sum(-1),
    logp_BKT=logp_BKT.at[0].set(0),
    ref_logp_BKT=jnp.full_like(logp_BKT, -500),
    value_BKT=logp_BKT,
    reward_head_BKT=logp_BKT,
    desirable_BK=jnp.ones_like(s.desirable_BK),
  )
  chex.assert_tree_all_finite(jax.device_get(program(name)(s, start(name), KEY)))


def test_hparams_can_be_traced():
  s = toy.scored(K=2)

  def loss(beta: Array) -> Array:
    return scored.evaluate(objectives.dpo(beta=beta), s).loss

  betas = jnp.array([0.1, 0.5])
  separate = jnp.stack([loss(0.1), loss(0.5)])
  chex.assert_trees_all_close(jax.vmap(loss)(betas), separate, rtol=1e-6)
  assert np.isfinite(jax.grad(loss)(0.1))
