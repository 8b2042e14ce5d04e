"""Builds a judge from an OpenAI-compatible endpoint, with parallel, cached requests.

With `cache` set, every answer is stored in a `response_cache`, keyed by the content of
its request; neither the URL nor the API key is stored. A resumed run then repeats no
answered request, and with `replay` it needs no endpoint.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import Any

import numpy as np

from xpo_jax.feedback import client, judge, prompting, response_cache
from xpo_jax.feedback.client import (
  Client,
  Endpoint,
  InvalidResponse,
  JudgeError,
  RequestFailed,
)
from xpo_jax.feedback.judge import Backend
from xpo_jax.feedback.progress import OnProgress, print_every
from xpo_jax.feedback.prompting import Conversation
from xpo_jax.feedback.protocol import Preference, Scorer
from xpo_jax.feedback.response_cache import ResponseCache

# Of the first token; with max_tokens 1 nothing is sampled.
_LOGPROBS = {"logprobs": True, "top_logprobs": 20}


def connect(
  endpoint: Endpoint,
  *,
  logprobs: bool,
  sleep: client.Sleep = time.sleep,
  on_progress: OnProgress | None = None,
) -> Backend:
  """Checks that an endpoint responds and returns it as a judge's backend.

  A short request is sent first (its response is not cached), so that a wrong URL, key
  or model, or missing log-probabilities, is found before anything is computed.

  Args:
    endpoint: the endpoint.
    logprobs: whether verdicts are read from log-probabilities.
    sleep: waits between attempts.
    on_progress: called with the completed and total requests of a call; None: a line
      every ten seconds on standard error.

  Raises:
    JudgeError: the endpoint is unusable; says why and how to fix it.
    ImportError: the client is not installed.
    ValueError: a damaged cache.
  """
  requests = _Requests(endpoint, sleep, on_progress)
  if requests.client is not None:
    probe = (prompting.ChatTurn("user", (prompting.Piece("Reply with 1."),)),)
    fields = _LOGPROBS if logprobs else {}
    requests.client.check(requests.body(probe, fields, limit=1, draw=0), logprobs)
  return Backend(
    f"{endpoint.model} at {endpoint.base_url}",
    requests.write,
    requests.options if logprobs else None,
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
  """Builds `judge.preference` on an endpoint, from plain values (for a config file).

  Args:
    endpoint: the fields of `client.Endpoint`.
    prompt, principles, logprobs, reasoning, samples, retries, both_orders, clamp: see
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
  """Builds `judge.scorer` on an endpoint, from plain values; see `preference`."""
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


class _Requests:
  """Sends a judge's queries to an endpoint, or reads responses from its cache."""

  def __init__(
    self, endpoint: Endpoint, sleep: client.Sleep, on_progress: OnProgress | None
  ):
    self.endpoint = endpoint
    self.on_progress = on_progress
    self.cache = ResponseCache(endpoint.cache) if endpoint.cache else None
    self.client = None if endpoint.replay else Client(endpoint, sleep)

  def write(self, conversations: Sequence[Conversation], draw: int) -> list[str | None]:
    limit = self.endpoint.max_tokens
    requests = [self.body(each, {}, limit=limit, draw=draw) for each in conversations]
    return self._responses(requests, draw, client.read_text)

  def options(
    self, conversations: Sequence[Conversation], names: Sequence[str], draw: int
  ) -> np.ndarray:
    requests = [
      self.body(each, _LOGPROBS, limit=1, draw=draw) for each in conversations
    ]
    names = list(names)
    logps = self._responses(
      requests, draw, lambda response: client.read_option_logps(response, names)
    )
    missing_J = np.full(len(names), np.nan, np.float32)
    return np.stack([missing_J if logp_J is None else logp_J for logp_J in logps])

  def body(
    self,
    conversation: Conversation,
    fields: Mapping[str, Any],
    *,
    limit: int,
    draw: int,
  ) -> dict[str, Any]:
    endpoint = self.endpoint
    body = {"model": endpoint.model, "messages": prompting.to_messages(conversation)}
    body[endpoint.max_tokens_field] = limit
    if endpoint.temperature is not None:
      body["temperature"] = endpoint.temperature
    if endpoint.seed is not None:
      body["seed"] = endpoint.seed + draw
    return body | dict(fields) | dict(endpoint.extra_body)

  def _responses(self, requests, draw: int, parse: Callable) -> list:
    """Returns the parsed response to each request, or None."""
    responses: dict[str, Any] = {}
    pending: dict[str, Mapping[str, Any]] = {}  # equal requests are sent once
    keys = [response_cache.key(request, draw) for request in requests]
    for key, request in zip(keys, requests, strict=True):
      response = None if self.cache is None else self.cache.find(request, draw)
      if response is not None or self.endpoint.replay:
        responses[key] = response
        self._check_recorded(response, request, draw)
      else:
        pending[key] = request
    if pending:
      responses |= self._fetch(pending, draw, len(responses))
    ordered = [responses[key] for key in keys]
    return [None if response is None else parse(response) for response in ordered]

  def _check_recorded(self, response, request, draw: int) -> None:
    if response is None and self.cache.find_failure(request, draw) is None:
      raise JudgeError(
        f"{self.cache.path} does not hold a request that is made now (model "
        f"{self.endpoint.model}, draw {draw}); replay with the settings of the "
        "recorded run, or set replay=False"
      )

  def _fetch(self, pending: Mapping[str, Mapping], draw: int, num_cached: int) -> dict:
    """Sends requests in parallel; the response is None where it is not usable."""
    responses: dict[str, Any] = {}
    failures: list[RequestFailed] = []
    stopped = False

    def fetch(request: Mapping[str, Any]) -> Any:
      def on_failure(failure: str) -> None:
        if self.cache is not None:
          self.cache.store_failure(request, draw, failure)

      try:
        response = self.client.send(
          request, on_failure=on_failure, stopped=lambda: stopped
        )
      except InvalidResponse:
        return None
      if self.cache is not None:
        self.cache.store(request, draw, response)
      return response

    on_progress = self.on_progress or print_every(10, self.endpoint.model)
    max_failures = self.endpoint.tolerance * (num_cached + len(pending))
    with futures.ThreadPoolExecutor(self.endpoint.concurrency) as pool:
      tasks = {pool.submit(fetch, request): key for key, request in pending.items()}
      try:
        for task in futures.as_completed(tasks):
          try:
            responses[tasks[task]] = task.result()
          except RequestFailed as error:
            responses[tasks[task]] = None
            failures.append(error)
          if len(failures) > max_failures:
            raise JudgeError(
              self._too_many_failures(failures, len(responses), len(pending))
            )
          on_progress(len(responses), len(pending))
      finally:
        stopped = True  # after an error or Ctrl-C the other requests are not retried
        pool.shutdown(cancel_futures=True)
    return responses

  def _too_many_failures(
    self, failures: Sequence[RequestFailed], tried: int, total: int
  ) -> str:
    cached = "no cache is set, so the other responses are lost"
    if self.cache is not None:
      cached = f"the other responses are cached in {self.cache.path}"
    return (
      f"the judge at {self.endpoint.base_url} did not respond to {len(failures)} of "
      f"the first {tried} of {total} requests, each sent {self.endpoint.attempts} "
      f"times (tolerance {self.endpoint.tolerance:g}); the last: {failures[-1]}; "
      f"{cached}"
    )
