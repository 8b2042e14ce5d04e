"""Theorems on the operations that losses and rollouts are made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from xpo_jax.ops import (
  ai_labels,
  discopop_losses,
  divergences,
  links,
  masked,
  pairing,
  policy_loss,
  preference_games,
  repetition,
  returns,
  selection,
  token_mdp,
)
from xpo_jax.testing import toy

pytestmark = pytest.mark.usefixtures("float64")

RNG = np.random.default_rng(0)
GRID = np.linspace(-3, 3, 13)


@pytest.mark.parametrize("name", links.LINKS)
def test_links_are_convex_surrogates_of_the_ranking_error(name):
  """Falling at 0 with the stated slope, above (m < 0) / 4, convex where it says so."""
  link = links.LINKS[name]
  value = np.asarray(link.fn(jnp.asarray(GRID)))
  if name in ("hinge", "squared", "exponential", "truncated_quadratic"):
    assert (value >= (GRID <= 0)).all()
  step = 1e-6
  slope = (link.fn(jnp.float64(step)) - link.fn(jnp.float64(-step))) / (2 * step)
  assert slope == pytest.approx(link.slope_at_0, rel=1e-5)
  middle = np.asarray(link.fn(jnp.asarray((GRID[:-1] + GRID[1:]) / 2)))
  convex = (middle <= (value[:-1] + value[1:]) / 2 + 1e-12).all()
  assert convex == link.convex


def test_exponential_continues_by_its_tangent():
  limit = 0.8 * np.log(np.finfo(np.float64).max)
  for x in (-2.0, 3.0):
    assert links.exponential(jnp.float64(x)) == pytest.approx(np.exp(-x))
  far = links.exponential(jnp.float64(-limit - 5.0))
  assert far == pytest.approx(6 * np.exp(limit))
  slope = jax.grad(links.exponential)(jnp.float64(-limit - 5.0))
  assert slope == pytest.approx(-np.exp(limit))


def logistic(m):
  return np.logaddexp(0, -m)


def test_discovered_losses_are_blends_of_logistic_exponential_and_hinge():
  """Appendix E of DiscoPOP, each from its formula; tau is the search's beta."""
  m = np.array([0.11, -0.04, 0.02, 0.3])
  z, n = m / 0.05, len(m)
  hinge = np.maximum(1 - m, 0)
  s = special.expit(m / 0.05)
  lrml = (1 - s) * logistic(m) + s * np.exp(-m)
  variance = ((z - z.mean()) ** 2).sum() / (n - 1)
  b = special.expit(variance)
  dbaql = b * logistic(m / 0.9) + (1 - b) * np.exp(-0.9 * m)
  q = 0.5 + 0.01 * (special.expit(z.mean()) - 0.5)
  b = special.expit(q - z)
  aql = b * logistic(m) + (1 - b) * hinge
  spread = np.sqrt(variance) * special.expit(-z).mean()
  q = 0.95 * spread + 0.05 * special.expit(z.mean())
  b = special.expit(0.1 * abs(z - q))
  aqfl = b * logistic(m) + (1 - b) * hinge
  padll = np.where(m < 0, 0.45, 0.9) * logistic(m)
  cell = (np.exp(-m) + logistic(m)) / 2
  for name, expected in (
    ("lrml", lrml),
    ("dbaql", dbaql),
    ("aql", aql),
    ("aqfl", aqfl),
    ("padll", padll),
    ("cell", cell),
  ):
    actual = jax.jit(getattr(discopop_losses, name))(jnp.asarray(m))
    np.testing.assert_allclose(actual, expected, rtol=1e-9, err_msg=name)
  correct = m > 0.1
  pfl = np.where(correct, 0.5 * logistic(m), 2 * hinge)
  np.testing.assert_allclose(discopop_losses.pfl(m, correct), pfl, rtol=1e-12)
  # A single row has no spread, and the root of 0 no infinite slope.
  alone = jnp.asarray([0.3])
  assert jnp.isfinite(jax.grad(lambda x: discopop_losses.aqfl(x).sum())(alone)).all()


