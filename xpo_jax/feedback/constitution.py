"""Critique and revision by a constitution: Constitutional AI's first phase.

Bai et al. 2022, arXiv:2212.08073. Its second phase is `judge.preference` with the
prompt "principle" and a file of principles, or `random_judge` over one judge per
principle.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from xpo_jax.feedback import prompting
from xpo_jax.feedback.judge import Backend
from xpo_jax.feedback.prompting import ChatTurn, PromptTemplate
from xpo_jax.feedback.protocol import Preference, Scores, check_probabilities


class Revision(NamedTuple):
  """One round of critique and revision of N completions.

  Attributes:
    critique: of each completion.
    text: the revised completion; None: the critic gave no revision.
    principle: the principle applied; "" for a critic without principles.
  """

  critique: tuple[str, ...]
  text: tuple[str | None, ...]
  principle: tuple[str, ...]


Critic = Callable[[Sequence[str], Sequence[str], int], Revision]
"""`(prompts, completions, draw) -> Revision`; each draw samples other principles."""


def critic(
  backend: Backend,
  *,
  critique: str = "critique",
  revision: str = "revision",
  principles: str = "principles",
  retries: int = 2,
  seed: int = 0,
) -> Critic:
  """Builds a critic: a language model critiques by a sampled principle, then revises.

  Args:
    backend: the language model.
    critique: a prompt file with `{prompt}`, `{completion}` and `{principle}`.
    revision: a prompt file that also has `{critique}`.
    principles: a file of principles; one is sampled for each prompt and draw.
    retries: number of further attempts after an empty response.
    seed: of the sampled principles.

  Raises:
    ValueError: a prompt file is missing or invalid.
  """
  parts = ("sample", "ending")
  fields = ("prompt", "completion", "principle")
  critique_template = prompting.load_template(critique, parts, fields)
  revision_template = prompting.load_template(revision, parts, (*fields, "critique"))
  all_principles = prompting.load_principles(principles)

  def criticise(
    prompts: Sequence[str], completions: Sequence[str], draw: int
  ) -> Revision:
    sampled = [
      all_principles[
        int(len(all_principles) * prompting.hash_uniform(seed, str(draw), prompt))
      ]
      for prompt in prompts
    ]
    texts = [
      {"prompt": prompt, "completion": completion}
      for prompt, completion in zip(prompts, completions, strict=True)
    ]
    critiques = _generate(
      backend, critique_template, texts, sampled, draw=draw, retries=retries
    )
    answered = [n for n, critique in enumerate(critiques) if critique is not None]
    revisions = _generate(
      backend,
      revision_template,
      [texts[n] | {"critique": critiques[n]} for n in answered],
      [sampled[n] for n in answered],
      draw=draw,
      retries=retries,
    )
    revised: list[str | None] = [None] * len(texts)
    for n, text in zip(answered, revisions, strict=True):
      revised[n] = text
    return Revision(tuple(c or "" for c in critiques), tuple(revised), tuple(sampled))

  return criticise


def revise(
  critic: Critic,
  prompts: Sequence[str],
  completions: Sequence[str],
  *,
  rounds: int = 4,
) -> list[Revision]:
  """Applies a critic repeatedly, each round to the completions of the round before.

  Args:
    critic: the critic.
    prompts: N texts.
    completions: one per prompt.
    rounds: number of rounds. Paper: 4.

  Returns:
    The rounds in order; where a revision is None, the next round has the text of the
    round before.
  """
  revisions = []
  texts = list(completions)
  for number in range(rounds):
    revision = critic(prompts, texts, number)
    revisions.append(revision)
    texts = [
      old if new is None else new for new, old in zip(revision.text, texts, strict=True)
    ]
  return revisions


def random_judge(judges: Sequence[Preference], seed: int = 0) -> Preference:
  """Builds a preference that queries one judge, sampled at random, for each pair.

  Args:
    judges: at least one, for example one per principle.
    seed: of the sample, which depends on the seed and the pair, not on its order.

  Raises:
    ValueError: no judge.
  """
  if not judges:
    raise ValueError("random_judge: judges is empty; give one per principle")

  def judge(
    prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
  ) -> Scores:
    queries = list(zip(prompts, first, second, strict=True))
    uniform_N = [prompting.hash_uniform(seed, x, *sorted(pair)) for x, *pair in queries]
    judge_N = (np.array(uniform_N) * len(judges)).astype(int)
    p_N = np.zeros(len(queries), np.float32)
    for number, preference in enumerate(judges):
      index_N = np.flatnonzero(judge_N == number)
      if index_N.size:
        scores = preference(*zip(*(queries[n] for n in index_N), strict=True))
        p_N[index_N] = check_probabilities(scores, index_N.size).value_N
    return Scores(p_N)

  return judge


def _generate(
  backend: Backend,
  template: PromptTemplate,
  texts: Sequence[dict[str, str]],
  principles: Sequence[str],
  *,
  draw: int,
  retries: int,
) -> list[str | None]:
  """Fills the template with each text and generates; None after empty responses."""
  conversations = []
  for fields, principle in zip(texts, principles, strict=True):
    pieces = prompting.fill(
      template, ("sample", "ending"), fields, trusted={"principle": principle}
    )
    conversations.append((ChatTurn("user", pieces),))
  outputs: list[str | None] = [None] * len(conversations)
  pending = list(range(len(conversations)))
  for attempt in range(retries + 1):
    if not pending:
      break
    # Distinct for every round and attempt.
    index = draw * (retries + 1) + attempt
    responses = backend.write([conversations[n] for n in pending], index)
    for n, response in zip(pending, responses, strict=True):
      outputs[n] = (response or "").strip() or None
    pending = [n for n in pending if outputs[n] is None]
  return outputs
