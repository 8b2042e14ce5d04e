"""Preference games: theorems of the self-play papers, on exact tabular policies."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.ops import preference_games

pytestmark = pytest.mark.usefixtures("float64")

V, BETA = 5, 0.1


def random_game():
  """A win matrix of V completions with a cycle, and a reference."""
  rng = np.random.default_rng(0)
  skew = np.triu(rng.uniform(-0.4, 0.4, (V, V)), 1)
  skew[0, 1], skew[1, 2], skew[0, 2] = 0.3, 0.2, -0.4  # 0 beats 1 beats 2 beats 0
  return 0.5 + skew - skew.T, special.log_softmax(rng.normal(size=V))


WIN, REF = random_game()


def equilibrium(beta):
  """The regularised equilibrium: ref exp(P(y > policy) / beta) / Z, by root finding."""

  def residual(logits):
    policy = special.softmax(logits)
    response = special.log_softmax(REF + WIN @ policy / beta)
    return special.log_softmax(logits) - response + logits.mean()

  solution = optimize.root(residual, REF, tol=1e-13)
  assert np.abs(residual(solution.x)).max() < 1e-10
  return special.log_softmax(solution.x)


def test_gap_is_the_gain_of_the_best_response():
  rng = np.random.default_rng(1)
  logp = special.log_softmax(rng.normal(size=V))
  policy, kl = np.exp(logp), lambda p: (p * (np.log(p) - REF)).sum()

  def payoff(p):
    return p @ WIN @ policy - BETA * kl(p) + BETA * kl(policy)

  gap = preference_games.regularised_gap(WIN, logp, REF, BETA)
  best = payoff(special.softmax(REF + WIN @ policy / BETA))
  assert best > max(payoff(p) for p in rng.dirichlet(np.ones(V), 300))
  # By antisymmetry the opponent gains as much: max over p minus min over q.
  np.testing.assert_allclose(gap, best - (1 - best), rtol=1e-10)
  assert abs(preference_games.regularised_gap(WIN, equilibrium(BETA), REF, BETA)) < 1e-9


def test_nash_mds_last_iterate_reaches_the_regularised_equilibrium():
  def step(logp, t):
    eta = 2 / (BETA * (t + 2))
    new = preference_games.nash_md_step(logp, REF, WIN, BETA, eta)
    return new, new

  steps = jnp.arange(2000.0)
  _, path = jax.jit(lambda start: jax.lax.scan(step, start, steps))(jnp.asarray(REF))
  target = equilibrium(BETA)
  assert preference_games.regularised_gap(WIN, path[-1], REF, BETA) < 1e-4
  assert preference_games.regularised_gap(WIN, REF, REF, BETA) > 0.05  # at the start
  np.testing.assert_allclose(np.exp(path[-1]), np.exp(target), atol=1e-3)
  kl = (np.exp(target) * (target - np.asarray(path))).sum(-1)
  assert (kl <= 8 / (BETA**2 * (np.arange(1, 2001) + 1))).all()  # the paper's bound
  # The KL term matters: this policy is exploitable in the game without a reference.
  assert preference_games.exploitability(WIN, path[-1]) > 0.01


def test_sppos_average_reaches_the_equilibrium_and_its_last_iterate_does_not(
  record_property,
):
  # Rock beats scissors with 0.9, scissors paper with 0.7, paper rock with 0.6. In
  # equilibrium each has a probability proportional to the margin of the other two.
  win = np.array([[0.5, 0.4, 0.9], [0.6, 0.5, 0.3], [0.1, 0.7, 0.5]])
  nash = np.array([0.2, 0.4, 0.1]) / 0.7
  assert preference_games.exploitability(win, np.log(nash)) == pytest.approx(
    0, abs=1e-12
  )
  start, eta, T = special.log_softmax([1.0, 0.0, 0.0]), 0.1, 6000

  def step(logp, _):
    return preference_games.sppo_step(logp, win, eta), logp

  last, path = jax.jit(lambda start: jax.lax.scan(step, start, length=T))(start)
  average = np.exp(np.asarray(path)).mean(0)
  np.testing.assert_allclose(average, nash, atol=0.05)
  # Hedge's regret bound, per step.
  bound = -start.min() / (eta * T) + eta / 8
  assert preference_games.exploitability(win, np.log(average)) < bound
  gaps = np.array(
    [preference_games.exploitability(win, logp) for logp in path[:: T // 20]]
  )
  record_property(
    "last_iterate_exploitability", float(preference_games.exploitability(win, last))
  )
  assert preference_games.exploitability(win, last) > 0.1
  assert gaps[-5:].mean() > gaps[0]  # farther from equilibrium than at the start


@functools.partial(jax.jit, static_argnums=0)
def _slope(factory, theta, ref, beta, weight_B, win_rate_BK, pairs_BK):
  def loss(theta):
    logp_BK = jax.nn.log_softmax(theta)[pairs_BK]
    s = scored.from_sequence_logps(
      logp_BK, jnp.ones_like(logp_BK), ref[pairs_BK], reward_BK=win_rate_BK
    )
    s = s.replace(weight_B=weight_B / weight_B.sum())
    return scored.evaluate(factory(beta), s).loss

  return jax.jit(jax.grad(loss))(theta)


def slope(factory, logp, ref, win, *, sampler, beta, labels="pair", against=None):
  """Largest entry of an online objective's exact gradient; pairs from `sampler`."""
  pairs = np.array([(i, j) for i in range(len(win)) for j in range(len(win))])
  first, second = pairs.T
  weight = np.exp(sampler[first] + sampler[second])
  if labels == "hard":  # the first completion won
    weight = weight * win[first, second]
  rate = preference_games.pair_win_rates(win[first, second])
  if against is not None:
    rate = (win @ np.exp(against))[pairs]
  return np.abs(_slope(factory, logp, ref, beta, weight, rate, pairs)).max()


