"""Arms, predictions and figures that the tables on a chat model share."""

from collections.abc import Sequence
from typing import Any

from xpo_jax.studies.atlas import table, worlds
from xpo_jax.studies.atlas.table import Arm, Plot, Prediction, Table
from xpo_jax.studies.real_model import cells, runs

START = Arm("start", 0.0, cells.start, {"policy": worlds.SMOLLM2})
REWARD, NATS, TOKENS = "VADER's compound", "nats", "tokens"
LEARNING_RATE = 3e-4
SMALL = (
  "A model of 135M parameters, LoRA of rank 8, one seed, some six steps on about 65 "
  "pairs, or five iterations of 64 samples: it shows whether an effect can be seen "
  "there, not how methods rank on large models."
)
_SETTINGS = (
  "SmolLM2-135M-Instruct answers questions of opinion in a sentence (temperature 0.7, "
  "48 tokens at most); the reward is VADER's compound of the answer, its length and KL "
  "to the start stand beside it."
)
_PAIRS = (
  f"The best against the worst of {runs.CANDIDATES} of its own answers to each of 72 "
  f"questions, {runs.EPOCHS} passes, "
  "learning rate {rate:g}; other hyperparameters are the defaults."
)
_SAMPLES = (
  "Five iterations of 16 questions with 4 answers each, learning rate 3e-4; other "
  "hyperparameters are the defaults."
)
LONGER = (
  f"A labeller with a bias for length adds {runs.PER_WORD:g} a word to the reward that "
  "it ranks by."
)
REVISED = (
  "The learning rate, steps and temperature are those of a trial with DPO and RLOO on "
  "other questions; they were tuned for no other method."
)


def arm(
  series: str,
  objective: str,
  *,
  labels: runs.Labels = "true",
  learning_rate: float = LEARNING_RATE,
  **hparams: Any,
) -> Arm:
  """A method on the model's own samples.

  Args:
    series: see `Arm`.
    objective, labels, learning_rate: see `cells.trained`.
    **hparams: of the objective.
  """
  settings = {
    "policy": worlds.SMOLLM2,
    "objective": objective,
    "hparams": hparams,
    "learning_rate": learning_rate,
    "labels": labels,
  }
  return Arm(series, 0.0, cells.trained, settings)


DPO = arm("DPO", "dpo")
DPO_LONGER = arm("DPO, length-biased labels", "dpo", labels="longer")


def differs(
  metric: str,
  unit: str,
  first: str,
  second: str,
  expected: tuple[float, float],
) -> Prediction:
  """A metric of one series minus that of another, paired by prompt."""
  return Prediction(
    f"{first} minus {second}, {metric}",
    unit,
    table.gap(metric, (first, None), (second, None)),
    expected,
  )


def rises(series: str) -> Prediction:
  """The reward of a series is above the start's."""
  return differs("reward", REWARD, series, START.series, table.ABOVE)


def on_own_samples(
  paper: str,
  method: str,
  *,
  claim: str,
  where: str,
  contrary: str,
  arms: Sequence[Arm],
  predictions: Sequence[Prediction],
  see: str,
  paper_scale: str,
  design: str = "",
  on_samples: bool = False,
  learning_rate: float = LEARNING_RATE,
) -> Table:
  """A table whose methods learn from the model's own samples.

  Args:
    paper, method, claim, where, contrary, paper_scale: see `Table`.
    arms: beside the start.
    predictions: see `Table`.
    see: what the figure shows.
    design: what else is run.
    on_samples: it learns from fresh samples, and from no pairs.
    learning_rate: of the arms, for the text.
  """
  learns = _SAMPLES if on_samples else _PAIRS.format(rate=learning_rate)
  return Table(
    paper=paper,
    method=method,
    claim=claim,
    where=where,
    design=" ".join(filter(None, (_SETTINGS, learns, design))),
    contrary=contrary,
    departs=SMALL,
    arms=(START, *arms),
    predictions=tuple(predictions),
    plot=Plot("kl", "reward", "KL to the start, nats", REWARD, see),
    seeds=1,
    paper_scale=paper_scale,
    revised=REVISED,
    world=worlds.CHAT_MODEL,
  )
