"""Making a Scored, checking it, evaluating an objective on it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from xpo_jax import objectives, scored
from xpo_jax.ops import token_stats
from xpo_jax.testing import toy
from xpo_jax.types import AuxLoss, Layout, Loss, Objective

RNG = np.random.default_rng(1)
LOGITS, REF = RNG.normal(size=(2, 3, 2, 4, 6)).astype(np.float32)
TOKENS = RNG.integers(0, 6, (3, 2, 4))
MASK = np.arange(4) < np.array([[4, 1], [2, 3], [1, 4]])[..., None]


def test_three_constructors_agree():
  o = objectives.dpo()
  logp, ref = (
    np.take_along_axis(special.log_softmax(x, -1), TOKENS[..., None], -1)[..., 0]
    for x in (LOGITS, REF)
  )
  total, ref_total = (logp * MASK).sum(-1), (ref * MASK).sum(-1)
  records = [
    scored.from_logits(LOGITS, TOKENS, MASK, REF),
    scored.from_token_logps(logp, MASK, ref),
    scored.from_sequence_logps(total, MASK.sum(-1), ref_total),
  ]
  margin = (total - ref_total) @ [0.1, -0.1]
  for record in records:
    out = scored.evaluate(o, record)
    np.testing.assert_allclose(out.per_example_B, np.log1p(np.exp(-margin)), rtol=1e-5)
    np.testing.assert_array_equal(record.length_BK, MASK.sum(-1))


def test_from_logits_computes_the_stats_and_nothing_else():
  stats = {token_stats.ENTROPY, token_stats.REF_KL}
  record = scored.from_logits(LOGITS, TOKENS, MASK, REF, stats=stats)
  assert record.logp_BKT is None
  assert record.ref_logp_BKT is None
  p, q = special.softmax(LOGITS, -1), special.softmax(REF, -1)
  entropy = np.where(MASK, special.entr(p).sum(-1), 0)
  np.testing.assert_allclose(record.extra["entropy_BKT"], entropy, atol=1e-5)
  kl = np.where(MASK, special.rel_entr(q, p).sum(-1), 0)
  np.testing.assert_allclose(record.ref_kl_BKT, kl, atol=1e-5)


def test_stat_without_its_source_is_refused():
  with pytest.raises(ValueError, match=r"ref_kl_BKT reads ref.*ref_logits_BKTV"):
    scored.from_logits(LOGITS, TOKENS, MASK, stats={token_stats.REF_KL})
  with pytest.raises(ValueError, match=r"value_BKT reads policy\.value"):
    scored.from_logits(LOGITS, TOKENS, MASK, stats={token_stats.VALUE})
  value, head = MASK * 2.0, MASK * 3.0
  record = scored.from_logits(
    LOGITS,
    TOKENS,
    MASK,
    stats={token_stats.VALUE, token_stats.REWARD_HEAD},
    value_BKT=value,
    reward_head_BKT=head,
  )
  np.testing.assert_array_equal(record.value_BKT, value)
  np.testing.assert_array_equal(record.reward_head_BKT, head)


@pytest.mark.nonfinite
def test_nan_logits_on_padding_reach_no_gradient():
  poisoned = np.where(MASK[..., None], LOGITS, np.nan)

  def loss(logits):
    record = scored.from_logits(logits, TOKENS, MASK, REF)
    return scored.evaluate(objectives.dpo(), record).loss

  gradient = jax.grad(loss)(jnp.asarray(poisoned))
  assert np.isfinite(gradient).all()
  assert not np.asarray(gradient)[~MASK].any()
  chex.assert_trees_all_close(gradient, jax.grad(loss)(jnp.asarray(LOGITS)), rtol=1e-6)


def test_half_precision_is_promoted_and_float64_stays():
  half = scored.from_logits(LOGITS.astype(jnp.bfloat16), TOKENS, MASK)
  chex.assert_type([half.logp_BKT, half.mask_BKT, half.length_BK], jnp.float32)
  with jax.enable_x64(True):
    double = scored.from_logits(LOGITS.astype(np.float64), TOKENS, MASK)
    assert double.logp_BKT.dtype == np.float64


def test_padding_is_zeroed_in_every_token_field():
  ones = np.ones((3, 2, 4))
  names = ["old_logp_BKT", "value_BKT", "old_value_BKT", "ref_kl_BKT", "reward_BKT"]
  names += ["sampler_logp_BKT", "reward_head_BKT"]
  record = scored.from_token_logps(
    ones, MASK, ones, **dict.fromkeys(names, ones), extra={"entropy_BKT": ones}
  )
  for name in ["logp_BKT", "ref_logp_BKT", *names]:
    np.testing.assert_array_equal(vars(record)[name], MASK)
  np.testing.assert_array_equal(record.extra["entropy_BKT"], MASK)


def test_wrong_shape_is_refused_by_name():
  with pytest.raises(AssertionError, match="ref_logp_BKT"):
    scored.from_token_logps(np.ones((3, 2, 4)), MASK, np.ones((3, 2, 5)))
  with pytest.raises(AssertionError, match="reward_BK"):
    scored.from_token_logps(np.ones((3, 2, 4)), MASK, reward_BK=np.ones((3, 1)))


def test_objective_that_reads_tokens_refuses_a_record_of_sums():
  o = Objective(
    name="reads_tokens",
    hparams={},
    layout=Layout.PAIR,
    stats=frozenset({token_stats.LOGP}),
    reads_tokens=True,
    loss=lambda s, aux: Loss({"x": s.mean_BK(s.logp_BKT[..., 0])}, {}),
  )
  sums = scored.from_sequence_logps(np.zeros((3, 2)), np.ones((3, 2)))
  with pytest.raises(ValueError, match=r"reads_tokens .*from_token_logps"):
    scored.evaluate(o, sums)
  scored.check(o, scored.from_token_logps(np.zeros((3, 2, 4)), MASK))
  with pytest.raises(ValueError, match="bradley_terry needs reward_head_BKT"):
    scored.check(objectives.bradley_terry(), sums)


def test_evaluate_is_differentiable_jitable_and_vmapable():
  o, s = objectives.dpo(), toy.scored(K=2)

  def loss(logp_BKT):
    return scored.evaluate(o, s.replace(logp_BKT=logp_BKT)).loss

  many = jnp.stack([s.logp_BKT, s.ref_logp_BKT])
  values, gradients = jax.jit(jax.vmap(jax.value_and_grad(loss)))(many)
  assert values[0] == pytest.approx(float(scored.evaluate(o, s).loss), rel=1e-6)
  assert values[1] == pytest.approx(np.log(2))
  # At margin 0 each chosen token has gradient -beta / (2 B).
  live_BT = np.asarray(s.mask_BKT)[:, 0]
  np.testing.assert_allclose(gradients[1][:, 0], -0.1 / (2 * 8) * live_BT, rtol=1e-5)


def test_parts_add_up_over_their_own_batches():
  forget, keep = toy.scored(K=2, seed=1), toy.scored(K=1, seed=2)
  parts = (
    AuxLoss(2.0, objectives.dpo(beta=0.3), "forget"),
    AuxLoss(0.5, objectives.sft(), "keep"),
  )
  out = scored.evaluate_parts(parts, {"forget": forget, "keep": keep})
  dpo = scored.evaluate(parts[0].objective, forget).loss
  sft = scored.evaluate(parts[1].objective, keep).loss
  np.testing.assert_allclose(out.loss, 2 * dpo + 0.5 * sft, rtol=1e-6)
  assert set(out.terms) == {"forget/dpo", "keep/sft"}
  with pytest.raises(ValueError, match="reads the batch 'keep'"):
    scored.evaluate_parts(parts, {"forget": forget})


@pytest.mark.nonfinite
def test_means_exclude_filler_and_absent_columns_even_nan():
  s = toy.scored(K=3, B=2).replace(
    present_BK=jnp.array([[1.0, 1, 0], [1, 1, 1]]), weight_B=jnp.array([1.0, 0])
  )
  nan = jnp.nan
  assert s.mean_B(jnp.array([3.0, nan])).value == 3
  assert s.mean_BK(jnp.array([[1.0, 3, nan], [nan, nan, nan]])).value == 2
