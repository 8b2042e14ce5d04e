"""Weights of prompts: the ratio of the densities of the two classes' prompts."""

import dataclasses

import numpy as np
import pytest
from scipy import special

from xpo_jax.data.tokenise import Example
from xpo_jax.data.transforms import prompt_matching
from xpo_jax.types import Layout


def _examples(prompts, desirable):
  return [
    Example(
      uid=f"row {n}",
      prompt=np.array(prompt, np.int32),
      completions=(np.array([9], np.int32),),
      layout=Layout.RATED,
      fields={"desirable": np.array([label], np.float32)},
    )
    for n, (prompt, label) in enumerate(zip(prompts, desirable, strict=True))
  ]


def test_ratio_of_known_densities():
  """Two kinds of prompt: 3 of 4 desirable ones are of the first, 1 of 4 of the rest."""
  kinds = np.array([0] * 300 + [1] * 100 + [0] * 50 + [1] * 150)
  desirable = np.array([True] * 400 + [False] * 200)
  ratio = prompt_matching.ratios(np.eye(2)[kinds], desirable, ridge=0.0)
  expected = np.array([0.75 / 0.25, 0.25 / 0.75])  # whatever the sizes of the classes
  np.testing.assert_allclose(ratio, np.clip(expected, 0.5, 10)[kinds], rtol=1e-3)


def test_fit_is_the_minimum_of_the_penalised_balanced_log_loss():
  rng = np.random.default_rng(0)
  x, label = rng.normal(size=(40, 3)), np.arange(40) % 4 == 0
  coefficient, intercept = prompt_matching.fit(x, label, ridge=2.0)
  weight = np.where(label, 40 / (2 * 10), 40 / (2 * 30))
  residual = weight * (special.expit(x @ coefficient + intercept) - label)
  np.testing.assert_allclose(x.T @ residual + 2.0 * coefficient, 0, atol=1e-3)
  assert residual.sum() == pytest.approx(0, abs=1e-3)


def test_weighted_examples():
  rng = np.random.default_rng(0)
  desirable = np.arange(200) % 2
  shared = rng.random(200) < 0.2  # else each class has a token of its own
  prompts = [
    [5, 7 if own else 6 + 2 * d] for own, d in zip(shared, desirable, strict=True)
  ]
  weighted = prompt_matching.weighted(_examples(prompts, desirable), None)
  weight = np.array([one.fields["prompt_weight"][0] for one in weighted])
  assert (weight[desirable == 1] == 1).all()
  own = (desirable == 0) & ~shared
  assert weight[own] == pytest.approx(0.5)  # the lower bound
  assert (weight[(desirable == 0) & shared] > 0.7).all()
  assert weighted[0].uid == "row 0" and weighted[0].fields["desirable"] == 0


def test_bounds():
  features = np.eye(2)[[0, 0, 1, 1]]
  desirable = np.array([True, True, False, False])
  ratio = prompt_matching.ratios(features, desirable, low=0.1, high=3.0, ridge=1e-3)
  np.testing.assert_allclose(ratio, [3.0, 3.0, 0.1, 0.1])


def test_data_that_have_no_ratio_are_refused():
  both = _examples([[1], [2]], [1, 0])
  pair = dataclasses.replace(both[0], layout=Layout.PAIR)
  with pytest.raises(ValueError, match="the data are PAIR and must be RATED"):
    prompt_matching.weighted([pair], None)
  with pytest.raises(ValueError, match="all 1 completions are desirable"):
    prompt_matching.weighted(both[:1], None)
  unlabelled = dataclasses.replace(both[0], fields={})
  with pytest.raises(ValueError, match="row 0 has no label"):
    prompt_matching.weighted([unlabelled], None)
