"""One question to an OpenAI-compatible endpoint, sent until it is answered.

What fails in passing (slow, dropped, 429, 5xx, no JSON, half an answer) is sent again
with growing pauses. What is left is one of three: the question went unanswered
(`Lost`), the answer is of no use (`Unreadable`), or no question can be asked at all
(`JudgeError`), which says what to do.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from xpo_jax.feedback import prompting

_LONGEST_PAUSE = 60.0  # seconds
_REFUSED = (400, 413, 422)  # statuses of this question, not of all
_BUSY = (408, 409, 429)

Sleep = Callable[[float], None]
Note = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Endpoint:
  """Whom to ask, and how.

  Attributes:
    model: its name there.
    base_url: of the API, up to and including `/v1`.
    key_variable: the environment variable that holds the key; servers of your own
      mostly need none.
    max_tokens: longest answer.
    temperature: of the answers; None: none is sent.
    seed: sent plus the number of the draw; None: none is sent.
    timeout: seconds without a byte before a request counts as lost.
    attempts: how often a request is sent, at most.
    pause: seconds before the second attempt; doubled before each further one.
    concurrency: requests at a time.
    tolerance: share of the questions of a call that may be lost (slow, dropped, busy to
      the end), as abstentions; more stop the run. What was refused, or answered in no
      form that can be read, is an abstention that is not counted here.
    cache: folder of exchanges; None: nothing is kept.
    replay: answer from `cache` only.
    limit_name: what the endpoint calls `max_tokens` ("max_completion_tokens").
    more: further fields of the request's body.
  """

  model: str
  base_url: str = "https://api.openai.com/v1"
  key_variable: str = "OPENAI_API_KEY"
  max_tokens: int = 512
  temperature: float | None = 1.0
  seed: int | None = 0
  timeout: float = 60.0
  attempts: int = 5
  pause: float = 1.0
  concurrency: int = 8
  tolerance: float = 0.05
  cache: str | None = None
  replay: bool = False
  limit_name: str = "max_tokens"
  more: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    for name, value, good, allowed in (
      ("model", self.model, bool(self.model), "a name"),
      ("max_tokens", self.max_tokens, self.max_tokens >= 1, ">= 1"),
      ("timeout", self.timeout, self.timeout > 0, "> 0"),
      ("attempts", self.attempts, self.attempts >= 1, ">= 1"),
      ("pause", self.pause, self.pause >= 0, ">= 0"),
      ("concurrency", self.concurrency, self.concurrency >= 1, ">= 1"),
      ("tolerance", self.tolerance, 0 <= self.tolerance < 1, "0 <= tolerance < 1"),
    ):
      if not good:
        raise ValueError(f"endpoint.{name} is {value!r}; allowed: {allowed}")
    if self.replay and self.cache is None:
      raise ValueError(
        "endpoint.replay needs endpoint.cache: the folder to replay from"
      )


class JudgeError(OSError):
  """A judge that cannot be asked, or leaves too many questions open."""


class Lost(Exception):
  """A question that the endpoint did not answer, however often it was sent."""


class Unreadable(ValueError):
  """An answer that is not of the form asked for, or a refusal of a question."""


class Client:
  """Sends requests to an endpoint.

  Args:
    endpoint: whom to ask.
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
    account = os.environ.get(endpoint.key_variable)
    if account is None and "api.openai.com" in endpoint.base_url:
      raise JudgeError(
        f"no key for {endpoint.base_url}: set {endpoint.key_variable}, or name another "
        "variable (key_variable) or server (base_url)"
      )
    self.endpoint, self.sleep, self.openai = endpoint, sleep, openai
    self.client = openai.OpenAI(
      base_url=endpoint.base_url,
      api_key=account or "none",
      timeout=endpoint.timeout,
      max_retries=0,  # ours are recorded, and need no clock in a test
    )

  def check(self, request: Mapping[str, Any], logprobs: bool) -> None:
    """Sends a short request, to know what is wrong before it costs.

    Raises:
      JudgeError: says what is wrong.
    """
    where = self.endpoint.base_url
    try:
      answer = self.send(request)
    except Lost as lost:
      raise JudgeError(
        f"the judge at {where} cannot be reached: {lost}; is the server up, and is "
        "base_url right (most end in /v1)?"
      ) from lost
    except Unreadable as unreadable:
      raise JudgeError(
        f"{where} answers, but not as a chat endpoint: {unreadable}; is base_url right "
        "(most end in /v1), and does the server take every field of the request?"
      ) from unreadable
    if logprobs and not _likeliest(answer):
      raise JudgeError(
        f"{self.endpoint.model} at {where} gives no log-probabilities, which verdicts "
        "are to be read from; set logprobs=False to read its text, or ask another"
      )

  def send(
    self,
    request: Mapping[str, Any],
    note: Note = lambda failure: None,
    stopped: Callable[[], bool] = lambda: False,
  ) -> dict[str, Any]:
    """The answer, after as many attempts as it takes or there are.

    Args:
      request: model, messages and further fields.
      note: told of every failed attempt.
      stopped: whether nobody waits for the answer any more.

    Raises:
      Lost: slow, dropped, busy or broken to the end.
      Unreadable: no chat answer to the end, or this question is refused.
      JudgeError: refused in a way that holds for every question.
    """
    problem: Exception = Lost("not sent")
    for attempt in range(self.endpoint.attempts):
      if stopped():
        break
      if attempt:
        self.sleep(self._pause(request, attempt, problem))
      try:
        return self._send_once(request)
      except (Lost, Unreadable) as error:
        problem = error
        note(f"attempt {attempt + 1}: {error}")
        if _status(error) in _REFUSED:
          break  # the same request would be refused again
    raise problem

  def _send_once(self, request: Mapping[str, Any]) -> dict[str, Any]:
    body = {k: v for k, v in request.items() if k not in ("model", "messages")}
    try:
      raw = self.client.chat.completions.with_raw_response.create(
        model=request["model"], messages=request["messages"], extra_body=body
      )
    except self.openai.APIStatusError as error:
      raise self._refusal(error.status_code, str(error)[:200]) from error
    except self.openai.APITimeoutError as error:
      raise Lost(f"no answer within {self.endpoint.timeout:g} s") from error
    except self.openai.APIConnectionError as error:
      raise Lost(f"the connection failed ({error.__cause__ or error})") from error
    text = raw.http_response.text
    try:
      answer = json.loads(text)
      read_text(answer)
    except (ValueError, LookupError, TypeError) as error:
      raise Unreadable(f"not a chat answer: {text[:80]!r}") from error
    return answer

  def _refusal(self, status: int, said: str) -> Exception:
    """What a status means: try again, this question is refused, or all would be."""
    if status in _BUSY or status >= 500:
      return Lost(f"status {status}: {said}")
    if status in _REFUSED:
      return Unreadable(f"the request was refused, status {status}: {said}")
    hint = "is base_url right (most end in /v1)?"
    if status in (401, 403):
      hint = f"is the key in {self.endpoint.key_variable} right?"
    elif status == 404:
      hint = f"is there a model {self.endpoint.model!r}{self._models()}? {hint}"
    return JudgeError(
      f"the judge at {self.endpoint.base_url} refused, status {status}: {said}; {hint}"
    )

  def _models(self) -> str:
    try:
      names = [model.id for model in self.client.models.list()]
    except (self.openai.OpenAIError, ValueError, TypeError, AttributeError):
      return ""  # some servers have no list
    return f" among {', '.join(names[:10])}" if names else ""

  def _pause(self, request, attempt: int, problem: Exception) -> float:
    """Doubled each time, spread by up to a half; longer if the server says so."""
    uniform = prompting.draw(attempt, json.dumps(request, sort_keys=True))
    wait = self.endpoint.pause * 2 ** (attempt - 1) * (1 + uniform / 2)
    if isinstance(problem.__cause__, self.openai.APIStatusError):
      said = problem.__cause__.response.headers.get("retry-after", "")
      wait = max(wait, float(said) if said.isdigit() else 0)
    return min(wait, _LONGEST_PAUSE)


