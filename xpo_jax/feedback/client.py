"""Sends requests to an OpenAI-compatible endpoint, with retries.

Transient failures (timeout, dropped connection, status 429 or 5xx, a body that is
incomplete or not JSON) are retried with growing delays. A remaining failure is one of
three: no response (`RequestFailed`), an unusable response to this request
(`InvalidResponse`), or an error that holds for every request (`JudgeError`, which says
how to fix it).
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from xpo_jax.feedback import prompting

_MAX_DELAY = 60.0  # seconds
_REJECTED = (400, 413, 422)  # statuses that concern this request only
_BUSY = (408, 409, 429)

Sleep = Callable[[float], None]
OnFailure = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Endpoint:
  """A chat endpoint and how requests are sent to it.

  Attributes:
    model: the endpoint's name of the model.
    base_url: of the API, up to and including `/v1`.
    api_key_variable: the environment variable of the API key; most local servers need
      none.
    max_tokens: maximum length of a response.
    temperature: sampling temperature; None: not sent.
    seed: sampling seed, to which the index of the draw is added; None: not sent.
    timeout: seconds without a byte before a request counts as failed.
    attempts: maximum number of attempts per request.
    retry_delay: seconds before the second attempt; doubled before each further one.
    concurrency: number of parallel requests.
    tolerance: fraction of a call's requests that may fail (timeout, dropped connection,
      busy) and count as abstentions; more stop the run. Rejected requests and responses
      that cannot be parsed are abstentions that are not counted here.
    cache: directory of a `response_cache`; None: no cache.
    replay: read responses from `cache` only.
    max_tokens_field: the endpoint's name of `max_tokens` ("max_completion_tokens").
    extra_body: further fields of the request's body.
  """

  model: str
  base_url: str = "https://api.openai.com/v1"
  api_key_variable: str = "OPENAI_API_KEY"
  max_tokens: int = 512
  temperature: float | None = 1.0
  seed: int | None = 0
  timeout: float = 60.0
  attempts: int = 5
  retry_delay: float = 1.0
  concurrency: int = 8
  tolerance: float = 0.05
  cache: str | None = None
  replay: bool = False
  max_tokens_field: str = "max_tokens"
  extra_body: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    for name, value, valid, allowed in (
      ("model", self.model, bool(self.model), "a name"),
      ("max_tokens", self.max_tokens, self.max_tokens >= 1, ">= 1"),
      ("timeout", self.timeout, self.timeout > 0, "> 0"),
      ("attempts", self.attempts, self.attempts >= 1, ">= 1"),
      ("retry_delay", self.retry_delay, self.retry_delay >= 0, ">= 0"),
      ("concurrency", self.concurrency, self.concurrency >= 1, ">= 1"),
      ("tolerance", self.tolerance, 0 <= self.tolerance < 1, "0 <= tolerance < 1"),
    ):
      if not valid:
        raise ValueError(f"endpoint.{name} is {value!r}; allowed: {allowed}")
    if self.replay and self.cache is None:
      raise ValueError(
        "endpoint.replay needs endpoint.cache: the folder to replay from"
      )


class JudgeError(OSError):
  """Raised where a judge is unusable, or too many of its requests fail."""


class RequestFailed(Exception):
  """Raised where all attempts of a request failed."""


class InvalidResponse(ValueError):
  """Raised where a response is not a chat response, or this request is rejected."""


class Client:
  """Sends requests to an endpoint.

  Args:
    endpoint: the endpoint.
    sleep: waits between attempts.

  Raises:
    ImportError: the OpenAI client is not installed.
    JudgeError: no key where one is needed.
  """

  def __init__(self, endpoint: Endpoint, sleep: Sleep = time.sleep):
    try:
      import openai  # an extra, and slow to import
    except ImportError as error:
      raise ImportError(
        "a judge behind an endpoint needs the OpenAI client: "
        "pip install 'xpo_jax[judge]'"
      ) from error
    api_key = os.environ.get(endpoint.api_key_variable)
    if api_key is None and "api.openai.com" in endpoint.base_url:
      raise JudgeError(
        f"no key for {endpoint.base_url}: set {endpoint.api_key_variable}, or name "
        "another variable (api_key_variable) or server (base_url)"
      )
    self.endpoint = endpoint
    self.sleep = sleep
    self.openai = openai
    self.client = openai.OpenAI(
      base_url=endpoint.base_url,
      api_key=api_key or "none",
      timeout=endpoint.timeout,
      max_retries=0,  # retries are made, and failures recorded, here
    )

  def check(self, request: Mapping[str, Any], logprobs: bool) -> None:
    """Sends a short request, to find configuration errors before the first query.

    Raises:
      JudgeError: the endpoint is unusable; says why.
    """
    url = self.endpoint.base_url
    try:
      response = self.send(request)
    except RequestFailed as error:
      raise JudgeError(
        f"the judge at {url} cannot be reached: {error}; is the server up, and is "
        "base_url correct (most end in /v1)?"
      ) from error
    except InvalidResponse as error:
      raise JudgeError(
        f"{url} responds, but not as a chat endpoint: {error}; is base_url correct "
        "(most end in /v1), and does the server accept every field of the request?"
      ) from error
    if logprobs and not _top_logprobs(response):
      raise JudgeError(
        f"{self.endpoint.model} at {url} gives no log-probabilities, from which "
        "verdicts are read; set logprobs=False to read its text, or use another model"
      )

  def send(
    self,
    request: Mapping[str, Any],
    *,
    on_failure: OnFailure = lambda failure: None,
    stopped: Callable[[], bool] = lambda: False,
  ) -> dict[str, Any]:
    """Sends a request until it succeeds or its attempts are used up.

    Args:
      request: model, messages and further fields.
      on_failure: called with a description of every failed attempt.
      stopped: returns True once the response is no longer needed.

    Returns:
      The response.

    Raises:
      RequestFailed: timeout, dropped connection or busy at every attempt.
      InvalidResponse: no chat response at the last attempt, or a rejected request.
      JudgeError: rejected in a way that holds for every request.
    """
    last_error: Exception = RequestFailed("not sent")
    for attempt in range(self.endpoint.attempts):
      if stopped():
        break
      if attempt:
        self.sleep(self._delay(request, attempt, last_error))
      try:
        return self._send_once(request)
      except (RequestFailed, InvalidResponse) as error:
        last_error = error
        on_failure(f"attempt {attempt + 1}: {error}")
        if _status(error) in _REJECTED:
          break  # the same request would be rejected again
    raise last_error

  def _send_once(self, request: Mapping[str, Any]) -> dict[str, Any]:
    body = {k: v for k, v in request.items() if k not in ("model", "messages")}
    try:
      raw = self.client.chat.completions.with_raw_response.create(
        model=request["model"], messages=request["messages"], extra_body=body
      )
    except self.openai.APIStatusError as error:
      raise self._status_error(error.status_code, str(error)[:200]) from error
    except self.openai.APITimeoutError as error:
      raise RequestFailed(f"no response within {self.endpoint.timeout:g} s") from error
    except self.openai.APIConnectionError as error:
      raise RequestFailed(
        f"the connection failed ({error.__cause__ or error})"
      ) from error
    text = raw.http_response.text
    try:
      response = json.loads(text)
      read_text(response)
    except (ValueError, LookupError, TypeError) as error:
      raise InvalidResponse(f"not a chat response: {text[:80]!r}") from error
    return response

  def _status_error(self, status: int, message: str) -> Exception:
    """Converts a status to an exception: retry, reject this request, or stop."""
    if status in _BUSY or status >= 500:
      return RequestFailed(f"status {status}: {message}")
    if status in _REJECTED:
      return InvalidResponse(f"the request was rejected, status {status}: {message}")
    hint = "is base_url correct (most end in /v1)?"
    if status in (401, 403):
      hint = f"is the key in {self.endpoint.api_key_variable} correct?"
    elif status == 404:
      hint = f"is there a model {self.endpoint.model!r}{self._models()}? {hint}"
    return JudgeError(
      f"the judge at {self.endpoint.base_url} rejected the request, status {status}: "
      f"{message}; {hint}"
    )

  def _models(self) -> str:
    try:
      names = [model.id for model in self.client.models.list()]
    except (self.openai.OpenAIError, ValueError, TypeError, AttributeError):
      return ""  # some servers do not list models
    return f" among {', '.join(names[:10])}" if names else ""

  def _delay(self, request, attempt: int, last_error: Exception) -> float:
    """Exponential backoff with up to 50 % jitter, at least the server's Retry-After."""
    uniform = prompting.hash_uniform(attempt, json.dumps(request, sort_keys=True))
    delay = self.endpoint.retry_delay * 2 ** (attempt - 1) * (1 + uniform / 2)
    if isinstance(last_error.__cause__, self.openai.APIStatusError):
      retry_after = last_error.__cause__.response.headers.get("retry-after", "")
      delay = max(delay, float(retry_after) if retry_after.isdigit() else 0)
    return min(delay, _MAX_DELAY)


