"""Closed forms of the optimum of reward and reference-free losses, over populations.

The log-probabilities of V completions are free variables; the population is every
ordered pair of different completions, weighted by the probability of its label. At the
closed form the gradient is 0, and the loss is the entropy of the labels where the
method is a maximum-likelihood fit of Bradley-Terry.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from tests.compiled import scored
from xpo_jax import objectives

pytestmark = pytest.mark.usefixtures("float64")

V, BETA = 4, 0.7
RNG = np.random.default_rng(0)
REWARD = RNG.normal(size=V)
REF = -RNG.uniform(2, 9, V)
LENGTH = np.array([3.0, 1.0, 6.0, 2.0])
MU = RNG.dirichlet(np.ones(V))  # distribution of the completions of a pair
WINNER, LOSER = np.nonzero(~np.eye(V, dtype=bool))
PAIRS = np.stack([WINNER, LOSER], 1)
WINS = special.expit(REWARD[:, None] - REWARD)
WEIGHT = (MU[:, None] * MU * WINS)[WINNER, LOSER]
# Entropy of a label, averaged over the pairs.
ENTROPY = -(WEIGHT * np.log(WINS[WINNER, LOSER])).sum() / WEIGHT.sum()


def population(objective, logp, weight=WEIGHT, pairs=PAIRS):
  """Loss over all pairs and its gradient in the log-probabilities, `[V]`."""

  def loss(logp):
    s = scored.from_sequence_logps(
      logp[pairs], LENGTH[pairs], REF[pairs], weight_B=weight
    )
    return scored.evaluate(objective, s).loss

  return jax.device_get(jax.jit(jax.value_and_grad(loss))(jnp.asarray(logp)))


def chi_square_optimum():
  """beta (u + exp(u) - 1) = reward + constant, solved by Lambert's W."""
  tilt = (REWARD + 0.2) / BETA + 1
  return REF + tilt - np.real(special.lambertw(np.exp(tilt)))


MAXIMUM_LIKELIHOOD = {
  "dpo": (objectives.dpo(BETA), REF + REWARD / BETA),
  "rso": (objectives.rso(BETA, "logistic"), REF + REWARD / BETA - 1.0),
  "dpo_norm": (objectives.dpo_norm(BETA), REF + LENGTH * (REWARD - 0.5) / BETA),
  "gpo": (objectives.gpo(BETA, "logistic"), REF + REWARD / BETA),
  "r_dpo": (objectives.r_dpo(BETA, 0.3), REF + (REWARD - 0.3 * LENGTH) / BETA),
  "chi_po": (objectives.chi_po(BETA, 10.0), chi_square_optimum()),
  "cpo": (objectives.cpo(BETA, weight=0.0), REWARD / BETA - 4.0),
  "simpo": (objectives.simpo(BETA, gamma=0.0), LENGTH * (REWARD - 3.0) / BETA),
  # reward (1 - p^-alpha) / alpha of the average probability p
  "alphapo": (
    objectives.alphapo(BETA, 0.0, alpha=0.5),
    -LENGTH * np.log(1 - 0.5 * (REWARD - 3.0) / BETA) / 0.5,
  ),
  "alphapo, alpha < 0": (
    objectives.alphapo(0.3, 0.0, alpha=-0.1),
    LENGTH * np.log(1 + 0.1 * (REWARD - 1.5) / 0.3) / 0.1,
  ),
  "odds_ratio": (
    objectives.odds_ratio(1.0),
    LENGTH * special.log_expit(REWARD - 0.5),
  ),
}


@pytest.mark.parametrize("name", MAXIMUM_LIKELIHOOD)
def test_bradley_terry_population_has_its_optimum_at_the_papers_reward(name):
  objective, best = MAXIMUM_LIKELIHOOD[name]
  loss, slope = population(objective, best)
  np.testing.assert_allclose(slope, 0, atol=1e-12)
  assert loss == pytest.approx(ENTROPY, rel=1e-12)
  off, slope = population(objective, best * np.array([1.0, 1.1, 0.8, 1.0]))
  assert off > ENTROPY + 1e-4
  assert abs(slope).max() > 1e-3