T = np.exp(GRID)
F = {  # f(t) of the papers, normalised to f'(1) = 0
  "reverse_kl": lambda t: t * np.log(t) - t + 1,
  "forward_kl": lambda t: t - 1 - np.log(t),
  "jensen_shannon": lambda t: t * np.log(2 * t / (1 + t)) + np.log(2 / (1 + t)),
  "alpha(0.3)": lambda t: (t**0.7 - 0.7 * t - 0.3) / (0.3 * (0.3 - 1)),
  "total_variation": lambda t: abs(t - 1) / 2,
  "chi_square": lambda t: (t - 1) ** 2 / 2,
}


@pytest.mark.parametrize("name", F)
def test_f_is_the_papers_and_slope_is_its_derivative(name):
  """f(1) = f'(1) = 0, f' increases; limits of f and f' at 0 and infinity."""
  d = divergences.DIVERGENCES[name]
  np.testing.assert_allclose(d.f(jnp.asarray(GRID)), F[name](T), atol=1e-12)
  step = 1e-6 * T
  numeric = (F[name](T + step) - F[name](T - step)) / (2 * step)
  np.testing.assert_allclose(d.slope(jnp.asarray(GRID)), numeric, atol=1e-5)
  for bound, u in ((d.slope_at_0, -40.0), (d.slope_at_inf, 40.0)):
    slope = float(d.slope(jnp.float64(u)))
    assert (
      slope == pytest.approx(bound, abs=1e-3)
      if np.isfinite(bound)
      else (abs(slope) > 30)
    )
  at_0 = float(d.f(jnp.float64(-40.0)))
  assert (
    at_0 == pytest.approx(d.f_at_0, abs=1e-3) if np.isfinite(d.f_at_0) else (at_0 > 30)
  )


def test_divergence_between_distributions_counts_what_the_policy_has_given_up():
  p, q = np.array([0.5, 0.5, 0.0]), np.array([0.2, 0.5, 0.3])
  logp, logq = jnp.log(jnp.asarray([0.5, 0.5, 1.0])), jnp.log(q)
  logp = logp.at[2].set(-jnp.inf)
  tv = divergences.between(divergences.DIVERGENCES["total_variation"], logp, logq)
  assert tv == pytest.approx(abs(p - q).sum() / 2)
  kl = divergences.between(divergences.REVERSE_KL, logp, logq)
  assert kl == pytest.approx(special.rel_entr(p, q).sum())
  with jax.debug_nans(False):
    forward = divergences.between(divergences.FORWARD_KL, logp, logq)
  assert np.isinf(forward)


def test_averaging_both_orders_removes_a_bias_for_a_place():
  """A factor for the option shown first cancels in the sum of the two labels."""
  strength = np.log(np.array([[0.7, 0.3]]))
  even = ai_labels.debiased(strength, strength[:, ::-1])
  np.testing.assert_allclose(even, [[0.7, 0.3]])
  equal = np.zeros((1, 2))
  bias = np.array([[1.3, 0.0]])
  np.testing.assert_allclose(
    ai_labels.debiased(equal + bias, equal + bias), [[0.5] * 2]
  )
  shown, swapped = np.array([[2.0, 0.0]]), np.array([[0.5, 0.0]])
  first = (special.expit(2.0) + special.expit(-0.5)) / 2
  np.testing.assert_allclose(ai_labels.debiased(shown, swapped), [[first, 1 - first]])
  np.testing.assert_allclose(
    ai_labels.clamped(jnp.array([[0.9, 0.1], [0.55, 0.45]])), [[0.6, 0.4], [0.55, 0.45]]
  )
  ratings = np.log(np.array([[0.1, 0.2, 0.7], [1.0, 1.0, 1.0]]))
  np.testing.assert_allclose(ai_labels.expected_score(ratings), [2.6, 2.0])
  scores = np.array([1.0, 5.5, 10.0])
  np.testing.assert_allclose(ai_labels.rescaled(scores), [-1.0, 0.0, 1.0], atol=1e-12)


TOKENS = np.array([[[3, 1, 3, 1, 3, 0]]])
REAL = np.array([[[1, 1, 1, 1, 1, 0]]])


