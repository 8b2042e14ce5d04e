"""Loss per step beside TRL: the same weights, rows, optimiser and steps, in float32.

What: a small Llama of random weights and a tokenizer of bytes, written once as a
  Hugging Face directory; both train from it, on all rows at each of 20 steps, by AdamW
  at a constant rate. A row of the table is a method in both codes, and the largest
  difference of the losses over the steps.
Command: python -m experiments.bench.trl_curves [--peer PYTHON_WITH_TRL] [--only dpo]
Hardware: CPU; the peer needs torch, transformers, datasets and TRL 1.16.
Hours: 0.05
Result: experiments/results/trl_curves.csv, written where every method was measured.

Where TRL departs from a paper, the objective that does the same is trained. TRL's ORPO
counts the prompt in its NLL term and is trained twice: on the rows as they are, where
the losses must differ, and on the same texts with the prompt's first byte as the whole
prompt, where they must not.
"""

import argparse
import csv
import dataclasses
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tokenizers
import transformers

from xpo_jax.config.data import Data
from xpo_jax.config.experiment import Experiment, Loop, MeshShape, Pretrained
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.config.optim import Optimizer
from xpo_jax.data import collate, sealed_files, synthetic_reviews, tokenise
from xpo_jax.data.records import Demonstration, Pair, Rated, Record
from xpo_jax.models import hf_checkpoint, transformer
from xpo_jax.train import loop

PEER = Path(__file__).with_name("trl_peer.py")
ROWS, STEPS = 16, 20
# At 1e-3 the losses part by up to 7e-4 after ten steps: Adam magnifies rounding where
# gradients almost vanish.
LEARNING_RATE = 3e-4
HEAD = ("method", "step 1", "step 20, ours", "TRL", "largest difference", "TRL's way")
RESULTS = Path(__file__).parents[1] / "results" / "trl_curves.csv"
BOUND = 1e-4  # on the difference of two losses
CONFIG = transformer.Config(
  vocab=260, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=64
)


class Method(NamedTuple):
  """A method in both codes.

  Attributes:
    objective: ours.
    trainer: TRL's trainer and config, without "Trainer" and "Config".
    settings: of its config.
    rows: key of the data.
    deviation: what differs in TRL, for the table.
    equal: whether the losses must agree.
  """

  objective: ObjectiveConfig
  trainer: str
  settings: dict[str, Any]
  rows: str = "pairs"
  deviation: str = ""
  equal: bool = True


METHODS = {
  "sft": Method(ObjectiveConfig("sft"), "SFT", {}, "demonstrations"),
  "dpo": Method(ObjectiveConfig("dpo", beta=0.1), "DPO", {"beta": 0.1}),
  "ipo": Method(
    ObjectiveConfig("ipo_avg", beta=0.1),
    "DPO",
    {"beta": 0.1, "loss_type": ["ipo"]},
    deviation="log-probs averaged over tokens: ours is `ipo_avg`",
  ),
  "kto": Method(
    ObjectiveConfig("kto", beta=0.1),
    "KTO",
    {"beta": 0.1},
    "rated",
    "mismatched completions are neighbours: rows are given in the order of ours",
  ),
  "simpo": Method(
    ObjectiveConfig("simpo", beta=2.0, gamma=1.0),
    "CPO",
    {"beta": 2.0, "loss_type": "simpo", "simpo_gamma": 1.0, "cpo_alpha": 0.0},
    deviation="an NLL term is added unless `cpo_alpha` is 0",
  ),
  "cpo": Method(
    ObjectiveConfig("cpo", beta=0.1, weight=1.0, reduction="token_mean"),
    "CPO",
    {"beta": 0.1, "loss_type": "sigmoid", "cpo_alpha": 1.0},
    deviation='NLL per token of the batch: `reduction="token_mean"`',
  ),
  "orpo": Method(
    ObjectiveConfig("orpo", weight=0.1),
    "ORPO",
    {"beta": 0.1},
    "texts",
    "NLL over prompt and completion: shown with a prompt of one token",
  ),
  "orpo_with_prompts": Method(
    ObjectiveConfig("orpo", weight=0.1),
    "ORPO",
    {"beta": 0.1},
    deviation="NLL over prompt and completion",
    equal=False,
  ),
}


