"""Theorems on pairwise losses, on exact tabular policies and all their pairs.

A policy over V completions is a vector of logits; the population of pairs is every
ordered pair of different completions, weighted by the probability of its label.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.ops import divergences, links
from xpo_jax.testing import toy

pytestmark = pytest.mark.usefixtures("float64")

V, BETA = 5, 0.4
RNG = np.random.default_rng(0)
REF = special.log_softmax(RNG.normal(size=V))
REWARD = RNG.normal(size=V)
MU = special.softmax(
  RNG.normal(size=V)
)  # distribution of the pairs: neither policy nor ref
LENGTH = RNG.integers(1, 20, V)
BRADLEY_TERRY = special.expit(REWARD[:, None] - REWARD)
WINNER, LOSER = np.nonzero(~np.eye(V, dtype=bool))


def minimiser(objective, wins):
  """log pi - log ref, nats, of the policy with the smallest loss on all pairs."""
  weight = (MU[:, None] * MU * wins)[WINNER, LOSER]
  pairs = np.stack([WINNER, LOSER], 1)

  @jax.jit
  @jax.value_and_grad
  def loss(logits):
    logp = jax.nn.log_softmax(logits)
    s = scored.from_sequence_logps(
      logp[pairs], LENGTH[pairs], jnp.asarray(REF[pairs]), weight_B=weight
    )
    return scored.evaluate(objective, s).loss

  result = optimize.minimize(
    lambda x: [np.asarray(y, np.float64) for y in loss(x)],
    REF,
    jac=True,
    method="BFGS",
    options={"gtol": 1e-10},
  )
  assert abs(result.jac).max() < 1e-6
  return special.log_softmax(result.x) - REF


def centred(x):
  return x - x.mean()


def test_dpo_recovers_the_reward_of_a_bradley_terry_population():
  ratio = minimiser(objectives.dpo(BETA), BRADLEY_TERRY)
  np.testing.assert_allclose(BETA * centred(ratio), centred(REWARD), atol=1e-5)


def test_dpo_reaches_the_optimum_of_the_kl_regularised_reward():
  ratio = minimiser(objectives.dpo(BETA), BRADLEY_TERRY)
  optimum = special.log_softmax(REF + REWARD / BETA)
  np.testing.assert_allclose(ratio + REF, optimum, atol=1e-5)


def test_robust_dpo_is_an_unbiased_estimate_of_dpo_without_flips():
  """(1 - e) L(label) + e L(flipped label) is DPO's loss of the label, pair by pair."""
  logp, ref = np.array([[-3.0, -5.0]]), np.array([[-4.0, -4.5]])

  def loss(objective, turn):
    pair = [x[:, ::turn] for x in (logp, ref)]
    s = scored.from_sequence_logps(pair[0], [[1, 1]], pair[1])
    return float(scored.evaluate(objective, s).loss)

  robust = objectives.robust_dpo(BETA, flip_rate=0.3)
  mean = 0.7 * loss(robust, 1) + 0.3 * loss(robust, -1)
  assert mean == pytest.approx(loss(objectives.dpo(BETA), 1))


def test_robust_dpo_recovers_the_reward_under_flipped_labels_and_dpo_does_not():
  flipped = 0.8 * BRADLEY_TERRY + 0.2 * BRADLEY_TERRY.T
  robust = minimiser(objectives.robust_dpo(BETA, flip_rate=0.2), flipped)
  np.testing.assert_allclose(BETA * centred(robust), centred(REWARD), atol=1e-5)
  plain = minimiser(objectives.dpo(BETA), flipped)
  assert np.ptp(BETA * plain) < 0.8 * np.ptp(REWARD)


def test_r_dpo_recovers_the_reward_minus_the_length_penalty():
  """Labels that follow r: the policy's reward is r - alpha |y|."""
  ratio = minimiser(objectives.r_dpo(BETA, alpha=0.03), BRADLEY_TERRY)
  expected = centred(REWARD - 0.03 * LENGTH)
  np.testing.assert_allclose(BETA * centred(ratio), expected, atol=1e-5)


@pytest.mark.parametrize("transitive", [True, False])
def test_ipo_reaches_the_optimum_of_the_regularised_preference(transitive):
  """log pi*/ref = P(y > mu) / beta + constant, Bradley-Terry or not."""
  wins = BRADLEY_TERRY
  if not transitive:
    skew = np.triu(np.random.default_rng(1).uniform(-0.5, 0.5, (V, V)), 1)
    skew[0, 1], skew[1, 2], skew[0, 2] = 0.4, 0.4, -0.4  # 0 beats 1 beats 2 beats 0
    wins = 0.5 + skew - skew.T
  ratio = minimiser(objectives.ipo(BETA), wins)
  np.testing.assert_allclose(centred(ratio), centred(wins @ MU) / BETA, atol=1e-5)


