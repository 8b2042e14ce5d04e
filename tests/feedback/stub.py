"""A chat endpoint on a thread, with injected failures."""

import contextlib
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any


def chat(text: str, top: dict[str, float] | None = None) -> dict[str, Any]:
  """Builds a chat response; `top` are log-probabilities of its first token."""
  logprobs = None
  if top is not None:
    listed = [{"token": token, "logprob": logp} for token, logp in top.items()]
    logprobs = {"content": [{"token": text, "logprob": 0.0, "top_logprobs": listed}]}
  message = {"role": "assistant", "content": text}
  return {"choices": [{"index": 0, "message": message, "logprobs": logprobs}]}


class Stub:
  """The server's behaviour and the requests it received.

  Attributes:
    answer: `(body, count of earlier equal bodies) ->` a chat response, a status, or one
      of "slow", "drop", "no json", "half", "no choices", "no content".
    bodies: all requests, in order of arrival.
    headers: sent with a status.
    most: maximum number of concurrent requests.
  """

  def __init__(self, answer: Callable[[dict[str, Any], int], Any]):
    self.answer = answer
    self.bodies: list[dict[str, Any]] = []
    self.headers: dict[str, str] = {}
    self.most = 0
    self.open = 0
    self.lock = threading.Lock()
    self.closing = threading.Event()
    self.url = ""

  def take(self, body: dict[str, Any]) -> Any:
    with self.lock:
      nth = self.bodies.count(body)
      self.bodies.append(body)
      self.open += 1
      self.most = max(self.most, self.open)
    try:
      return self.answer(body, nth)
    finally:
      with self.lock:
        self.open -= 1


@contextlib.contextmanager
def serving(answer: Callable[[dict[str, Any], int], Any]) -> Iterator[Stub]:
  """Serves a stub on a free port within the context."""
  stub = Stub(answer)

  class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
      self.send(200, json.dumps({"object": "list", "data": [{"id": "tiny"}]}))

    def do_POST(self):
      body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
      outcome = stub.take(body)
      good = json.dumps(chat("1"))
      match outcome:
        case "slow":
          stub.closing.wait(5)
          self.close_connection = True
        case "drop":
          self.close_connection = True
        case "no json":
          self.send(200, "<html>busy</html>", "text/html")
        case "half":
          self.send(200, good[:20], length=len(good))
          self.close_connection = True
        case "no choices":
          self.send(200, json.dumps({"choices": []}))
        case "no content":
          self.send(200, json.dumps({"choices": [{"message": {"content": None}}]}))
        case int():
          self.send(outcome, json.dumps({"error": {"message": "stub says no"}}))
        case _:
          self.send(200, json.dumps(outcome))

    def send(self, status, text, kind="application/json", length=None):
      data = text.encode()
      self.send_response(status)
      self.send_header("Content-Type", kind)
      self.send_header("Content-Length", str(length or len(data)))
      for name, value in stub.headers.items() if status != 200 else ():
        self.send_header(name, value)
      self.end_headers()
      self.wfile.write(data)

    def log_message(self, *_):
      pass

  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  server.daemon_threads = True
  stub.url = f"http://127.0.0.1:{server.server_port}/v1"
  thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
  thread.start()
  try:
    yield stub
  finally:
    stub.closing.set()
    server.shutdown()
    server.server_close()