def test_repeated_ngrams_are_those_seen_before_in_the_completion():
  """Tokens inside a repeat: 3 1 comes back at 2, 1 3 at 3."""
  repeated = jax.jit(repetition.repeated_ngrams, static_argnums=2)
  marks = repeated(TOKENS, REAL, 2)
  np.testing.assert_array_equal(marks, [[[0, 0, 1, 1, 1, 0]]])
  marks = repeated(TOKENS, REAL, 3)
  np.testing.assert_array_equal(marks, [[[0, 0, 1, 1, 1, 0]]])
  marks = repeated(TOKENS, REAL, 4)
  assert not marks.any()
  single = repeated(TOKENS, REAL, 1)
  np.testing.assert_array_equal(single, [[[0, 0, 1, 1, 1, 0]]])
  before = np.asarray(repetition.previous_tokens(TOKENS, REAL, 5, always=(4,)))[0, 0]
  expected = [{4}, {3, 4}, {1, 4}, {3, 4}, {1, 4}, set()]
  assert [set(np.nonzero(row)[0]) for row in before] == expected


def test_unlikelihood_of_the_likeliest_token_stays_exact():
  logits = jnp.asarray([[[[60.0, 0.0, 1.0]]]])
  unlikelihood = jax.jit(repetition.unlikelihood)
  for token in range(3):
    candidate = jnp.eye(3)[token].reshape(1, 1, 1, 3)
    rest = np.delete(np.asarray(logits)[0, 0, 0], token)
    expected = special.logsumexp(logits) - special.logsumexp(rest)
    actual = unlikelihood(logits, candidate)[0, 0, 0]
    assert actual == pytest.approx(expected, rel=1e-9, abs=1e-25)


def test_masked_means_read_real_tokens_only():
  x = np.array([[[1.0, 2.0, 6.0, 99.0], [5.0, 99.0, 99.0, 99.0]]])
  mask = np.array([[[1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]]])
  np.testing.assert_allclose(masked.length(mask), [[3.0, 1.0]])
  np.testing.assert_allclose(masked.sum_T(x, mask), [[9.0, 5.0]])
  np.testing.assert_allclose(masked.mean_T(x, mask), [[3.0, 5.0]])
  np.testing.assert_allclose(masked.first(x, mask), [[1.0, 5.0]])
  np.testing.assert_allclose(masked.last(x, mask), [[6.0, 5.0]])
  np.testing.assert_allclose(masked.per_token(x[..., 0], 0 * x[..., 0]), x[..., 0])
  longer = returns.one_longer(mask)
  np.testing.assert_array_equal(longer, [[[1, 1, 1, 1], [1, 1, 0, 0]]])
  # A completion that was resumed after a gap: first and last of all its tokens.
  gap = np.array([[[0.0, 1.0, 0.0, 1.0]]])
  row = np.array([[[4.0, 5.0, 6.0, 7.0]]])
  assert (masked.first(row, gap)[0, 0], masked.last(row, gap)[0, 0]) == (5.0, 7.0)


def test_reductions_differ_only_in_the_weight_of_a_token():
  s = toy.scored(K=2, B=3, dtype=np.float64)
  s = s.replace(weight_B=jnp.array([1.0, 2.0, 0.0]))
  x, mask = np.asarray(s.logp_BKT), np.asarray(s.mask_BKT)
  weight = np.array([1.0, 2.0, 0.0])[:, None]
  length = mask.sum(-1)
  total = (x * mask).sum(-1)
  each = {
    policy_loss.token_mean: (total * weight).sum() / (length * weight).sum(),
    policy_loss.mean_of_means: (total / length * weight).sum() / (2 * weight).sum(),
    policy_loss.mean_of_sums: (total * weight).sum() / (2 * weight).sum(),
  }
  for reduce, expected in each.items():
    assert reduce(s, s.logp_BKT).value == pytest.approx(expected)
  halves = policy_loss.mean_of_sums(s, s.logp_BKT, length=2.0).value
  assert halves == pytest.approx(each[policy_loss.mean_of_sums] / 2)
  padded = policy_loss.mean_of_means(s, s.logp_BKT, eps=1.0).value
  expected = (total / (length + 1) * weight).sum() / (2 * weight).sum()
  assert padded == pytest.approx(expected)
  empty = s.replace(mask_BKT=s.mask_BKT.at[0, 0].set(0))
  total[0, 0] = 0
  for count_empty, number in ((True, 6.0), (False, 5.0)):
    value = policy_loss.mean_of_sums(empty, s.logp_BKT, count_empty=count_empty).value
    assert value == pytest.approx((total * weight).sum() / number)


