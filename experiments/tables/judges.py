"""What a judge is worth on pairs that people labelled: abstentions, biases, agreement.

Paper: Lee et al. 2023, arXiv:2309.00267: a large judge, both orders averaged, agrees
  with people on 67 to 78 % of pairs.
Command: python experiments/tables/judges.py PAIRS.jsonl.gz --directory MODEL
  or: python experiments/tables/judges.py PAIRS.jsonl.gz --model NAME --base-url URL
  with --cache FOLDER, a second run pays for nothing, and with --replay needs no server.
Hardware: 2 CPU cores.
Expected: a model that was never taught to judge is near 50 %, and takes whatever is
  shown first, or last; averaging both orders does not make it better than chance.
Last result: 2026-11-22, 200 pairs of HH (harmless). A decoder of random weights: 50.0 %
  +- 3.5 % agreement, changes its mind with the order on 77.5 % +- 3.0 %. A stub server
  that likes the shorter and what is shown first, and drops, breaks or garbles 8 % of
  its answers: 54.2 % +- 3.5 % averaged, 52.0 % +- 1.8 % in one order, no abstention,
  400 questions in 433 requests; a second run sent 1 (the probe), a replay none.
"""

import argparse
import sys
from pathlib import Path

from xpo_jax.data import sources
from xpo_jax.data.records import Pair
from xpo_jax.evaluation import agreement, judge_bias
from xpo_jax.feedback import endpoint, judge, local
from xpo_jax.feedback.client import Endpoint


def backend_of(args: argparse.Namespace) -> judge.Backend:
  """The judge that the command line names."""
  if (args.directory is None) == (args.model is None):
    raise ValueError("name one judge: --directory, or --model with --base-url")
  if args.directory is not None:
    return local.load(args.directory)
  asked = Endpoint(
    args.model, args.base_url, cache=args.cache, replay=args.replay, max_tokens=256
  )
  return endpoint.connect(asked, logprobs=not args.words)


def main(arguments: list[str] | None = None) -> int:
  """Asks about every pair in both orders and prints what `examine` finds."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("pairs", type=Path, help="JSONL of pairs that people labelled")
  parser.add_argument("--limit", type=int, default=200, help="use the first so many")
  parser.add_argument("--directory", help="a Hugging Face directory as judge")
  parser.add_argument("--model", help="a model behind an endpoint as judge")
  parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
  parser.add_argument("--words", action="store_true", help="read words, no log-probs")
  parser.add_argument("--prompt", default="pairwise", help="a prompt file")
  parser.add_argument("--cache", help="folder of exchanges with the endpoint")
  parser.add_argument("--replay", action="store_true", help="ask the cache only")
  args = parser.parse_args(arguments)
  rows = sources.read_jsonl(args.pairs).records[: args.limit]
  if not all(isinstance(row, Pair) for row in rows):
    raise ValueError(f"{args.pairs} does not hold pairs")
  one_order = judge.preference(
    backend_of(args), prompt=args.prompt, logprobs=not args.words, both_orders=False
  )
  found = judge_bias.examine(one_order, agreement.questions(rows))
  print(*judge_bias.lines(found), sep="\n")
  return 0


if __name__ == "__main__":
  try:
    sys.exit(main())
  except (ValueError, OSError) as error:  # a JudgeError is one
    sys.exit(f"{error}")