def test_ipo_stays_finite_for_deterministic_preferences():
  """a > b > c with certainty: log-ratios 2c/3, 0, -2c/3 where c = 1 / (2 beta)."""
  pairs = np.array([[0, 1], [1, 2], [0, 2]])
  ref = np.full((3, 2), -np.log(3))

  @jax.jit
  @jax.grad
  def slope(logits, beta):
    logp = jax.nn.log_softmax(logits)
    s = scored.from_sequence_logps(logp[pairs], np.ones((3, 2)), ref)
    return scored.evaluate(objectives.ipo(beta), s).loss

  for beta in (0.1, 0.5, 1.0, 5.0):
    ratio = np.array([1.0, 0.0, -1.0]) * 2 / 3 / (2 * beta)
    np.testing.assert_allclose(slope(ratio, beta), 0, atol=1e-9)
    assert abs(slope(2 * ratio, beta)).max() > 0.05


# The margin that minimises p f(m) + (1 - p) f(-m).
BEST_MARGIN = {
  "logistic": special.logit,
  "exponential": lambda p: special.logit(p) / 2,
  "savage": special.logit,
  "squared": lambda p: 2 * p - 1,
  "truncated_quadratic": lambda p: 2 * p - 1,
  "hinge": lambda p: np.sign(2 * p - 1),
}


@pytest.mark.parametrize("name", links.LINKS)
def test_gpo_links_have_their_minimiser_at_the_margin_of_the_preference(name):
  grid = np.linspace(-3, 3, 2401)
  o = objectives.gpo(BETA, name)

  @jax.jit
  def losses(share):
    def loss(margin):
      pair = jnp.stack([margin / BETA, 0 * margin])
      s = scored.from_sequence_logps(
        jnp.stack([pair, pair[::-1]]),
        np.ones((2, 2)),
        np.zeros((2, 2)),
        weight_B=jnp.stack([share, 1 - share]),
      )
      return scored.evaluate(o, s).loss

    return jax.vmap(loss)(jnp.asarray(grid))

  for share in (0.6, 0.8, 0.3):
    best = grid[np.argmin(losses(share))]
    np.testing.assert_allclose(best, BEST_MARGIN[name](share), atol=2e-3)


@pytest.mark.parametrize(
  ("link", "share"),
  [(links.LOGISTIC, 1.0), (links.SAVAGE, 1.0), (links.EXPONENTIAL, 0.5)],
  ids=repr,
)
def test_proper_links_recover_the_reward_up_to_scale(link, share):
  ratio = minimiser(objectives.gpo(BETA, link), BRADLEY_TERRY)
  expected = share * centred(REWARD)
  np.testing.assert_allclose(BETA * centred(ratio), expected, atol=1e-5)


# The ratio at which f' has a value, by algebra on the papers' formulas.
INVERSE_SLOPE = {
  "reverse_kl": np.exp,
  "forward_kl": lambda s: 1 / (1 - s),
  "jensen_shannon": lambda s: np.exp(s) / (2 - np.exp(s)),
  "alpha(0.3)": lambda s: (1 - 0.3 * s) ** (-1 / 0.3),
  "alpha(0.7)": lambda s: (1 - 0.7 * s) ** (-1 / 0.7),
}


def regularised_optimum(divergence, beta):
  """argmax of E[r] - beta D_f(pi || ref): beta f'(pi / ref) = r - multiplier."""
  inverse = INVERSE_SLOPE[divergence.name]

  def excess(multiplier):
    return (np.exp(REF) * inverse((REWARD - multiplier) / beta)).sum() - 1

  # f' ends at slope_at_inf: the multiplier keeps the best completion's ratio finite.
  end = min(divergence.slope_at_inf, 30.0)
  low = REWARD.max() - beta * end + 1e-9
  multiplier = optimize.brentq(excess, low, REWARD.max() + 30, xtol=1e-14)
  return np.log(inverse((REWARD - multiplier) / beta))


@pytest.mark.parametrize("name", INVERSE_SLOPE)
def test_f_dpo_reaches_the_optimum_of_the_f_regularised_reward(name):
  divergence, beta = divergences.DIVERGENCES[name], 0.8
  optimum = regularised_optimum(divergence, beta)

  def objective(logits):
    logp = jax.nn.log_softmax(logits)
    d = divergences.between(divergence, logp, jnp.asarray(REF))
    return jnp.exp(logp) @ REWARD - beta * d

  np.testing.assert_allclose(jax.jit(jax.grad(objective))(optimum + REF), 0, atol=1e-9)
  ratio = minimiser(objectives.f_dpo(beta, divergence), BRADLEY_TERRY)
  np.testing.assert_allclose(ratio, optimum, atol=1e-5)


def test_r_dpo_dpop_and_robust_dpo_at_zero_are_dpo():
  s = toy.scored(K=2, dtype=np.float64)

  def of(objective):
    def loss(logp_BKT):
      return scored.evaluate(objective, s.replace(logp_BKT=logp_BKT)).loss

    return jax.jit(jax.value_and_grad(loss))(s.logp_BKT)

  loss, gradient = of(objectives.dpo(BETA))
  for zeroed in (
    objectives.r_dpo(BETA, alpha=0.0),
    objectives.dpop(BETA, penalty=0.0),
    objectives.robust_dpo(BETA, flip_rate=0.0),
  ):
    zeroed_loss, zeroed_gradient = of(zeroed)
    np.testing.assert_allclose(zeroed_loss, loss, rtol=1e-14)
    np.testing.assert_allclose(zeroed_gradient, gradient, rtol=1e-12, atol=1e-15)
