"""Theorems on single tokens: advantages, divergences, unlikelihood and contrast."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.ops import divergences, repetition, returns, token_mdp, token_stats

pytestmark = pytest.mark.usefixtures("float64")

V, T, BETA = 3, 3, 0.5
RNG = np.random.default_rng(0)


def softmax(x):
  return special.softmax(x, axis=-1)


@pytest.fixture(scope="module")
def reference_advantage():
  """All completions of a token MDP, and pi* ~ ref exp(Q / beta), Q the reference's.

  Returns:
    Their record, their rewards, and the reference's value of the prompt.
  """
  with jax.enable_x64(True):
    next_SV, paths = np.asarray(token_mdp.tree(V, T)), token_mdp.sequences(V, T)
    S = len(next_SV)
    ref = special.log_softmax(RNG.normal(size=(S, V)), axis=1)
    reward = RNG.normal(size=(S, V))
    value = np.zeros(S + 1)
    for s in reversed(range(S)):
      value[s] = np.exp(ref[s]) @ (reward[s] + value[next_SV[s]])
    q = reward + value[next_SV]
    policy = special.log_softmax(ref + q / BETA, axis=1)
    number = np.broadcast_to(np.arange(S)[:, None], (S, V))
    state = np.asarray(token_mdp.along(number, next_SV, paths))
    s = scored.from_logits(
      policy[state][:, None],
      paths[:, None],
      np.ones((len(paths), 1, T)),
      ref[state][:, None],
      stats=objectives.tdpo1().stats,
    )
    total = np.asarray(token_mdp.along(reward, next_SV, paths)).sum(-1)
    return s, total, value[0]


def test_tdpo_reward_telescopes_the_references_advantage(reference_advantage):
  """beta (log pi*/ref + KL(ref || pi*)) is A_ref, which sums to reward - V_ref."""
  s, total, start = reference_advantage
  reward = objectives.tdpo_rewards(s, BETA)[:, 0]
  np.testing.assert_allclose(reward, total - start, atol=1e-12)


def test_tdpo1_of_that_policy_is_the_bradley_terry_loss_of_the_rewards(
  reference_advantage,
):
  s, total, _ = reference_advantage

  def pair(x):
    return x if x is None or x.ndim < 2 else jnp.concatenate([x, x[::-1]], 1)

  two = jax.tree.map(pair, s)
  gap = total - total[::-1]
  tested = [objectives.tdpo1(BETA), objectives.dpo(BETA)]
  tested += [objectives.tdpo2(BETA, alpha) for alpha in (1.0, 0.0, 0.5)]
  run = jax.jit(lambda s: [scored.evaluate(o, s).per_example_B for o in tested])
  tdpo1, dpo, same, none, half = run(two)
  np.testing.assert_allclose(tdpo1, np.logaddexp(0, -gap), rtol=1e-10)
  # TDPO2 at alpha = 1 has the same value; at 0 it is DPO.
  np.testing.assert_allclose(same, tdpo1, rtol=1e-12)
  np.testing.assert_allclose(none, dpo, rtol=1e-12)
  margins = [np.log(np.expm1(np.asarray(x))) for x in (dpo, half, same)]
  np.testing.assert_allclose(margins[1], (margins[0] + margins[2]) / 2, atol=1e-9)


LOGITS, OTHER = RNG.normal(size=(2, 2, 1, 3, 5))  # two rows of at most three tokens
TOKENS = np.array([[[0, 4, 2]], [[3, 3, 1]]])
MASK = np.array([[[1.0, 1.0, 1.0]], [[1.0, 1.0, 0.0]]])
ONE_HOT = np.eye(5)[TOKENS]
TARGET = (softmax(LOGITS) * ONE_HOT).sum(-1, keepdims=True)  # p of the token
DOWN = -np.log1p(-TARGET)


def slope(objective, logits=LOGITS, tokens=TOKENS, ref=OTHER, key=None, **columns):
  """Loss of a record scored from logits, and its gradient in the policy's logits."""

  def loss(logits):
    s = scored.from_logits(
      logits, tokens, MASK, jnp.asarray(ref), stats=objective.stats, **columns
    )
    return scored.evaluate(objective, s, objective.init(), key).loss

  return jax.device_get(jax.jit(jax.value_and_grad(loss))(jnp.asarray(logits)))


