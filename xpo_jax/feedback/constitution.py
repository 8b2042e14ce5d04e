"""Critique and revision by a constitution: Constitutional AI's first phase.

Bai et al. 2022, arXiv:2212.08073. Its second phase is `judge.preference` with the
prompt "principle" and a file of principles, or `by_principle` of judges of one each.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from xpo_jax.feedback import prompting
from xpo_jax.feedback.judge import Backend
from xpo_jax.feedback.prompting import Turn
from xpo_jax.feedback.protocol import Preference, Scores, check_probabilities


class Revised(NamedTuple):
  """One round of revision of N completions.

  Attributes:
    critique: what is wrong with each.
    text: each without it; None: the critic gave no revision.
    principle: by which; "" for a critic without principles.
  """

  critique: tuple[str, ...]
  text: tuple[str | None, ...]
  principle: tuple[str, ...]


Critic = Callable[[Sequence[str], Sequence[str], int], Revised]
"""`(prompts, completions, draw) -> Revised`; another draw is another principle."""


def critic(
  backend: Backend,
  *,
  critique: str = "critique",
  revision: str = "revision",
  principles: str = "principles",
  retries: int = 2,
  seed: int = 0,
) -> Critic:
  """A language model that criticises by a drawn principle, then revises.

  Args:
    backend: who writes.
    critique: a prompt file with `{prompt}`, `{completion}` and `{principle}`.
    revision: a prompt file that also has `{critique}`.
    principles: a file of principles; one is drawn for each prompt and draw.
    retries: how often an empty answer is asked for again.
    seed: of the drawn principle.

  Raises:
    ValueError: a file that is missing or does not fit.
  """
  parts, places = ("sample", "ending"), ("prompt", "completion", "principle")
  ask = prompting.load(critique, parts, places)
  mend = prompting.load(revision, parts, (*places, "critique"))
  known = prompting.principles(principles)

  def criticise(
    prompts: Sequence[str], completions: Sequence[str], draw: int
  ) -> Revised:
    drawn = [
      known[int(len(known) * prompting.draw(seed, str(draw), prompt))]
      for prompt in prompts
    ]
    texts = [
      {"prompt": prompt, "completion": completion}
      for prompt, completion in zip(prompts, completions, strict=True)
    ]
    said = _written(backend, ask, texts, drawn, draw, retries)
    heard = [n for n, critique in enumerate(said) if critique is not None]
    filled = [texts[n] | {"critique": said[n]} for n in heard]
    new: list[str | None] = [None] * len(texts)
    mended = _written(backend, mend, filled, [drawn[n] for n in heard], draw, retries)
    for n, text in zip(heard, mended, strict=True):
      new[n] = text
    return Revised(tuple(c or "" for c in said), tuple(new), tuple(drawn))

  return criticise


def revise(
  critic: Critic, prompts: Sequence[str], completions: Sequence[str], rounds: int = 4
) -> list[Revised]:
  """Rounds of critique and revision, each of what the one before left.

  Args:
    critic: who criticises.
    prompts: N texts.
    completions: an answer to each.
    rounds: how many. Paper: 4.

  Returns:
    The rounds in order; where a revision is None, the next has the text before it.
  """
  made, texts = [], list(completions)
  for number in range(rounds):
    made.append(critic(prompts, texts, number))
    texts = [b if a is None else a for a, b in zip(made[-1].text, texts, strict=True)]
  return made


def by_principle(judges: Sequence[Preference], seed: int = 0) -> Preference:
  """For each pair one of several judges: each stands for a principle.

  Args:
    judges: at least one.
    seed: of the draw, which depends on it and on the pair, not on the order.

  Raises:
    ValueError: no judge.
  """
  if not judges:
    raise ValueError("by_principle: no judge; give one for each principle")

  def judge(
    prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
  ) -> Scores:
    rows = list(zip(prompts, first, second, strict=True))
    luck_N = [prompting.draw(seed, x, *sorted(pair)) for x, *pair in rows]
    who_N = (np.array(luck_N) * len(judges)).astype(int)
    p_N = np.zeros(len(rows), np.float32)
    for number, each in enumerate(judges):
      at_N = np.flatnonzero(who_N == number)
      if at_N.size:
        asked = zip(*(rows[n] for n in at_N), strict=True)
        p_N[at_N] = check_probabilities(each(*asked), at_N.size).value_N
    return Scores(p_N)

  return judge


def _written(
  backend: Backend,
  prompt: prompting.Prompt,
  texts: Sequence[dict[str, str]],
  principles: Sequence[str],
  draw: int,
  retries: int,
) -> list[str | None]:
  asked = [
    (
      Turn(
        "user", prompting.fill(prompt, ("sample", "ending"), each, {"principle": p})
      ),
    )
    for each, p in zip(texts, principles, strict=True)
  ]
  written: list[str | None] = [None] * len(asked)
  waiting = list(range(len(asked)))
  for attempt in range(retries + 1):
    if not waiting:
      break
    # The number of the round leaves room for the attempts between rounds.
    answers = backend.write([asked[n] for n in waiting], draw * (retries + 1) + attempt)
    for n, answer in zip(waiting, answers, strict=True):
      written[n] = (answer or "").strip() or None
    waiting = [n for n in waiting if written[n] is None]
  return written
