"""Agreement of a judge with pairs that people labelled: abstentions, biases, accuracy.

Paper: Lee et al. 2023 (RLAIF), arXiv:2309.00267: a large judge, both orders averaged,
  agrees with people on 67 to 78 % of pairs.
Command: xpo train lee2023_judges pairs=PAIRS.jsonl.gz directory=MODEL
  or: xpo train lee2023_judges pairs=PAIRS.jsonl.gz model=NAME base_url=URL
  with cache=FOLDER a second run sends no request; with --replay it needs no server.
Hardware: 2 CPU cores.
Expected: a model that was not trained to judge is near 50 % and prefers what is shown
  first, or last; averaging both orders does not make it better than chance.
Result: agreement with people {stub server, orders averaged | accuracy}, both orders
  averaged, of a stub server that prefers the shorter completion and the one shown
  first; 200 pairs of HH.
"""

import dataclasses
from pathlib import Path

from xpo_jax.data import sources
from xpo_jax.data.records import Pair
from xpo_jax.evaluation import agreement, judge_bias
from xpo_jax.feedback import endpoint, judge, local
from xpo_jax.feedback.client import Endpoint


@dataclasses.dataclass(frozen=True)
class Judges:
  """Settings.

  Attributes:
    pairs: JSONL of pairs that people labelled.
    limit: use the first so many.
    directory: a Hugging Face directory as judge; or None.
    model: a model behind an endpoint as judge; or None.
    base_url: of the endpoint.
    logprobs: read verdicts from log-probabilities; False: from the answer's text.
    prompt: a prompt file.
    cache: folder of exchanges with the endpoint.
    replay: answer from the cache alone.
  """

  pairs: str
  limit: int = 200
  directory: str | None = None
  model: str | None = None
  base_url: str = "http://127.0.0.1:8000/v1"
  logprobs: bool = True
  prompt: str = "pairwise"
  cache: str | None = None
  replay: bool = False


def experiment(
  pairs: str,
  directory: str | None = None,
  model: str | None = None,
  base_url: str = Judges.base_url,
  cache: str | None = None,
) -> Judges:
  """A judge on 200 pairs."""
  return Judges(pairs, directory=directory, model=model, base_url=base_url, cache=cache)


def backend(settings: Judges) -> judge.Backend:
  """The judge that the settings name.

  Raises:
    ValueError: they name none, or two.
  """
  if (settings.directory is None) == (settings.model is None):
    raise ValueError("name one judge: directory=, or model= with base_url=")
  if settings.directory is not None:
    return local.load(settings.directory)
  connection = Endpoint(
    settings.model,
    settings.base_url,
    cache=settings.cache,
    replay=settings.replay,
    max_tokens=256,
  )
  return endpoint.connect(connection, logprobs=settings.logprobs)


def run(settings: Judges, run_dir: Path) -> int:
  """Asks about every pair in both orders; prints and writes what `judge_bias`
  finds."""
  rows = sources.read_jsonl(Path(settings.pairs)).records[: settings.limit]
  if not all(isinstance(row, Pair) for row in rows):
    raise ValueError(f"{settings.pairs} does not hold pairs")
  one_order = judge.preference(
    backend(settings),
    prompt=settings.prompt,
    logprobs=settings.logprobs,
    both_orders=False,
  )
  examined = judge_bias.examine(one_order, agreement.questions(rows))
  lines = judge_bias.lines(examined)
  print(*lines, sep="\n")
  run_dir.mkdir(parents=True, exist_ok=True)
  (run_dir / "judge.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
  return 0