def test_retained_kl_is_forward_with_the_gradient_policy_minus_reference():
  loss, gradient = slope(objectives.retain_kl())
  p, ref = softmax(LOGITS), softmax(OTHER)
  kl = (ref * np.log(ref / p)).sum(-1)
  assert loss == pytest.approx((kl * MASK).sum() / MASK.sum())
  expected = (p - ref) * MASK[..., None] / MASK.sum()
  np.testing.assert_allclose(gradient, expected, atol=1e-14)
  loss, gradient = slope(objectives.retain_kl(), OTHER)
  assert loss == pytest.approx(0, abs=1e-14)
  np.testing.assert_allclose(gradient, 0, atol=1e-14)


def test_statistics_of_the_vocabulary_have_their_textbook_gradients():
  """d KL(p || q) = p (log p/q - KL), d H = -p (log p + H), in the logits of p."""
  p, q = softmax(LOGITS), softmax(OTHER)

  def value_and_slope(stat):
    def total(logits):
      roles = {"policy": logits, "ref": jnp.asarray(OTHER)}
      return stat.fn(roles, TOKENS).sum(), stat.fn(roles, TOKENS)

    run = jax.jit(jax.grad(total, has_aux=True))
    return run(jnp.asarray(LOGITS))

  gradient, kl = value_and_slope(token_stats.POLICY_KL)
  expected = (p * np.log(p / q)).sum(-1)
  np.testing.assert_allclose(kl, expected, rtol=1e-12)
  np.testing.assert_allclose(
    gradient, p * (np.log(p / q) - expected[..., None]), atol=1e-14
  )
  gradient, entropy = value_and_slope(token_stats.ENTROPY)
  expected = special.entr(p).sum(-1)
  np.testing.assert_allclose(entropy, expected, rtol=1e-12)
  np.testing.assert_allclose(
    gradient, -p * (np.log(p) + expected[..., None]), atol=1e-14
  )
  _, rest = value_and_slope(token_stats.REST_LOGP)
  np.testing.assert_allclose(rest, np.log1p(-TARGET[..., 0]), rtol=1e-12)


def test_impossible_tokens_add_nothing_to_divergence_and_entropy():
  masked = np.where(np.arange(5) == 1, -np.inf, LOGITS)
  p, q = np.delete(softmax(masked), 1, -1), np.delete(softmax(OTHER), 1, -1)
  kl = token_stats.kl(jnp.asarray(masked), jnp.asarray(OTHER))
  np.testing.assert_allclose(kl, (p * np.log(p / q)).sum(-1), rtol=1e-12)
  entropy = token_stats.entropy(jnp.asarray(masked))
  np.testing.assert_allclose(entropy, special.entr(p).sum(-1), rtol=1e-12)


def test_temperature_divides_the_logits_of_both_policies_and_of_no_value_head():
  stat = token_stats.tempered(token_stats.POLICY_KL, 2.0)
  roles = {"policy": jnp.asarray(LOGITS), "ref": jnp.asarray(OTHER)}
  p, q = softmax(LOGITS / 2), softmax(OTHER / 2)
  expected = (p * np.log(p / q)).sum(-1)
  np.testing.assert_allclose(stat.fn(roles, TOKENS), expected, rtol=1e-12)
  value = token_stats.tempered(token_stats.VALUE, 2.0)
  head = {"policy.value": jnp.asarray(LOGITS[..., 0])}
  np.testing.assert_array_equal(value.fn(head, TOKENS), LOGITS[..., 0])


@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_unlikelihood_gradient_is_the_likelihoods_times_minus_the_odds(alpha):
  """Up: p - onehot. Down: alpha p_t / (1 - p_t) (onehot - p). Over all tokens."""
  labels = np.array([[1.0], [0.0]])
  loss, gradient = slope(objectives.unlikelihood(alpha), desirable_BK=labels)
  down = alpha * TARGET / (1 - TARGET) * (ONE_HOT - softmax(LOGITS))
  expected = np.where(labels[..., None, None] > 0, softmax(LOGITS) - ONE_HOT, down)
  expected *= MASK[..., None] / MASK.sum()
  np.testing.assert_allclose(gradient, expected, atol=1e-14)
  token = np.where(labels[..., None, None] > 0, -np.log(TARGET), DOWN * alpha)
  assert loss == pytest.approx((token[..., 0] * MASK).sum() / MASK.sum())