REWARDS = np.array([[0.1, 0.9, 0.4, 5.0], [2.0, 1.0, 1.5, 0.0], [1.0, 1.0, 1.0, 1.0]])
PRESENT = np.array([[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])


def test_pairs_hold_the_better_completion_first_and_drop_ties():
  best = pairing.best_worst(REWARDS, PRESENT)
  np.testing.assert_array_equal(best.chosen_B[:2], [1, 0])
  np.testing.assert_array_equal(best.rejected_B[:2], [0, 3])
  np.testing.assert_allclose(best.margin_B, [0.8, 2.0, 0.0])
  np.testing.assert_array_equal(best.keep_B, [1, 1, 0])
  second = pairing.best_second(REWARDS, PRESENT)
  np.testing.assert_array_equal(second.chosen_B[:2], [1, 0])
  np.testing.assert_array_equal(second.rejected_B[:2], [2, 2])
  first = pairing.best_first(REWARDS, PRESENT)
  np.testing.assert_array_equal(first.chosen_B[:2], [1, 0])
  np.testing.assert_array_equal(first.rejected_B[:2], [0, 1])
  two = pairing.first_two(REWARDS, PRESENT)
  np.testing.assert_array_equal(two.chosen_B[:2], [1, 0])
  np.testing.assert_array_equal(two.rejected_B[:2], [0, 1])
  np.testing.assert_allclose(two.margin_B, [0.8, 1.0, 0.0])
  # A penalty on length can turn the choice; the margin stays that of the rewards.
  length = np.array([[1.0, 9.0, 1.0, 1.0], [1.0] * 4, [1.0] * 4])
  short = pairing.best_worst(REWARDS, PRESENT, length, 0.1)
  np.testing.assert_array_equal(short.chosen_B[:2], [2, 0])
  np.testing.assert_array_equal(short.rejected_B[:2], [0, 3])


def test_tournament_of_a_transitive_game_crowns_the_best_after_k_minus_1_games():
  strength = np.array([[0.3, 2.0, -1.0, 0.7, 0.1]])
  win, present = preference_games.from_rewards(strength), np.ones((1, 5))
  np.testing.assert_allclose(
    win, special.expit(strength[:, :, None] - strength[:, None])
  )
  tournament = jax.jit(pairing.tournament)
  games = tournament(win, present)
  winner, loser = (np.asarray(x)[0] for x in (games.winner_BJ, games.loser_BJ))
  assert len(winner) == 4
  assert winner[-1] == strength.argmax()
  assert (strength[0, winner] > strength[0, loser]).all()
  assert sorted(loser) == [0, 2, 3, 4]  # each but the best loses once
  opening = jax.jit(pairing.first_round)(win, present)
  np.testing.assert_array_equal(opening.winner_BJ, [[1, 3]])
  np.testing.assert_array_equal(opening.loser_BJ, [[0, 2]])
  absent = tournament(win, np.array([[1.0, 0.0, 1.0, 1.0, 1.0]]))
  kept = np.asarray(absent.keep_BJ)[0] > 0
  assert np.asarray(absent.winner_BJ)[0][-1] == 3
  assert not (np.asarray(absent.winner_BJ)[0][kept] == 1).any()


def test_win_rates_are_antisymmetric():
  raw = RNG.uniform(size=(1, 3, 3))
  even = np.asarray(preference_games.symmetrised(raw))
  np.testing.assert_allclose(even + np.swapaxes(even, 1, 2), 1, rtol=1e-12)
  np.testing.assert_allclose(preference_games.symmetrised(even), even, rtol=1e-12)
  rate = preference_games.win_rate(even, np.array([[1.0, 0.0, 1.0]]))
  expected = [(0.5 + even[0, 0, 2]) / 2, 0, (0.5 + even[0, 2, 0]) / 2]
  np.testing.assert_allclose(rate, [expected])
  np.testing.assert_allclose(
    preference_games.pair_win_rates(np.array([0.8])), [[0.8, 0.2]]
  )


def test_bradley_terry_of_a_game_recovers_the_rewards_it_was_made_of():
  """Up to their mean; in a cycle the best rewards are all equal."""
  reward = np.array([0.5, -1.0, 0.2])
  logp = special.log_softmax([0.1, 0.7, -0.3])
  win = special.expit(reward[:, None] - reward)
  fitted = preference_games.bradley_terry(win, jnp.asarray(logp))
  np.testing.assert_allclose(fitted, reward - reward.mean(), atol=1e-8)
  cycle = np.array([[0.5, 0.9, 0.1], [0.1, 0.5, 0.9], [0.9, 0.1, 0.5]])
  fitted = preference_games.bradley_terry(cycle, jnp.log(jnp.ones(3) / 3))
  np.testing.assert_allclose(fitted, 0, atol=1e-10)


def test_geometric_mixture_interpolates_log_probabilities():
  p, q = special.log_softmax(RNG.normal(size=(2, 4)), axis=1)
  for share, expected in ((0.0, p), (1.0, q)):
    mixed = preference_games.mixture(p, q, share)
    np.testing.assert_allclose(mixed, expected, rtol=1e-12)
  middle = preference_games.mixture(p, q, 0.25)
  np.testing.assert_allclose(middle, special.log_softmax(0.75 * p + 0.25 * q))


def test_selection_without_replacement_is_a_successive_draw():
  """Probability of the first, and of both, of a draw of two of three by weight."""
  weight = np.array([0.5, 0.3, 0.2])
  keys = jax.random.split(jax.random.key(0), 6000)
  one = np.ones(3)

  def draw(keep):
    run = jax.vmap(
      lambda key: selection.without_replacement(
        jnp.log(weight), keep, one, np.arange(3), key
      )
    )
    return np.asarray(jax.jit(run)(keys))

  error = 4 * np.sqrt(0.25 / len(keys))
  np.testing.assert_allclose(draw(1 / 3).mean(0), weight, atol=error)
  two = draw(0.7)
  np.testing.assert_array_equal(two.sum(1), 2)
  left_out = [
    sum(
      weight[i] * weight[j] / (1 - weight[i])
      for i in range(3)
      for j in range(3)
      if len({i, j, k}) == 3
    )
    for k in range(3)
  ]
  np.testing.assert_allclose(1 - two.mean(0), left_out, atol=error)
  assert draw(1e-6).sum(1).max() == 1  # at least one
  filler = selection.without_replacement(
    jnp.zeros(3), 1.0, np.array([1.0, 0.0, 1.0]), np.arange(3), keys[0]
  )
  np.testing.assert_array_equal(filler, [1, 0, 1])


def test_best_and_top_of_the_batch():
  np.testing.assert_array_equal(selection.best_of(REWARDS, PRESENT)[:2], [1, 0])
  reward = np.array([0.3, 5.0, -1.0, 2.0, 1.0])
  np.testing.assert_array_equal(selection.top_share(reward, 0.4), [1, 3])
  easy = selection.easiest_first(np.array([0.4, 0.9, 0.4, 0.6]))
  np.testing.assert_array_equal(easy, [1, 3, 0, 2])
  stages = [selection.sdpo_stage(k, (3, 4, 2)) for k in (1, 2, 3)]
  assert [x.rows for x in stages] == [slice(0, 3), slice(3, 7), slice(7, 9)]
  assert [x.ref for x in stages] == [0, 1, 2]


def test_soft_bellman_is_the_log_partition_of_all_completions():
  """V*(prompt) = beta log E_ref exp(R / beta), and pi* the tilted reference."""
  V, depth, beta = 2, 3, 0.7
  next_SV, paths = token_mdp.tree(V, depth), token_mdp.sequences(V, depth)
  shape = next_SV.shape
  reward = RNG.normal(size=shape)
  ref = special.log_softmax(RNG.normal(size=shape), axis=1)
  solve = jax.jit(token_mdp.soft_bellman, static_argnums=4)
  best = solve(reward, ref, next_SV, beta, depth)
  total, log_ref, logp = (
    np.asarray(token_mdp.along(x, next_SV, paths)).sum(-1)
    for x in (reward, ref, best.logp_SV)
  )
  value = beta * special.logsumexp(log_ref + total / beta)
  assert best.value_S[0] == pytest.approx(value)
  np.testing.assert_allclose(logp, log_ref + (total - value) / beta, atol=1e-12)