def test_odds_ratio_is_weighted_and_added_to_the_likelihood_of_the_chosen():
  """L_ORPO = L_SFT + lambda L_OR, the SFT term a mean over tokens."""
  best = LENGTH * special.log_expit(REWARD - 0.5)
  loss, slope = population(objectives.orpo(weight=0.25), best)
  tokens = WEIGHT @ LENGTH[WINNER]
  nll = -(WEIGHT @ best[WINNER]) / tokens
  assert loss == pytest.approx(nll + 0.25 * ENTROPY, rel=1e-12)
  # The odds ratio has no gradient here.
  expected = -np.bincount(WINNER, WEIGHT) / tokens
  np.testing.assert_allclose(slope, expected, rtol=1e-10)


@pytest.mark.parametrize("objective", [objectives.rso, objectives.gpo])
def test_hinge_link_is_satisfied_by_a_reward_margin_of_one(objective):
  """No gradient where every winner leads by 1 / beta, for certain preferences."""
  certain = np.where(REWARD[WINNER] > REWARD[LOSER], 1.0, 0.0)
  place = np.argsort(np.argsort(REWARD))
  hinge = objective(BETA, "hinge")
  loss, slope = population(hinge, REF + 1.01 * place / BETA, certain)
  assert loss == 0
  np.testing.assert_array_equal(slope, 0)
  loss, slope = population(hinge, REF + 0.9 * place / BETA, certain)
  neighbours = (place[WINNER] - place[LOSER] == 1) * certain
  assert loss == pytest.approx(0.1 * neighbours.sum() / certain.sum(), rel=1e-9)
  assert slope[place == 0] > 0 > slope[place == V - 1]


@pytest.mark.parametrize(
  ("factory", "length"), [(objectives.ipo, 1), (objectives.ipo_avg, LENGTH)]
)
def test_ipo_regresses_the_log_ratio_on_the_win_rate(factory, length):
  """log-ratio = P(y > mu) / beta + constant: per token in the average form."""
  wins = np.array([[0.5, 0.9, 0.2, 0.6], [0, 0.5, 0.8, 0.1]])
  wins = np.concatenate([wins, np.full((2, 4), 0.5)])
  wins = np.triu(wins, 1) + np.tril(1 - wins.T, -1) + np.eye(4) / 2  # with a cycle
  weight = (MU[:, None] * MU * wins)[WINNER, LOSER]
  best = REF + length * (wins @ MU / BETA - 2.0)
  _, slope = population(factory(BETA), best, weight)
  np.testing.assert_allclose(slope, 0, atol=1e-12)
  # At the reference every gap is 1 / (2 beta) from its target.
  loss, slope = population(factory(BETA), REF, weight)
  assert loss == pytest.approx(1 / (2 * BETA) ** 2, rel=1e-12)
  gain = wins @ MU - 0.5
  expected = -2 / BETA * MU * gain / (length * weight.sum())
  np.testing.assert_allclose(slope, expected, rtol=1e-9)


def quadratic(p, gamma):
  """Margin m with p sigma(gamma - m) = (1 - p) sigma(gamma + m)."""
  e = np.exp(-gamma)
  a, b, c = (1 - p) * e, -(2 * p - 1), -p * e
  return np.log((-b + np.sqrt(b * b - 4 * a * c)) / (2 * a))


def smoothed(p, e):
  return special.logit((1 - e) * p + e * (1 - p))


# For two completions, the first preferred with probability p: the best margin.
TWO = {
  "dpo": (objectives.dpo(BETA, 0.2), lambda p: smoothed(p, 0.2)),
  "robust_dpo": (
    objectives.robust_dpo(BETA, 0.1),
    lambda p: special.logit((p - 0.1) / (1 - 0.2)),
  ),
  "cpo": (objectives.cpo(BETA, 0.0, 0.2), lambda p: smoothed(p, 0.2)),
  "simpo": (objectives.simpo(BETA, 0.8), lambda p: quadratic(p, 0.8)),
  "simpo, smoothed": (objectives.simpo(BETA, 0.0, 0.2), lambda p: smoothed(p, 0.2)),
  "alphapo": (objectives.alphapo(BETA, 0.8, 0.0), lambda p: quadratic(p, 0.8)),
  "wpo": (objectives.wpo(BETA, 0.2), lambda p: smoothed(p, 0.2)),
  # The reverse KL averages log-odds where the forward KL averages probabilities.
  "exo": (objectives.exo(BETA, 0.2), lambda p: (2 * p - 1) * np.log(0.8 / 0.2)),
}