def test_token_unlikelihood_adds_the_penalty_of_earlier_tokens():
  """SFT - alpha sum over c in C_t of log(1 - p(c)), C_t the other earlier tokens."""
  candidates = np.zeros(LOGITS.shape)
  candidates[0, 0, 1, 0] = candidates[0, 0, 2, 0] = candidates[0, 0, 2, 4] = 1
  actual = repetition.previous_tokens(TOKENS, MASK, 5)
  np.testing.assert_array_equal(actual, candidates)
  o = objectives.token_unlikelihood(0.7)

  def loss(logits):
    s = scored.from_logits(logits, TOKENS, MASK, stats=o.stats)
    penalty = repetition.unlikelihood(logits, jnp.asarray(candidates))
    return scored.evaluate(o, s.replace(extra={"penalty_BKT": penalty})).loss

  value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(LOGITS))
  p = softmax(LOGITS)
  token = -np.log(TARGET[..., 0]) - 0.7 * (candidates * np.log1p(-p)).sum(-1)
  assert value == pytest.approx((token * MASK).sum() / MASK.sum())
  odds = candidates * p / (1 - p)
  penalty = odds - odds.sum(-1, keepdims=True) * p
  expected = (p - ONE_HOT + 0.7 * penalty) * MASK[..., None] / MASK.sum()
  np.testing.assert_allclose(gradient, expected, atol=1e-14)


TWO = LOGITS[..., :2]
TWO_TOKENS = TOKENS % 2
BAD = np.zeros((2, 1))


def test_cringe_over_two_tokens_is_unlikelihood():
  """The only other token is the contrast: log(1 + exp(s_t - s)) = -log(1 - p_t)."""
  for labels in (BAD, np.array([[1.0], [0.0]])):
    given = {"tokens": TWO_TOKENS, "ref": TWO, "desirable_BK": labels}
    cringe = slope(objectives.cringe(0.6), TWO, **given)
    unlikelihood = slope(objectives.unlikelihood(0.6), TWO, **given)
    assert cringe[0] == pytest.approx(unlikelihood[0])
    np.testing.assert_allclose(cringe[1], unlikelihood[1], atol=1e-14)


def test_cringe_contrasts_with_the_likeliest_other_token():
  """Slopes +-sigma(s_t - s_c), none for c where it is detached."""
  others = np.where(ONE_HOT > 0, -np.inf, LOGITS)
  top = np.eye(5)[others.argmax(-1)]
  weight = special.expit((LOGITS * (ONE_HOT - top)).sum(-1, keepdims=True))
  share = MASK[..., None] / MASK.sum()
  loss, gradient = slope(objectives.cringe(), desirable_BK=BAD)
  np.testing.assert_allclose(gradient, weight * (ONE_HOT - top) * share, atol=1e-14)
  assert loss == pytest.approx((-np.log1p(-weight) * share).sum())
  _, gradient = slope(objectives.cringe(detach=True), desirable_BK=BAD)
  np.testing.assert_allclose(gradient, weight * ONE_HOT * share, atol=1e-14)


def test_cringe_draws_its_contrast_from_the_softmax_of_the_top_k():
  o = objectives.cringe(k=2)
  s = scored.from_logits(LOGITS, TOKENS, MASK, stats=o.stats, desirable_BK=BAD)
  keys = jax.random.split(jax.random.key(0), 4000)
  prepare = jax.vmap(lambda key: o.prepare(s, (), key)[0].rows)
  drawn = np.asarray(jax.jit(prepare)(keys))
  top = np.sort(np.where(ONE_HOT > 0, -np.inf, LOGITS), -1)[..., -1:-3:-1]
  second = softmax(top)[..., 1]
  error = 4 * np.sqrt(second * (1 - second) / len(keys))
  assert (abs(drawn.mean(0) - second) < error).all()
  # Rows and tokens are drawn apart.
  flat = drawn.reshape(len(keys), -1)
  between = np.corrcoef(flat.T) - np.eye(flat.shape[1])
  assert abs(between).max() < 0.1
  # The loss takes the drawn one.
  contrast = np.take_along_axis(top, drawn[0][..., None], -1)[..., 0]
  token = np.logaddexp(0, (LOGITS * ONE_HOT).sum(-1) - contrast)
  loss = jax.jit(lambda key: scored.evaluate(o, s, key=key).loss)(keys[0])
  assert loss == pytest.approx((token * MASK).sum() / MASK.sum())


