"""Conversions between layouts that one asks for."""

import dataclasses

import numpy as np
import pytest

from xpo_jax.config import command_line, factories
from xpo_jax.config.data import Data
from xpo_jax.config.experiment import Experiment, Pretrained
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.data import collate
from xpo_jax.data.tokenise import Example
from xpo_jax.data.transforms import conversions
from xpo_jax.types import Layout


def _example(layout, uid, prompt, *completions, masks=None, **fields):
  return Example(
    uid,
    np.array([prompt], np.int32),
    tuple(np.array(tokens, np.int32) for tokens in completions),
    layout,
    masks=masks,
    fields={name: np.array(values, np.float32) for name, values in fields.items()},
  )


LIST = _example(Layout.RANKED, "l", 1, [5], [6, 7], [8], reward=[0.5, 2, 1])
TIED = _example(Layout.RANKED, "t", 2, [5], [6], reward=[1, 1])
PAIR = _example(Layout.PAIR, "p", 3, [5], [6])


def _tokens(examples):
  return [[tokens.tolist() for tokens in example.completions] for example in examples]


@pytest.mark.parametrize(
  ("gap", "expected"),
  [
    (0, [[[6, 7], [8]], [[6, 7], [5]], [[8], [5]]]),
    (0.5, [[[6, 7], [8]], [[6, 7], [5]]]),
    (1.5, []),
  ],
)
def test_all_pairs_differ_by_more_than_the_gap(gap, expected):
  pairs = conversions.all_pairs(gap)([LIST, TIED])
  assert _tokens(pairs) == expected
  assert all(pair.layout is Layout.PAIR for pair in pairs)
  assert len({pair.uid for pair in pairs}) == len(pairs)


def test_best_and_worst_of_a_list_and_no_pair_of_a_tie():
  assert _tokens(conversions.best_worst()([LIST, TIED])) == [[[6, 7], [5]]]
  assert conversions.best_worst(1.5)([LIST]) == []


def test_threshold_labels_every_completion():
  rated = conversions.threshold(0.5)([LIST])
  assert [example.fields["desirable"].tolist() for example in rated] == [[0], [1], [1]]
  again = conversions.threshold(1.5)(rated)
  assert [example.fields["desirable"].tolist() for example in again] == [[0], [1], [0]]


def test_rows_of_a_prompt_become_a_list():
  rated = [
    _example(Layout.RATED, "a", 1, [5], desirable=[1]),
    _example(Layout.RATED, "b", 2, [5], desirable=[1]),
    _example(
      Layout.RATED, "c", 1, [6, 7], desirable=[0], masks=(np.array([True, False]),)
    ),
  ]
  (one,) = conversions.lists_by_prompt()(rated)
  assert one.layout is Layout.RANKED and one.fields["reward"].tolist() == [1, 0]
  assert _tokens([one]) == [[[5], [6, 7]]]
  assert [mask.tolist() for mask in one.masks] == [[True], [True, False]]
  (pair,) = collate.to_layout([one], Layout.PAIR)  # KTO's data for DPO
  assert _tokens([pair]) == [[[5], [6, 7]]]


def test_pair_becomes_a_list_of_two():
  (one,) = conversions.lists_of_two()([PAIR])
  assert one.layout is Layout.RANKED and one.fields["reward"].tolist() == [1, 0]


@pytest.mark.parametrize(
  ("convert", "example", "match"),
  [
    (conversions.all_pairs(), PAIR, "takes RANKED, and p is PAIR"),
    (conversions.lists_of_two(), LIST, "takes PAIR, and l is RANKED"),
    (
      conversions.threshold(),
      _example(Layout.RATED, "r", 1, [5], desirable=[1]),
      r"r has no reward.*\['desirable'\]",
    ),
  ],
)
def test_examples_of_another_kind_are_refused(convert, example, match):
  with pytest.raises(ValueError, match=match):
    convert([example])


@pytest.mark.parametrize("make", [conversions.all_pairs, conversions.best_worst])
def test_negative_gap_is_refused(make):
  with pytest.raises(ValueError, match="gap is -1"):
    make(-1)


@pytest.mark.parametrize(
  ("example", "layout", "name"),
  [
    (PAIR, Layout.RANKED, "lists_of_two"),
    (
      _example(Layout.RATED, "r", 1, [5], reward=[1]),
      Layout.PAIR,
      "lists_by_prompt",
    ),
  ],
)
def test_refused_layout_names_the_conversion_that_helps(example, layout, name):
  with pytest.raises(ValueError, match=f"--data.conversion {name} makes such data"):
    collate.to_layout([example], layout)


def test_conversion_is_a_flag_with_flags():
  run = Experiment(ObjectiveConfig("dpo"), Data("lists.jsonl"), Pretrained("policy"))
  flags = "--data.conversion all_pairs --data.conversion.gap 0.25".split()
  conversion = command_line.from_args(run, flags).data.conversion
  expected = factories.Configured(conversions.all_pairs, gap=0.25)
  assert conversion == expected
  assert dataclasses.replace(run.data, conversion=expected).conversion.build()([LIST])