def main() -> None:
  """Trains ours and, where there is a TRL, theirs; prints a table."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--peer", default=sys.executable, help="a Python with TRL")
  parser.add_argument("--only", default=",".join(METHODS), help="methods, with commas")
  args = parser.parse_args()
  names = [name.strip() for name in args.only.split(",")]
  unknown = [name for name in names if name not in METHODS]
  if unknown:
    parser.error(f"--only: no method {unknown[0]!r}; known: {', '.join(METHODS)}")
  chosen = {name: METHODS[name] for name in names}
  with tempfile.TemporaryDirectory() as temporary:
    directory = Path(temporary)
    tokenizer = write_model(directory / "model")
    rows = make_rows()
    rows["rated"] = in_order_of_mismatches(rows["rated"], tokenizer)
    jobs = {
      name: {
        "trainer": method.trainer,
        "settings": method.settings,
        "rows": [plain(row) for row in rows[method.rows]],
      }
      for name, method in chosen.items()
    }
    settings = {"learning_rate": LEARNING_RATE, "steps": STEPS, "methods": jobs}
    (directory / "jobs.json").write_text(json.dumps(settings))
    ours = {
      name: train(method, rows[method.rows], directory, name)
      for name, method in chosen.items()
    }
    theirs = peer(args.peer, directory)
  report(chosen, ours, theirs)


def write_model(directory: Path) -> Any:
  """Writes a model of random weights with a tokenizer of bytes; returns the tokenizer.

  A byte is a token, so that no token spans prompt and completion. There is no BOS:
  some of TRL's trainers add one by themselves and others do not.
  """
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  vocab = {token: i for i, token in enumerate([*alphabet, "<|end|>", "<|pad|>"])}
  model = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
  model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  model.decoder = tokenizers.decoders.ByteLevel()
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=model, eos_token="<|end|>", pad_token="<|pad|>"
  )
  params = jax.jit(transformer.model(CONFIG).init)(jax.random.key(0))
  hf_checkpoint.save(directory, CONFIG, {"lm": params}, tokenizer=tokenizer)
  return tokenizer


def make_rows() -> dict[str, list[Record]]:
  """The rows of each kind of data; every prompt is another."""
  texts = synthetic_reviews.generate(4 * ROWS, seed=0)
  pairs = [
    Pair(f"{i}", f"{i}. {prompt}", good, texts[i + ROWS][1])
    for i, (prompt, good) in enumerate(texts[:ROWS])
  ]
  return {
    "pairs": pairs,
    "texts": [
      dataclasses.replace(
        pair,
        prompt=pair.prompt[:1],
        chosen=pair.prompt[1:] + pair.chosen,
        rejected=pair.prompt[1:] + pair.rejected,
      )
      for pair in pairs
    ],
    "demonstrations": [Demonstration(p.uid, p.prompt, p.chosen) for p in pairs],
    "rated": [
      Rated(f"{i}", f"{i}. {prompt}", text, desirable=i % 2 == 0)
      for i, (prompt, text) in enumerate(texts[: 2 * ROWS])
    ],
  }


def in_order_of_mismatches(rows: Sequence[Record], tokenizer: Any) -> list[Record]:
  """Orders rows so that each is paired with the completion of the one before it, as TRL
  pairs neighbours, by our own derangement (seed 0, as `Data.seed`)."""
  examples = tokenise.tokenise(rows, tokenizer)
  mismatched = collate.add_mismatched(examples, seed=0)
  index = {e.completions[0].tobytes(): i for i, e in enumerate(examples)}
  if len(index) < len(rows):
    raise SystemExit("two rows have the same completion; take another seed")
  follower = {index[e.completions[1].tobytes()]: i for i, e in enumerate(mismatched)}
  order = [0]
  while len(order) < len(rows):
    order.append(follower[order[-1]])
  return [rows[i] for i in order]


def plain(row: Record) -> dict[str, Any]:
  """A row as TRL reads it."""
  if isinstance(row, Pair):
    return {"prompt": row.prompt, "chosen": row.chosen, "rejected": row.rejected}
  content = {"prompt": row.prompt, "completion": row.completion}
  return content | ({"label": row.desirable} if isinstance(row, Rated) else {})


def train(
  method: Method, rows: Sequence[Record], directory: Path, name: str
) -> list[float]:
  """Trains ours; returns the loss of each step, before its update."""
  experiment = Experiment(
    method.objective,
    Data("rows", rows_per_step=len(rows), groups_per_row=1, steps=STEPS, epochs=STEPS),
    Pretrained(str(directory / "model")),
    Optimizer(learning_rate=LEARNING_RATE, schedule="constant", clip=None),
    Loop(log_every=STEPS, checkpoint_minutes=None),
    MeshShape(data=1),
  )
  run_dir = directory / name
  loop.train(experiment, run_dir, datasets={"rows": rows}, say=lambda line: None)
  lines = (run_dir / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line)["loss"] for line in lines]


def peer(python: str, directory: Path) -> dict | None:
  """What trl_peer.py prints, or None where it has no TRL."""
  check = [python, "-c", "import torch, trl"]
  if subprocess.run(check, stderr=subprocess.DEVNULL).returncode:
    return None
  env = os.environ | {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
  }
  command = [python, str(PEER), str(directory)]
  done = subprocess.run(command, env=env, capture_output=True, text=True)
  if done.returncode:
    raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
  return json.loads(done.stdout.splitlines()[-1])


def report(
  methods: dict[str, Method], ours: dict[str, list[float]], theirs: dict | None
) -> None:
  """Prints first and last losses and the largest difference of each method, and writes
  them to `RESULTS` where every method was measured."""
  if theirs is None:
    for name, losses in ours.items():
      print(f"{name:14} {losses[0]:.6f} -> {losses[-1]:.6f}")
    print("TRL: not measured, there is none here; see --peer")
    return
  print(theirs["versions"])
  lines, wrong = [HEAD], []
  for name, method in methods.items():
    a, b = np.array(ours[name]), np.array(theirs["losses"][name])
    if a.shape != b.shape:
      raise SystemExit(f"{name}: {len(a)} steps of ours, {len(b)} of TRL's")
    largest = np.abs(a - b).max()
    cells = (name, f"{a[0]:.6f}", f"{a[-1]:.6f}", f"{b[-1]:.6f}", f"{largest:.1e}")
    lines.append((*cells, method.deviation))
    if (largest <= BOUND) != method.equal:
      wrong.append(name)
  text = io.StringIO()
  csv.writer(text, lineterminator="\n").writerows(lines)
  print(text.getvalue())
  if len(methods) == len(METHODS):
    sealed_files.write_text(RESULTS, text.getvalue())
  if wrong:
    raise SystemExit(f"not as expected (bound {BOUND}): {', '.join(wrong)}")


if __name__ == "__main__":
  main()