def pairwise_cringe(logits, **hparams):
  """Loss and slope of one pair of three tokens each, and the parts of the formula."""
  o = objectives.pairwise_cringe(**hparams)
  tokens, mask = TWO_TOKENS.reshape(1, 2, 3), MASK.reshape(1, 2, 3)

  def loss(logits):
    s = scored.from_logits(logits, tokens, mask, stats=o.stats)
    return scored.evaluate(o, s).loss

  return jax.device_get(jax.jit(jax.value_and_grad(loss))(logits.reshape(1, 2, 3, 2)))


def test_pairwise_cringe_gates_likelihood_and_contrast_by_the_margin():
  """sigma((b - gap) / tau) (CRINGE(y_l) - log pi(y_w)); 1/2 at the margin."""
  p = softmax(TWO)
  own = np.eye(2)[TWO_TOKENS]
  token = np.log((p * own).sum(-1)) * MASK
  logp = token.sum((1, 2))
  contrast = -(np.log1p(-(p * own).sum(-1)) * MASK)[1].sum()
  gap, total = logp[0] - logp[1], 0.6 * contrast - logp[0]
  for margin, temperature, gate in (
    (gap, 2.0, 0.5),
    (gap + 1.0, 2.0, special.expit(0.5)),
    (gap - 1.0, 0.02, special.expit(-50)),
    (gap + 1.0, 0.02, 1.0),
  ):
    hparams = {"alpha": 0.6, "margin": margin, "temperature": temperature}
    loss, gradient = pairwise_cringe(TWO, **hparams)
    assert loss == pytest.approx(gate * total)
    detached, fixed = pairwise_cringe(TWO, **hparams, detach_gate=True)
    assert detached == pytest.approx(loss)
    # d gap / d logits is onehot - p on the chosen, p - onehot on the rejected.
    gap_slope = (own - p) * MASK[..., None] * np.array([1, -1])[:, None, None, None]
    odds = (p * own).sum(-1, keepdims=True)
    odds = odds / (1 - odds)
    inner = np.stack([(p - own)[0], 0.6 * (odds * (own - p))[1]]) * MASK[..., None]
    np.testing.assert_allclose(fixed[0], gate * inner[:, 0], atol=1e-12)
    through = -gate * (1 - gate) / temperature * total * gap_slope
    expected = (gate * inner + through)[:, 0]
    np.testing.assert_allclose(gradient[0], expected, atol=1e-12)


def wpo_record(logits):
  tokens, mask = TOKENS.reshape(1, 2, 3), MASK.reshape(1, 2, 3)
  ref = jnp.asarray(OTHER.reshape(1, 2, 3, 5))
  return scored.from_logits(logits, tokens, mask, ref, stats=objectives.wpo().stats)


def test_wpo_is_dpo_where_all_tokens_are_as_likely_and_weighs_by_typicality():
  """w = prod over y of exp(mean_t log p_t - log sum_v p_v^2), clipped, no gradient."""

  @jax.jit
  def run(logits, max_weight):
    def loss(logits, o):
      return scored.evaluate(o, wpo_record(logits)).loss

    each = (objectives.wpo(BETA, 0.0, max_weight), objectives.dpo(BETA))
    return [jax.value_and_grad(loss)(logits, o) for o in each]

  actual, expected = run(jnp.zeros((1, 2, 3, 5)), 1.0)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, 1e-12), actual, expected)
  p = softmax(LOGITS)
  typical = np.log(TARGET[..., 0]) - np.log((p**2).sum(-1))
  weight = np.exp(((typical * MASK).sum(-1) / MASK.sum(-1)).sum())
  logits = jnp.asarray(LOGITS.reshape(1, 2, 3, 5))
  for bound in (100.0, weight / 2):
    actual, plain = run(logits, bound)
    factor = min(weight, bound)
    np.testing.assert_allclose(actual[0], factor * plain[0], rtol=1e-12)
    np.testing.assert_allclose(actual[1], factor * plain[1], rtol=1e-12)


REWARD, VALUE = RNG.normal(size=(2, 1, 2, 5))
LONG = np.array([[[1.0, 1, 1, 1, 1], [1, 1, 1, 0, 0]]])


