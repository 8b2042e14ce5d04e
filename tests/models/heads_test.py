import jax
import jax.numpy as jnp
import numpy as np

from xpo_jax.models import heads


def test_value_is_the_affine_map_of_the_hidden_state():
  head = {"kernel_D": jnp.array([1.0, -2.0, 0.5]), "bias": jnp.array(0.25)}
  hidden = jnp.array([[[3.0, 1.0, 2.0]], [[0.0, 0.0, 0.0]]])
  np.testing.assert_array_equal(heads.value(head, hidden), [[2.25], [0.25]])


def test_value_of_half_precision_hidden_states_is_float32():
  head = heads.init_reward_head(jax.random.key(0), 4)
  assert heads.value(head, jnp.ones((2, 3, 4), jnp.bfloat16)).dtype == jnp.float32


def test_initial_reward_head_has_unit_variance_and_zero_bias():
  head = heads.init_reward_head(jax.random.key(0), 10_000)
  # The variance of a sum of 10 000 squares has a relative SD of sqrt(2 / 10 000).
  assert abs(float((head["kernel_D"] ** 2).sum()) - 1) < 5 * 0.0142
  assert head["bias"] == 0


def test_initial_value_head_gives_zero():
  head = heads.init_value_head(3)
  hidden = jnp.array([[1.0, -2.0, 3.0], [0.0, 5.0, 1.0]])
  np.testing.assert_array_equal(heads.value(head, hidden), [0, 0])


def test_logical_axes_match_the_parameters():
  head = heads.init_reward_head(jax.random.key(0), 4)
  axes = heads.logical_axes()
  assert {name: len(axes[name]) for name in axes} == {
    n: x.ndim for n, x in head.items()
  }
