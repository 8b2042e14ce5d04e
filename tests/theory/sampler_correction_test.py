"""A sampler that is not the policy biases a gradient, and importance weights mend it.

Exact on the toy bandit: every group of completions of every prompt is a row, weighted
by its probability under the sampler: the batch's gradient is the expected one.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.ops import token_mdp
from xpo_jax.ops.sampler_correction import corrected
from xpo_jax.testing import bandit
from xpo_jax.types import Array, Mean, Objective

pytestmark = pytest.mark.usefixtures("float64")

X, Y, D = 2, 4, 3
BETA = 0.3
SAMPLERS = ("temperature", "bf16 weights")


@pytest.fixture
def task():
  made = bandit.make(jax.random.key(0), prompts=X, completions=Y, features=D)
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), made)


THETA = np.array([0.51, -0.83, 0.37])


def sampler(task: bandit.Bandit, name: str) -> Array:
  """Log-probs of what is drawn from, `[X, Y]`: not quite the policy's."""
  if name == "temperature":
    return jax.nn.log_softmax(bandit.logp(task, THETA) / 0.6)
  if name == "bf16 weights":
    return bandit.logp(task, jnp.asarray(THETA, jnp.bfloat16).astype(jnp.float64))
  return bandit.logp(task, THETA)


def gradient(
  objective: Objective, task: bandit.Bandit, name: str, K: int, reward_XY=None
) -> np.ndarray:
  """Expected gradient in theta over all groups of K samples of a sampler."""
  groups = np.array(list(itertools.product(range(Y), repeat=K)))
  prompt_B1 = np.repeat(np.arange(X), len(groups))[:, None]
  at = (prompt_B1, np.tile(groups, (X, 1)))
  reward_XY = task.reward_XY if reward_XY is None else reward_XY
  sampler_BK = sampler(task, name)[at]

  def loss(theta_D: Array) -> Array:
    logp_BKT = bandit.logp(task, theta_D)[at][..., None]
    zero_BKT = jnp.zeros_like(logp_BKT)
    s = scored.from_token_logps(
      logp_BKT,
      jnp.ones_like(logp_BKT),
      task.ref_logp_XY[at][..., None],
      old_logp_BKT=bandit.logp(task, THETA)[at][..., None],
      sampler_logp_BKT=sampler_BK[..., None],
      value_BKT=zero_BKT,
      old_value_BKT=zero_BKT,
      reward_BK=reward_XY[at],
      weight_B=jnp.exp(sampler_BK.sum(-1)),
    )
    state = Mean(jnp.float64(0.7), jnp.float64(1)) if objective.init() else None
    return scored.evaluate(objective, s, state).loss

  return np.asarray(jax.jit(jax.grad(loss))(jnp.asarray(THETA)))


def policy_gradient(task: bandit.Bandit, reward_XY=None, beta: float = 0.0):
  """Exact gradient of -(E r - beta KL(policy || ref)), a mean over prompts."""
  reward_XY = task.reward_XY if reward_XY is None else reward_XY

  def negative(theta_D: Array) -> Array:
    logp_XY = bandit.logp(task, theta_D)
    penalty_XY = beta * (logp_XY - task.ref_logp_XY)
    return -(jnp.exp(logp_XY) * (reward_XY - penalty_XY)).sum(1).mean()

  return np.asarray(jax.jit(jax.grad(negative))(jnp.asarray(THETA)))


def bias(found: np.ndarray, wanted: np.ndarray) -> float:
  """Relative to the size of the gradient."""
  return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


# Other biases than a temperature's are small, but far above rounding.
LEAST = {"temperature": 0.1, "bf16 weights": 1e-4}
EXACT = 1e-10


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(
  ("objective", "share"),
  [
    (objectives.rloo(beta=None), 1.0),
    (objectives.rloo(beta=BETA), 1.0),
    (objectives.dr_grpo(), (3 - 1) / 3),
  ],
  ids=["rloo", "rloo with a penalty", "dr_grpo"],
)
def test_weights_make_group_baselines_unbiased(task, name, objective, share):
  wanted = share * policy_gradient(task, beta=objective.hparams["beta"] or 0.0)
  assert bias(gradient(objective, task, "policy", 3), wanted) < EXACT
  assert bias(gradient(objective, task, name, 3), wanted) > LEAST[name]
  mended = corrected(objective, cap=math.inf)
  assert bias(gradient(mended, task, name, 3), wanted) < EXACT


@pytest.mark.parametrize("name", SAMPLERS)
def test_weights_make_grpo_what_it_is_on_policy(task, name):
  """Pairs of success and failure: the standard deviation is that of every pair."""
  success_XY = (task.reward_XY > 0).astype(jnp.float64)
  grpo = objectives.grpo(beta=None)
  wanted = gradient(grpo, task, "policy", 2, success_XY)
  assert bias(gradient(grpo, task, name, 2, success_XY), wanted) > LEAST[name]
  mended = corrected(grpo, cap=math.inf)
  assert bias(gradient(mended, task, name, 2, success_XY), wanted) < EXACT
  # And that is the policy gradient, but for a factor: (1/2) sqrt(2) up to GRPO's eps.
  exact = policy_gradient(task, success_XY)
  factor = wanted @ exact / (exact @ exact)
  np.testing.assert_allclose(wanted, factor * exact, rtol=1e-9)
  assert factor == pytest.approx(math.sqrt(2) / 2, rel=1e-3)