def k_step_advantages(gamma, lam):
  """(1 - lam) sum_k lam^(k - 1) A^(k), the rest on the last, step by step."""
  advantage = np.zeros(LONG.shape)
  for j, length in enumerate((5, 3)):
    r, v = REWARD[0, j], np.append(VALUE[0, j, :length], 0.0)
    for t in range(length):
      n, mixed = length - t, 0.0
      for k in range(1, n + 1):
        gain = sum(gamma**i * r[t + i] for i in range(k)) + gamma**k * v[t + k] - v[t]
        mixed += (lam ** (n - 1) if k == n else (1 - lam) * lam ** (k - 1)) * gain
      advantage[0, j, t] = mixed
  return advantage


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.8, 0.5), (0.9, 0.0)])
def test_gae_is_the_exponential_average_of_k_step_advantages(gamma, lam):
  advantage, target = returns.gae(REWARD, VALUE, LONG, gamma, lam)
  expected = k_step_advantages(gamma, lam)
  np.testing.assert_allclose(advantage, expected, atol=1e-12)
  np.testing.assert_allclose(target, (expected + VALUE) * LONG, atol=1e-12)


def test_ppo_learns_from_whitened_gae_of_the_penalised_reward():
  """k1 of every token, the score at the last one; the value's target not whitened."""
  logp, old, ref = RNG.normal(size=(3, 1, 2, 5))
  score = np.array([[0.7, -1.1]])
  s = scored.from_token_logps(
    logp,
    LONG,
    ref,
    old_logp_BKT=old,
    value_BKT=VALUE,
    old_value_BKT=VALUE,
    reward_BK=score,
  )
  shaped = -0.3 * (old - ref) * LONG
  shaped[0, [0, 1], [4, 2]] += score[0]
  real = LONG > 0
  for whiten in (False, True):
    o = objectives.ppo(0.3, gamma=0.9, lam=0.6, whiten_reward=whiten)
    aux, _ = jax.jit(lambda s, o=o: o.prepare(s, (), None))(s)
    scale = np.sqrt(shaped[real].var() + 1e-8) if whiten else 1.0
    # Scaled about the mean, which is kept.
    mean = shaped[real].mean() if whiten else 0.0
    reward = (mean + (shaped - mean) / scale) * LONG
    expected, _ = returns.gae(reward, VALUE, LONG, 0.9, 0.6)
    expected = np.asarray(expected)
    white = (expected - expected[real].mean()) / np.sqrt(expected[real].var() + 1e-8)
    np.testing.assert_allclose(np.asarray(aux.rows[0])[real], white[real], rtol=1e-9)
    np.testing.assert_allclose(aux.rows[1], (expected + VALUE) * LONG, rtol=1e-9)


def test_rto_credit_sums_to_the_implicit_reward_and_is_bounded():
  dpo, ref = RNG.normal(size=(2, 1, 2, 5))
  credit = returns.rto_credit(dpo, ref, LONG, 0.4)
  expected = 0.4 * ((dpo - ref) * LONG).sum(-1)
  np.testing.assert_allclose(credit.sum(-1), expected, rtol=1e-12)
  bounded = returns.rto_credit(dpo, ref, LONG, 0.4, max_credit=0.1)
  np.testing.assert_allclose(bounded, np.clip(credit, -0.1, 0.1), rtol=1e-12)
  kl, score = RNG.normal(size=(1, 2, 5)), np.array([[3.0, -5.0]])
  reward = returns.rto_reward(credit, score, kl, LONG, 0.2, max_score=4.0)
  total = credit.sum(-1) + np.array([[3.0, -4.0]]) - 0.2 * (kl * LONG).sum(-1)
  np.testing.assert_allclose(reward.sum(-1), total, rtol=1e-12)
  placed = returns.place(score, LONG)
  np.testing.assert_array_equal(np.argmax(abs(placed), -1), [[4, 2]])


def test_k3_is_the_bregman_divergence_and_k1_plus_and_k3_plus_keep_their_values():
  u = np.array([-2.0, 0.0, 0.7])
  np.testing.assert_allclose(divergences.k3(u), np.exp(-u) - 1 + u, rtol=1e-12)
  clipped = divergences.clipped(divergences.K3, 1.0, log_ratio_limit=1.5)
  inside = np.clip(u, -1.5, 1.5)
  np.testing.assert_allclose(
    clipped.fn(u), np.clip(np.exp(-inside) - 1 + inside, -1, 1), rtol=1e-12
  )
  for mixed, value in ((divergences.K1_PLUS, u), (divergences.K3_PLUS, None)):
    expected = divergences.k3(u) if value is None else value
    np.testing.assert_allclose(mixed.fn(u), expected, rtol=1e-12)
    slope = jax.vmap(jax.grad(mixed.fn))(jnp.asarray(u))
    np.testing.assert_allclose(slope, u, atol=1e-12)  # k2's
