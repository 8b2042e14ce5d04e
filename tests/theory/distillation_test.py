"""Distillation: expected gradients are those of the KL of sequences.

Every completion of a small tree stands in the batch once, weighted by its probability
under the policy that samples, so that a mean over the batch is an expectation.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.ops import token_mdp, token_stats

pytestmark = pytest.mark.usefixtures("float64")

V, T = 3, 3
S = sum(V**t for t in range(T))


def transitions():
  return token_mdp.tree(V, T)


def completions():
  return token_mdp.sequences(V, T)


@pytest.fixture(scope="module")
def logits():
  """Logits of the policy and of the teacher in every state, `[S, V]`."""
  rng = np.random.default_rng(3)
  return rng.normal(size=(S, V)), 1.5 * rng.normal(size=(S, V))


def along(x_SV):
  return token_mdp.along(x_SV, transitions(), completions())


def states(x_SV):
  """`x` in the state before each token of each path, `[N, T, V]`."""
  return jnp.stack([along(jnp.broadcast_to(x[:, None], (S, V))) for x in x_SV.T], -1)


def total(logits_SV):
  """Log-probability of every path, `[N]`."""
  return along(jax.nn.log_softmax(logits_SV)).sum(-1)


def sequence_kl(of, to):
  """KL(of || to) of whole completions, by enumeration."""
  logp, logq = total(of), total(to)
  return (jnp.exp(logp) * (logp - logq)).sum()


def expected(objective, logits, sampler=None):
  """Gradient in the policy of the expected loss on the samples of `sampler`.

  Args:
    objective: the objective.
    logits: of policy and teacher.
    sampler: `[S, V]` log-probabilities; None: the policy itself.
  """
  policy, teacher = (jnp.asarray(x) for x in logits)
  old = along(jax.nn.log_softmax(policy))
  sampler = jax.nn.log_softmax(policy) if sampler is None else sampler
  weight = jnp.exp(along(sampler).sum(-1))

  def loss(policy):
    s = scored.from_logits(
      states(policy)[:, None],
      jnp.asarray(completions())[:, None],
      jnp.ones((len(completions()), 1, T)),
      teacher_logits_BKTV=states(teacher)[:, None],
      stats=objective.stats,
      weight_B=weight,
    )
    return scored.evaluate(objective, s.replace(old_logp_BKT=old[:, None])).loss

  return jax.jit(jax.grad(loss))(policy)


def visited_kl(logits, fixed):
  """sum_t KL(policy || teacher) at the states that a fixed policy visits."""
  policy, teacher = logits
  logp, logq = (jax.nn.log_softmax(states(x)) for x in (policy, teacher))
  kl = (jnp.exp(logp) * (logp - logq)).sum((-2, -1))
  return (jnp.exp(total(fixed)) * kl).sum()


def test_sampled_reverse_kl_has_the_gradient_of_the_kl_of_sequences(logits):
  gradient = expected(objectives.on_policy_distillation(1.0), logits)
  exact = jax.jit(jax.grad(sequence_kl))(*logits)
  np.testing.assert_allclose(gradient, exact, atol=1e-10)
  assert np.abs(exact).max() > 0.05


def test_without_later_tokens_it_is_the_full_kl_at_visited_positions(logits):
  policy, teacher = logits
  exact = jax.grad(lambda x: visited_kl((x, teacher), policy))(policy)
  myopic = expected(objectives.on_policy_distillation(0.0), logits)
  np.testing.assert_allclose(myopic, exact, atol=1e-10)
  # The loss over the whole vocabulary is the same in expectation, per token.
  over_vocabulary = expected(objectives.gkd(1.0), logits)
  np.testing.assert_allclose(T * over_vocabulary, exact, atol=1e-10)
  # The positions that the choice of a token leads to are not in it.
  assert np.abs(exact - jax.jit(jax.grad(sequence_kl))(*logits)).max() > 0.01


def test_single_step_and_long_range_make_up_the_kl_of_sequences(logits):
  o = objectives.minillm(0.0, length_normalised=False)
  exact = jax.jit(jax.grad(sequence_kl))(*logits)
  np.testing.assert_allclose(expected(o, logits), exact, atol=1e-10)
  normalised = expected(objectives.minillm(0.0), logits)
  assert np.abs(normalised - exact).max() > 0.01


def test_weight_of_teacher_mixed_samples_corrects_the_token_itself(logits):
  """In the last state but one, R is of one token: what is left is its expectation."""
  policy, teacher = (jnp.asarray(x) for x in logits)
  share, o = 0.6, objectives.minillm(0.6, clip=1e9, length_normalised=False)
  p, q = (jax.nn.softmax(x) for x in (policy, teacher))
  mixed_SV = (1 - share) * p + share * q
  gradient = expected(o, logits, jnp.log(mixed_SV))
  reward_SV = jnp.log(q) - jnp.log(p)
  later_S = (mixed_SV * reward_SV).sum(-1)  # of a token drawn from the mixture
  for state in range(1, V + 1):  # after the first token, by hand
    visits, after = mixed_SV[0, state - 1], transitions()[state]

    def loss(x, state=state, after=after):
      logp = jax.nn.log_softmax(x)
      kl = (jnp.exp(logp) * (logp - jnp.log(q[state]))).sum()
      return kl - (jnp.exp(logp) * later_S[after]).sum()

    exact = visits * jax.jit(jax.grad(loss))(policy[state])
    np.testing.assert_allclose(gradient[state], exact, atol=1e-10)


def test_forward_kl_on_the_teachers_completions_is_that_of_sequences(logits):
  policy, teacher = logits
  on_teacher = expected(objectives.kd(), logits, jax.nn.log_softmax(teacher))
  exact = jax.grad(lambda x: sequence_kl(teacher, x))(policy)
  np.testing.assert_allclose(T * on_teacher, exact, atol=1e-10)


@pytest.mark.parametrize("b, scale", [(1e-6, 1e6), (1 - 1e-6, 1e6)])
def test_jsd_over_its_weight_tends_to_forward_and_reverse_kl(logits, b, scale):
  limit = expected(objectives.gkd(round(b)), logits)
  gradient = scale * expected(objectives.gkd(b), logits)
  np.testing.assert_allclose(gradient, limit, atol=1e-5)
  assert np.abs(limit).max() > 0.05


@pytest.mark.parametrize("b", [0.2, 0.5, 0.9])
def test_jsd_is_the_entropy_that_mixing_adds(logits, b):
  """JSD = H(b p + (1 - b) q) - b H(p) - (1 - b) H(q), at most H(b)."""
  p, q = (np.asarray(jax.nn.softmax(x)) for x in logits)
  entropies = [special.entr(x).sum(-1) for x in (b * p + (1 - b) * q, p, q)]
  expected_C = entropies[0] - b * entropies[1] - (1 - b) * entropies[2]
  jsd = token_stats.jsd(*logits, b)
  np.testing.assert_allclose(jsd, expected_C, rtol=1e-9)
  assert (jsd < special.entr([b, 1 - b]).sum()).all()


@pytest.mark.parametrize(
  "objective",
  [
    objectives.kd(),
    objectives.gkd(0.3),
    objectives.gkd(1.0),
    objectives.on_policy_distillation(0.0),
    objectives.on_policy_distillation(0.5),
    objectives.minillm(),
  ],
  ids=lambda o: f"{o.name} {list(o.hparams.values())}",
)
def test_the_teacher_is_stationary(logits, objective):
  _, teacher = logits
  np.testing.assert_allclose(expected(objective, (teacher, teacher)), 0, atol=1e-10)
  assert np.abs(expected(objective, logits)).max() > 0.01