@pytest.mark.parametrize("name", SAMPLERS)
def test_larger_groups_leave_the_scale_of_a_prompt_to_the_sampler(task, name):
  """With successes and failures: of one prompt the direction is right for any K."""
  success_XY = (task.reward_XY > 0).astype(jnp.float64)
  one = jax.tree.map(lambda x: x[:1], task)
  both = jax.tree.map(lambda x: jnp.concatenate([x, x]), one)  # X prompts, all alike
  mended = corrected(objectives.grpo(beta=None), cap=math.inf)
  twice_XY = jnp.concatenate([success_XY[:1]] * 2)
  found = gradient(mended, both, name, 4, twice_XY)
  exact = policy_gradient(both, twice_XY)
  cosine = found @ exact / np.linalg.norm(found) / np.linalg.norm(exact)
  assert cosine == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("name", SAMPLERS)
def test_weights_make_ppo_the_policy_gradient_over_the_deviation(task, name):
  ppo = objectives.ppo(BETA, value_weight=0.0, lam=1.0, whiten_reward=False)
  # Whitening counts rows, whatever their weight.
  penalty_XY = BETA * (bandit.logp(task, THETA) - task.ref_logp_XY)
  deviation = np.asarray(task.reward_XY - penalty_XY).std()
  wanted = policy_gradient(task, beta=BETA) / deviation
  rounding = 1e-7  # of whitening's eps
  assert bias(gradient(ppo, task, "policy", 1), wanted) < rounding
  assert bias(gradient(ppo, task, name, 1), wanted) > LEAST[name]
  mended = corrected(ppo, cap=math.inf)
  assert bias(gradient(mended, task, name, 1), wanted) < rounding


@pytest.mark.parametrize("cap", [1.0, 2.0, 6.0])
def test_a_cap_leaves_the_bias_of_what_it_cuts(task, cap):
  """E min(pi, C q) (r - E_q r) grad log pi, in place of E pi."""
  rloo, logq_XY = objectives.rloo(beta=None), sampler(task, "temperature")
  q_XY = np.exp(logq_XY)
  gap_XY = task.reward_XY - (q_XY * task.reward_XY).sum(1, keepdims=True)
  ratio_XY = np.exp(bandit.logp(task, THETA) - logq_XY)
  assert ratio_XY.min() < cap < ratio_XY.max()
  jacobian_XYD = jax.jacobian(lambda theta_D: bandit.logp(task, theta_D))(
    jnp.asarray(THETA)
  )

  def with_weights(weight_XY: Array) -> np.ndarray:
    return -np.einsum("xy,xyd->d", q_XY * weight_XY * gap_XY, jacobian_XYD) / X

  found = gradient(corrected(rloo, cap=cap), task, "temperature", 2)
  np.testing.assert_allclose(found, with_weights(np.minimum(ratio_XY, cap)), atol=EXACT)
  assert bias(found, policy_gradient(task)) > 1e-3
  whole = corrected(rloo, cap=float(ratio_XY.max()) + 1e-9)
  found = gradient(whole, task, "temperature", 2)
  assert bias(found, policy_gradient(task)) < EXACT


def test_bounds_leave_out_what_is_outside_and_weigh_nothing(task):
  """REINFORCE on samples of which some carry no loss."""
  reinforce, logq_XY = objectives.reinforce(beta=None), sampler(task, "temperature")
  ratio_XY = np.exp(bandit.logp(task, THETA) - logq_XY)
  low, high = np.quantile(ratio_XY, [0.2, 0.8])
  kept_XY = (ratio_XY >= low) & (ratio_XY <= high)
  jacobian_XYD = jax.jacobian(lambda theta_D: bandit.logp(task, theta_D))(
    jnp.asarray(THETA)
  )
  gain_XY = np.exp(logq_XY) * (task.reward_XY - 0.7) * kept_XY  # the baseline is 0.7
  wanted = -np.einsum("xy,xyd->d", gain_XY, jacobian_XYD) / X
  masked = corrected(reinforce, cap=None, bounds=(float(low), float(high)))
  np.testing.assert_allclose(
    gradient(masked, task, "temperature", 1), wanted, atol=EXACT
  )


def test_only_the_ratio_of_whole_completions_is_exact():
  """Token by token, the prefix stays the sampler's."""
  V, T = 3, 3
  next_SV, paths = token_mdp.tree(V, T), token_mdp.sequences(V, T)
  rng = np.random.default_rng(0)
  logits_SV, reward_N = rng.normal(size=(len(next_SV), V)), rng.normal(size=len(paths))

  def along(x_SV: Array) -> Array:
    return token_mdp.along(jax.nn.log_softmax(x_SV), next_SV, paths)

  policy_NT, sampler_NT = along(logits_SV), along(logits_SV / 0.6)

  def found(objective: Objective) -> np.ndarray:
    def loss(logits_SV: Array) -> Array:
      logp_BKT = along(logits_SV)[:, None]
      s = scored.from_token_logps(
        logp_BKT,
        jnp.ones_like(logp_BKT),
        old_logp_BKT=policy_NT[:, None],
        sampler_logp_BKT=sampler_NT[:, None],
        reward_BK=reward_N[:, None],
        weight_B=jnp.exp(sampler_NT.sum(-1)),
      )
      return scored.evaluate(objective, s, objective.init()).loss

    return np.asarray(jax.jit(jax.grad(loss))(jnp.asarray(logits_SV)))

  def negative(logits_SV: Array) -> Array:
    return -(jnp.exp(along(logits_SV).sum(-1)) * reward_N).sum()

  wanted = np.asarray(jax.jit(jax.grad(negative))(jnp.asarray(logits_SV)))
  plain = objectives.reinforce(beta=None)
  by_token, by_sequence = (
    corrected(plain, cap=math.inf, level=level) for level in ("token", "sequence")
  )
  assert bias(found(by_sequence), wanted) < EXACT
  assert 0.01 < bias(found(by_token), wanted) < bias(found(plain), wanted)