def _status(error: Exception) -> int | None:
  cause = error.__cause__
  response = vars(cause).get("response") if cause is not None else None
  return None if response is None else response.status_code


def read_text(response: Mapping[str, Any]) -> str:
  """Returns the text of a chat response.

  It is "" where the response has no text, because the model refused or used all its
  tokens for reasoning; such a response is cached like any other.

  Raises:
    LookupError, TypeError: it is not a chat response.
  """
  text = response["choices"][0]["message"]["content"]
  if text is None:
    return ""
  if not isinstance(text, str):
    raise TypeError(f"content is {text!r}")
  return text


def read_option_logps(response: Mapping[str, Any], names: Sequence[str]) -> np.ndarray:
  """Returns log-probabilities of names as first token, `[J]`; NaN if none is listed.

  Probabilities of tokens that differ in whitespace only (" 1" and "1") are summed. If
  some names are listed, the others get the lowest log-probability listed, an upper
  bound.
  """
  listed = _top_logprobs(response)
  logp_J = np.full(len(names), -np.inf, np.float64)
  for token, logp in listed:
    if token.strip() in names:
      index = names.index(token.strip())
      logp_J[index] = np.logaddexp(logp_J[index], logp)
  if np.isinf(logp_J).all():
    return np.full(len(names), np.nan, np.float32)
  lowest = min(logp for _, logp in listed)
  return np.where(np.isinf(logp_J), lowest, logp_J).astype(np.float32)


def _top_logprobs(response: Mapping[str, Any]) -> list[tuple[str, float]]:
  """Returns the listed first tokens with their log-probabilities, [] if not given."""
  try:
    top = response["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    pairs = [(str(each["token"]), float(each["logprob"])) for each in top]
  except (LookupError, TypeError, ValueError):
    return []
  return [(token, logp) for token, logp in pairs if np.isfinite(logp)]
