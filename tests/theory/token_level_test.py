"""The effect of TDPO's sequential KL on the DPO gradient, on logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiled import scored
from xpo_jax import objectives

pytestmark = pytest.mark.usefixtures("float64")

RNG = np.random.default_rng(0)
REF, POLICY = RNG.normal(size=(2, 2, 2, 3, 5))
TOKENS = RNG.integers(5, size=(2, 2, 3))
MASK = np.arange(3) < np.array([[3, 2], [1, 3]])[..., None]


def slopes(logits, *factories):
  """Gradients with respect to the policy's logits, as one program."""

  def loss(logits, o):
    stats = objectives.tdpo1().stats
    return scored.evaluate(
      o, scored.from_logits(logits, TOKENS, MASK, jnp.asarray(REF), stats=stats)
    ).loss

  run = jax.jit(lambda x: [jax.grad(loss)(x, o) for o in factories])
  return run(jnp.asarray(logits))


def test_tdpo_gradient_at_the_reference_is_dpos_for_any_alpha():
  """At policy = ref the KL is at its minimum: its gradient is 0."""
  tested = (objectives.dpo(0.3), objectives.tdpo1(0.3), objectives.tdpo2(0.3, 0.7))
  dpo, *others = slopes(REF, *tested)
  assert abs(dpo).max() > 1e-3
  for other in others:
    np.testing.assert_allclose(other, dpo, atol=1e-15)


def test_tdpo2_without_alpha_is_dpo_and_with_it_only_the_rejected_side_differs():
  tested = [objectives.dpo(0.3), *(objectives.tdpo2(0.3, a) for a in (0.0, 0.7))]
  dpo, none, some = slopes(POLICY, *tested)
  np.testing.assert_array_equal(none, dpo)
  # The chosen side moves along DPO's gradient, by another factor; the rejected not.
  for side, parallel in ((0, True), (1, False)):
    a, b = np.asarray(dpo)[0, side].ravel(), np.asarray(some)[0, side].ravel()
    cosine = a @ b / np.sqrt((a @ a) * (b @ b))
    assert (abs(1 - cosine) < 1e-12) == parallel