@pytest.mark.parametrize("name", TWO)
def test_best_margin_of_two_completions(name):
  objective, margin = TWO[name]
  per_token = name.startswith(("simpo", "alphapo"))
  reference = not per_token and name != "cpo"

  @jax.jit
  @jax.grad
  def slope(margin, p):
    logp = jnp.stack([margin / BETA, 0 * margin]) - 3
    two = jnp.stack([logp, logp[::-1]])
    ref = np.array([[-1.0, -2.0], [-2.0, -1.0]])
    lengths = np.array([[2.0, 5.0], [5.0, 2.0]])
    s = scored.from_sequence_logps(
      two * lengths if per_token else two + ref if reference else two,
      lengths,
      ref,
      weight_B=jnp.stack([p, 1 - p]),
    )
    typical = s.replace(extra={"log_mean_prob_BKT": s.logp_BKT})  # WPO's weight is 1
    return scored.evaluate(objective, typical).loss

  for p in (0.3, 0.6, 0.85):
    best = margin(p)
    assert slope(best, p) == pytest.approx(0, abs=1e-12)
    assert slope(best - 0.1, p) < -1e-4 < 1e-4 < slope(best + 0.1, p)


def test_chi_po_has_no_gradient_beyond_twice_the_largest_reward():
  """The margin is clipped to +-2 R, as a pair of rewards in [0, R] could be."""

  def one(gap, largest):
    s = scored.from_sequence_logps([[gap, 0.0]], [[1, 1]], [[0.0, 0.0]])
    return scored.evaluate(objectives.chi_po(BETA, largest), s).loss

  slope = jax.jit(jax.value_and_grad(one))
  inside = 0.4
  margin = BETA * (inside + np.exp(inside) - 1)
  loss, gradient = slope(inside, 1.0)
  assert loss == pytest.approx(np.log1p(np.exp(-margin)))
  expected = -BETA * (1 + np.exp(inside)) * special.expit(-margin)
  assert gradient == pytest.approx(expected)
  loss, gradient = slope(3.0, 1.5)
  assert loss == pytest.approx(np.log1p(np.exp(-2 * 1.5)))
  assert gradient == 0
  loss, gradient = slope(-9.0, 1.0)
  assert loss == pytest.approx(np.log1p(np.exp(2.0)))
  assert gradient == 0


def test_mixed_chi_square_optimum_is_the_tabular_optimum_of_the_regularised_reward():
  """chiPO's policy maximises E r - beta (chi^2 / 2 + KL)(policy || ref)."""
  ref = REF - special.logsumexp(REF)

  def excess(shift):
    tilt = (REWARD - shift) / BETA + 1
    return (np.exp(ref) * np.real(special.lambertw(np.exp(tilt)))).sum() - 1

  low, high = -20.0, 20.0
  for _ in range(100):
    middle = (low + high) / 2
    low, high = (middle, high) if excess(middle) > 0 else (low, middle)
  tilt = (REWARD - low) / BETA + 1
  best = ref + np.log(np.real(special.lambertw(np.exp(tilt))))

  def value(logits):
    p = jax.nn.softmax(logits)
    ratio = p / np.exp(ref)
    chi_square = (np.exp(ref) * (ratio - 1) ** 2).sum() / 2
    kl = (p * jnp.log(ratio)).sum()
    return p @ REWARD - BETA * (chi_square + kl)

  np.testing.assert_allclose(jax.jit(jax.grad(value))(best), 0, atol=1e-10)
  tilted = REF + (best - ref)  # `population` reads the unnormalised reference
  _, slope = population(objectives.chi_po(BETA, 10.0), tilted)
  np.testing.assert_allclose(slope, 0, atol=1e-10)