def _status(error: Exception) -> int | None:
  cause = error.__cause__
  response = vars(cause).get("response") if cause is not None else None
  return None if response is None else response.status_code


def read_text(answer: Mapping[str, Any]) -> str:
  """What the judge wrote; "" where it answered without text (it refused, or thought
  until its tokens were spent): an answer like any other, paid for and kept.

  Raises:
    LookupError, TypeError: it is not a chat answer.
  """
  text = answer["choices"][0]["message"]["content"]
  if text is None:
    return ""
  if not isinstance(text, str):
    raise TypeError(f"content is {text!r}")
  return text


def read_options(answer: Mapping[str, Any], names: Sequence[str]) -> np.ndarray:
  """Log-probabilities of names as the first token, `[J]`; NaN where none is listed.

  Tokens that differ in blanks only (" 1" and "1") are added up. A name that is not
  listed, beside one that is, gets the least log-probability listed, which it cannot
  exceed.
  """
  listed = _likeliest(answer)
  logp_J = np.full(len(names), -np.inf, np.float64)
  for token, logp in listed:
    if token.strip() in names:
      place = names.index(token.strip())
      logp_J[place] = np.logaddexp(logp_J[place], logp)
  if np.isinf(logp_J).all():
    return np.full(len(names), np.nan, np.float32)
  least = min(logp for _, logp in listed)
  return np.where(np.isinf(logp_J), least, logp_J).astype(np.float32)


def _likeliest(answer: Mapping[str, Any]) -> list[tuple[str, float]]:
  """Tokens in the place of the first, with log-probabilities; empty: none are told."""
  try:
    top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    found = [(str(each["token"]), float(each["logprob"])) for each in top]
  except (LookupError, TypeError, ValueError):
    return []
  return [(token, logp) for token, logp in found if np.isfinite(logp)]