def test_online_ipo_is_stationary_at_the_regularised_equilibrium_and_dpo_is_not():
  nash = equilibrium(BETA)
  online = {"sampler": nash, "beta": BETA}
  assert slope(objectives.ipo_md, nash, REF, WIN, **online) < 1e-8
  assert slope(objectives.ipo_md, REF, REF, WIN, sampler=REF, beta=BETA) > 1e-2
  assert slope(objectives.dpo, nash, REF, WIN, **online, labels="hard") > 1e-3


def test_ipo_of_two_completions_follows_win_rates_and_dpo_log_odds():
  win, ref, p, beta = np.array([[0.5, 0.7], [0.3, 0.5]]), np.log([0.4, 0.6]), 0.7, 0.5
  first = np.array([1, 0])
  points = {
    objectives.ipo_md: special.log_softmax(ref + (2 * p - 1) / (2 * beta) * first),
    objectives.dpo: special.log_softmax(ref + np.log(p / (1 - p)) / beta * first),
  }
  for factory in points:
    labels = "hard" if factory is objectives.dpo else "pair"
    for other, logp in points.items():
      size = slope(factory, logp, ref, win, sampler=logp, beta=beta, labels=labels)
      assert size < 1e-10 if factory is other else size > 1e-2
  # IPO's is the equilibrium of the regularised game; DPO's is not.
  gaps = [
    preference_games.regularised_gap(win, logp, ref, beta) for logp in points.values()
  ]
  assert gaps[0] == pytest.approx(0, abs=1e-12)
  assert gaps[1] > 1e-2


def test_ipo_mds_mixture_is_the_equilibrium_at_a_larger_beta():
  # Sampling from the mixture policy^(1 - s) ref^s, the mixture is the equilibrium at
  # beta / (1 - s).
  share = 0.25
  mixed = equilibrium(BETA / (1 - share))
  policy = special.log_softmax(REF + (mixed - REF) / (1 - share))
  sampler = np.asarray(preference_games.mixture(policy, REF, share))
  np.testing.assert_allclose(sampler, mixed, atol=1e-10)
  online = {"sampler": sampler, "beta": BETA}
  assert slope(objectives.ipo_md, policy, REF, WIN, **online) < 1e-8
  assert slope(objectives.ipo_md, equilibrium(BETA), REF, WIN, **online) > 1e-4


def test_dnos_minimum_is_sppos_step_with_its_partition_function():
  logp = special.log_softmax(REF + 0.5 * np.sin(np.arange(V)))
  step = np.asarray(preference_games.sppo_step(logp, WIN, 1 / BETA))
  previous_round = {"sampler": logp, "beta": BETA, "against": logp}
  assert slope(objectives.dno, step, logp, WIN, **previous_round) < 1e-10
  assert slope(objectives.dno, logp, logp, WIN, **previous_round) > 1e-3


