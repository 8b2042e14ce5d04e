"""A judge behind an OpenAI-compatible endpoint: many questions at a time, recorded.

Every exchange is kept on disk (`exchanges`) under the content of its request; neither
the address nor the account's key is part of it. So a resumed run pays for no answer
twice, and with `replay` needs no endpoint at all.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import Any

import numpy as np

from xpo_jax.feedback import client, judge, prompting, response_cache
from xpo_jax.feedback.client import Client, Endpoint, JudgeError, Lost, Unreadable
from xpo_jax.feedback.judge import Backend
from xpo_jax.feedback.progress import Advance, every
from xpo_jax.feedback.prompting import Conversation
from xpo_jax.feedback.protocol import Preference, Scorer
from xpo_jax.feedback.response_cache import Exchanges


def connect(
  endpoint: Endpoint,
  *,
  logprobs: bool,
  sleep: client.Sleep = time.sleep,
  advance: Advance | None = None,
) -> Backend:
  """Makes sure that the judge answers, and returns it.

  One short question is asked first (and its answer not kept), so that a wrong address,
  key or model, or missing log-probabilities, is known before anything is computed.

  Args:
    endpoint: whom to ask.
    logprobs: whether verdicts are read from log-probabilities.
    sleep: waits between attempts.
    advance: told how many questions of a call are done, and of how many; None: a line
      every ten seconds on standard error.

  Raises:
    JudgeError: it cannot be asked; says why, and what to do.
    ImportError: the client is not installed.
    ValueError: a cache that is damaged.
  """
  asker = _Asker(endpoint, sleep, advance)
  if asker.client is not None:
    hello = (prompting.Turn("user", (prompting.Piece("Reply with 1."),)),)
    asker.client.check(
      asker.request(hello, _peek() if logprobs else {}, 1, 0), logprobs
    )
  return Backend(
    f"{endpoint.model} at {endpoint.base_url}",
    asker.write,
    asker.options if logprobs else None,
  )


def preference(
  endpoint: Mapping[str, Any],
  *,
  prompt: str = "pairwise",
  principles: str | None = None,
  logprobs: bool = True,
  reasoning: bool = False,
  samples: int = 1,
  retries: int = 2,
  both_orders: bool = True,
  clamp: tuple[float, float] | None = None,
) -> Preference:
  """`judge.preference` of an endpoint, by plain values (for a configuration).

  Args:
    endpoint: the fields of `client.Endpoint`.
    prompt, principles, logprobs, reasoning, samples, retries, both_orders, clamp: of
      `judge.preference`.
  """
  return judge.preference(
    connect(_endpoint(endpoint), logprobs=logprobs),
    prompt=prompt,
    principles=principles,
    logprobs=logprobs,
    reasoning=reasoning,
    samples=samples,
    retries=retries,
    both_orders=both_orders,
    clamp=clamp,
  )


def scorer(
  endpoint: Mapping[str, Any],
  *,
  prompt: str = "additive",
  least: float = 0,
  most: float = 5,
  samples: int = 3,
  retries: int = 2,
) -> Scorer:
  """`judge.scorer` of an endpoint, by plain values; see `preference`."""
  return judge.scorer(
    connect(_endpoint(endpoint), logprobs=False),
    prompt=prompt,
    least=least,
    most=most,
    samples=samples,
    retries=retries,
  )


def _endpoint(fields: Mapping[str, Any]) -> Endpoint:
  try:
    return Endpoint(**fields)
  except TypeError as error:
    known = ", ".join(Endpoint.__dataclass_fields__)
    raise ValueError(f"endpoint: {error}; its fields: {known}") from error


def _peek() -> dict[str, Any]:
  """The likeliest tokens in the place of the first; of one token, nothing is drawn."""
  return {"logprobs": True, "top_logprobs": 20}


class _Asker:
  """Asks many questions of an endpoint, or of its record."""

  def __init__(self, endpoint: Endpoint, sleep: client.Sleep, advance: Advance | None):
    self.endpoint, self.advance = endpoint, advance
    self.held = Exchanges(endpoint.cache) if endpoint.cache else None
    self.client = None if endpoint.replay else Client(endpoint, sleep)

  def write(self, conversations: Sequence[Conversation], draw: int) -> list[str | None]:
    longest = self.endpoint.max_tokens
    requests = [self.request(each, {}, longest, draw) for each in conversations]
    return self._ask(requests, draw, client.read_text)

  def options(
    self, conversations: Sequence[Conversation], names: Sequence[str], draw: int
  ) -> np.ndarray:
    requests = [self.request(each, _peek(), 1, draw) for each in conversations]
    names = list(names)
    read = self._ask(requests, draw, lambda answer: client.read_options(answer, names))
    silent_J = np.full(len(names), np.nan, np.float32)
    return np.stack([silent_J if logp_J is None else logp_J for logp_J in read])

  def request(
    self, conversation: Conversation, fields: Mapping[str, Any], limit: int, draw: int
  ) -> dict[str, Any]:
    endpoint = self.endpoint
    made = {"model": endpoint.model, "messages": prompting.messages(conversation)}
    made[endpoint.limit_name] = limit
    if endpoint.temperature is not None:
      made["temperature"] = endpoint.temperature
    if endpoint.seed is not None:
      made["seed"] = endpoint.seed + draw
    return made | dict(fields) | dict(endpoint.more)

  def _ask(self, requests, draw: int, read: Callable) -> list:
    """What `read` makes of each answer; None where there is none."""
    answers: dict[str, Any] = {}
    waiting: dict[str, Mapping[str, Any]] = {}  # the same question is sent once
    names = [response_cache.key(request, draw) for request in requests]
    for name, request in zip(names, requests, strict=True):
      answer = None if self.held is None else self.held.find(request, draw)
      if answer is not None or self.endpoint.replay:
        answers[name] = answer
        self._check_recorded(answer, request, draw)
      else:
        waiting[name] = request
    if waiting:
      answers |= self._fetch(waiting, draw, len(answers))
    found = [answers[name] for name in names]
    return [None if answer is None else read(answer) for answer in found]

  def _check_recorded(self, answer, request, draw: int) -> None:
    if answer is None and self.held.find_failure(request, draw) is None:
      raise JudgeError(
        f"{self.held.path} does not hold a question that is asked now (model "
        f"{self.endpoint.model}, draw {draw}); replay with the settings of the "
        "recorded run, or set replay=False"
      )

  def _fetch(self, waiting: Mapping[str, Mapping], draw: int, known: int) -> dict:
    """The answers of the endpoint, None where there is none of use."""
    answers: dict[str, Any] = {}
    lost: list[Lost] = []
    stopped = False

    def fetch(request: Mapping[str, Any]) -> Any:
      def note(failure: str) -> None:
        if self.held is not None:
          self.held.keep_failure(request, draw, failure)

      try:
        answer = self.client.send(request, note, lambda: stopped)
      except Unreadable:
        return None
      if self.held is not None:
        self.held.keep(request, draw, answer)
      return answer

    advance = self.advance or every(10, self.endpoint.model)
    with futures.ThreadPoolExecutor(self.endpoint.concurrency) as pool:
      tasks = {pool.submit(fetch, request): name for name, request in waiting.items()}
      try:
        for task in futures.as_completed(tasks):
          try:
            answers[tasks[task]] = task.result()
          except Lost as error:
            answers[tasks[task]] = None
            lost.append(error)
          if len(lost) > self.endpoint.tolerance * (known + len(waiting)):
            raise JudgeError(self._too_many(lost, len(answers), len(waiting)))
          advance(len(answers), len(waiting))
      finally:
        stopped = True  # after an error or Ctrl-C nobody waits for the rest
        pool.shutdown(cancel_futures=True)
    return answers

  def _too_many(self, lost: Sequence[Lost], tried: int, total: int) -> str:
    kept = "no cache is set, so the others' answers are lost"
    if self.held is not None:
      kept = f"the others' answers are kept in {self.held.path}"
    return (
      f"the judge at {self.endpoint.base_url} left {len(lost)} of the first {tried} of "
      f"{total} questions unanswered, each sent {self.endpoint.attempts} times "
      f"(tolerance {self.endpoint.tolerance:g}); the last: {lost[-1]}; {kept}"
    )
