"""What two processes find of their shares is what one finds of all.

The processes are called in turn; `processes_test` has real ones.
"""

import json

import numpy as np
import pytest

from xpo_jax.data import records
from xpo_jax.evaluation import measure_policy
from xpo_jax.evaluation.measure_policy import Draws, EvalSetup
from xpo_jax.feedback import protocol
from xpo_jax.feedback.protocol import Scores
from xpo_jax.sharding import distributed


class _Sent(Exception):
  """A process has sent its share."""


@pytest.fixture
def of_two(monkeypatch):
  """Calls a function as each of two processes does; both results."""
  monkeypatch.setattr(distributed.jax, "process_count", lambda: 2)
  monkeypatch.setattr(distributed, "together", lambda function: function())

  def call(function):
    shares = []

    def send(share):
      shares.append(json.loads(json.dumps(share)))
      raise _Sent

    def as_each(gather):
      monkeypatch.setattr(distributed, "gather", gather)
      for index in range(2):
        monkeypatch.setattr(distributed.jax, "process_index", lambda index=index: index)
        yield function

    for each in as_each(send):
      with pytest.raises(_Sent):
        each()
    return [each() for each in as_each(lambda _: shares)]

  return call


@pytest.mark.parametrize("count", [1, 2, 5])
def test_queries_are_divided_and_all_have_every_verdict(of_two, count):
  asked = []

  def rate(prompts, completions):
    asked.append(tuple(completions))
    value_N = np.array([np.nan if x == "t1" else len(x) for x in completions])
    parts = {"length": value_N, "one": np.ones(len(value_N))}
    compared = {"both": np.stack([value_N, -value_N], 1)}
    return Scores(value_N, tuple(f"of {x}" for x in prompts), parts, compared)

  prompts = [f"p{n}" for n in range(count)]
  texts = [f"t{n}" for n in range(count)]
  whole = rate(prompts, texts)
  asked.clear()
  # Named after the function, for messages.
  assert protocol.over_processes(rate).__name__ == "rate"
  for shared in of_two(lambda: protocol.over_processes(rate)(prompts, texts)):
    np.testing.assert_array_equal(shared.value_N, whole.value_N)
    assert shared.reason == whole.reason
    for ours, theirs in zip(shared[2:], whole[2:], strict=True):
      assert list(ours) == list(theirs)
      for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])
  assert max(map(len, asked)) == -(-count // 2) and set().union(*asked) == set(texts)


def test_samples_are_divided_by_prompt_and_keep_their_numbers(of_two, monkeypatch):
  cut = records.Cut("b")
  whole = Draws(
    prompts=("p0", "p1", "p2"),
    texts=(("a", cut), ("c", "d"), (cut, "e")),
    tokens=(((3,), (4, 4)), ((5,), ()), ((6,), (7,))),
    reward_PK=None,
    kl_PK=np.arange(6.0).reshape(3, 2) / 3,
    log_ratio_PK=-np.arange(6.0).reshape(3, 2) / 7,
    length_PK=np.array([[1, 2], [2, 1], [1, 2]]),
    ended_PK=np.array([[True, False], [True, True], [False, True]]),
  )

  def draw(setup, params, key):
    rows = list(setup.row_P)
    assert [f"p{row}" for row in rows] == list(setup.prompts)
    return Draws(
      *(
        x
        if x is None
        else x[rows]
        if isinstance(x, np.ndarray)
        else [x[n] for n in rows]
        for x in whole
      )
    )

  monkeypatch.setattr(measure_policy, "draw", draw)
  setup = EvalSetup(None, {}, list(whole.prompts), None, None)
  for drawn in of_two(lambda: measure_policy.draw_over_processes(setup, {}, None)):
    for ours, theirs in zip(drawn, whole, strict=True):
      if isinstance(theirs, np.ndarray):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype
      else:
        assert ours == theirs
    kinds = [[type(text) for text in texts] for texts in drawn.texts]
    assert kinds == [[type(text) for text in texts] for texts in whole.texts]