# Seven sequences of two tokens of three: token 0 ends one.
TOKENS = np.array([(0, 0), *((a, b) for a in (1, 2) for b in range(3))])
MASK = np.array([(1, a > 0) for a, _ in TOKENS], float)


def token_logps(theta):
  first, then = (jax.nn.log_softmax(x) for x in theta)
  both = jnp.stack([first[TOKENS[:, 0]], then[TOKENS[:, 0], TOKENS[:, 1]]], 1)
  return both * MASK


def sequence_game():
  rng = np.random.default_rng(2)
  theta, ref = ((rng.normal(size=3), rng.normal(size=(3, 3))) for _ in range(2))
  skew = np.triu(rng.uniform(-0.4, 0.4, (7, 7)), 1)
  return theta, ref, 0.5 + skew - skew.T


def test_nash_md_gradient_by_enumeration_differs_from_trls():
  theta, ref, win = sequence_game()
  log_ref = token_logps(ref)
  frozen = token_logps(theta)
  policy = np.exp(frozen.sum(-1))
  opponent = preference_games.mixture(frozen.sum(-1), log_ref.sum(-1), 0.25)
  rate = win @ np.exp(opponent)  # the mean over y' of P(y > y')

  def record(theta):
    s = scored.from_token_logps(
      token_logps(theta)[:, None],
      MASK[:, None],
      log_ref[:, None],
      reward_BK=rate[:, None],
    )
    return s.replace(weight_B=policy)  # every sequence weighted by its probability

  def gain(theta):
    """Nash-MD's objective for a fixed opponent: E P(y > y') - beta KL(policy, ref)."""
    logp = token_logps(theta).sum(-1)
    return (jnp.exp(logp) * (rate - 0.3 * (logp - log_ref.sum(-1)))).sum()

  def paper_loss(theta):
    return scored.evaluate(objectives.nash_md(0.3), record(theta)).loss

  def local_loss(theta):
    s = record(theta)
    return s.mean_BK(objectives.nash_md_token_local(s, 0.3)).value

  def slopes(theta):
    gradients = [jax.jit(jax.grad(f))(theta) for f in (gain, paper_loss, local_loss)]
    return [jnp.concatenate([x.ravel() for x in slope]) for slope in gradients]

  exact, paper, local = jax.device_get(jax.jit(slopes)(theta))
  np.testing.assert_allclose(-paper, exact, rtol=1e-9, atol=1e-14)  # descent
  cosine = -local @ exact / np.linalg.norm(local) / np.linalg.norm(exact)
  assert cosine < 0.999


def test_nash_md_leaves_a_sample_alone_that_wins_as_often_as_it_loses():
  """At the reference P = 1/2 of every sample: it is the equilibrium of a fair game."""
  logp = np.array([[-1.0, -2.5]])

  def slope(win, ref):
    def loss(logp):
      s = scored.from_sequence_logps(logp, [[2, 3]], ref, reward_BK=win)
      return scored.evaluate(objectives.nash_md(0.3), s).loss

    return np.asarray(jax.jit(jax.grad(loss))(jnp.asarray(logp)))

  assert not slope([[0.5, 0.5]], logp).any()
  # Elsewhere the win rate above 1/2 balances beta times the log-ratio.
  np.testing.assert_allclose(slope([[0.5, 0.65]], logp - [[0.0, 0.5]]), 0, atol=1e-12)
  np.testing.assert_allclose(slope([[0.9, 0.5]], logp), [[-0.4 / 2, 0]], atol=1e-12)


def test_token_mixture_is_not_the_sequence_mixture():
  theta, ref, _ = sequence_game()
  first, then = (
    preference_games.mixture(*x, 0.5) for x in zip(theta, ref, strict=True)
  )
  by_token = np.exp(token_logps((first, then)).sum(-1))
  whole = preference_games.mixture(
    token_logps(theta).sum(-1), token_logps(ref).sum(-1), 0.5
  )
  assert by_token.sum() == pytest.approx(1)
  assert np.exp(whole).sum() == pytest.approx(1)
  assert np.abs(by_token - np.exp(whole)).sum() / 2 > 0.01
