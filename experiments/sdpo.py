"""sDPO: DPO in stages, each with the policy of the stage before as its reference.

Paper: Kim et al. 2024, arXiv:2403.19270: two data sets, the one whose pairs the first
  model ranks right more often (easier) first; every stage is plain DPO.
Command: xpo train sdpo [--beta 0.3 --sources 2]
Hardware: 2 CPU cores; four minutes for three seeds, beside other jobs.
Expected: the stages together go further from the SFT model than DPO on all data, more
  so easy first (paper, Table 2: 74.3 against 72.7; random parts 72.6). Two stages of
  one beta restrain less than one does: `DPO, beta / stages` is the fair control.
Departs from the paper: sources are made by the margin of the pairs' true reward, large
  margins one source, small ones the other; optimiser state is fresh in each stage,
  which the paper does not say.
Last result: 2026-11-22, three seeds, intervals over 128 prompts and seeds. True reward,
  from 0.091: easy first 0.305 [0.257, 0.354] at 0.46 nats, hard first 0.302 [0.258,
  0.346] at 0.75, DPO 0.310 [0.275, 0.342] at 0.44, DPO of beta / stages 0.308 [0.265,
  0.347] at 0.60. Nothing separates: the claim does not reproduce here.
"""

import dataclasses
import itertools
import time
from pathlib import Path

from xpo_jax.studies.multistage.staged_world import World


@dataclasses.dataclass(frozen=True)
class Sdpo:
  """Settings.

  Attributes:
    beta: of every stage.
    sources: of data, a stage each. Paper: 2.
    world: start and sizes.
  """

  beta: float = 0.3
  sources: int = 2
  world: World = dataclasses.field(default_factory=World)

  def __post_init__(self):
    if self.sources < 2:
      raise ValueError(f"Sdpo.sources is {self.sources}; stages need at least 2")


def experiment() -> Sdpo:
  """Two sources on the embedded world."""
  return Sdpo()


def run(sdpo: Sdpo, run_dir: Path) -> int:
  """Samples pairs, cuts them into sources, trains in stages and at once, judges."""
  from xpo_jax.config.factories import ObjectiveConfig
  from xpo_jax.studies import demo
  from xpo_jax.studies.multistage import staged

  lab = staged.Lab(sdpo, run_dir)
  order = {"easy first": 1, "hard first": -1}
  once = {"DPO": sdpo.beta, "DPO, beta / stages": sdpo.beta / sdpo.sources}
  policies = {label: {} for label in (*(f"sDPO, {x}" for x in order), *once)}
  seconds = dict.fromkeys(policies, 0.0)
  accuracies = []
  for seed in sdpo.world.seeds:
    parts, accuracy = _parts(sdpo, lab, seed)
    accuracies.append(accuracy)
    for name, step in order.items():
      began = time.perf_counter()
      done = _stages(sdpo, lab, parts[::step], f"{name.replace(' ', '-')}-{seed}", seed)
      policies[f"sDPO, {name}"][seed] = done
      seconds[f"sDPO, {name}"] += time.perf_counter() - began
    rows = [row for part in parts for row in part]
    for label, beta in once.items():
      began = time.perf_counter()
      name = f"dpo-{beta:g}-{seed}"
      done = lab.stage(name, ObjectiveConfig("dpo", beta=beta), rows, seed=seed)
      policies[label][seed] = done.params
      seconds[label] += time.perf_counter() - began
  rows = [lab.row("SFT", dict.fromkeys(sdpo.world.seeds, lab.start.params))]
  rows += [lab.row(label, policies[label], seconds[label]) for label in policies]
  demo.show(lab.finish(f"sDPO; SFT ranks its sources right: {accuracies}", rows))
  return 0


def _stages(sdpo: Sdpo, lab, parts, name: str, seed: int):
  """One arm's stages by `selection.sdpo_stage`; the last one's parameters."""
  from xpo_jax.config.factories import ObjectiveConfig
  from xpo_jax.ops import selection
  from xpo_jax.studies.multistage import staged

  sizes, rows = [len(part) for part in parts], [row for part in parts for row in part]
  names = [staged.SFT]  # of stage 0: the model before any stage
  for number in range(1, len(parts) + 1):
    stage = selection.sdpo_stage(number, sizes)
    names.append(f"{name}-stage-{number}")
    done = lab.stage(
      names[-1],
      ObjectiveConfig("dpo", beta=sdpo.beta),
      rows[stage.rows],
      start=names[stage.ref],
      seed=seed,
    )
  return done.params


def _parts(sdpo: Sdpo, lab, seed: int):
  """Sources of pairs, easiest first, and how often the SFT model ranks each right."""
  import numpy as np

  from xpo_jax.data import tokenise
  from xpo_jax.evaluation import sequence_logps
  from xpo_jax.ops import pairing, selection
  from xpo_jax.studies.multistage import stage_samples

  sampled = lab.sample(lab.start.params, completions=2, seed=seed)
  first = pairing.first_two(sampled.reward_BK, np.ones_like(sampled.reward_BK))
  columns = (first.chosen_B, first.rejected_B, first.keep_B)
  rows = stage_samples.pairs(sampled, *(np.asarray(x)[:, None] for x in columns))
  margin = {f"prompt {b} duel 0": float(x) for b, x in enumerate(first.margin_B)}
  rows = sorted(rows, key=lambda row: -margin[row.uid])
  cuts = np.linspace(0, len(rows), sdpo.sources + 1).astype(int)
  parts = [rows[a:b] for a, b in itertools.pairwise(cuts)]
  accuracy = []
  for part in parts:
    examples = tokenise.tokenise_valid(part, lab.tokenizer).examples
    found = sequence_logps.score_pairs(
      lab.model, lab.start.params, lab.start.params, examples
    )
    accuracy.append(float(np.mean(found["logp_BK"][:, 0] > found["logp_BK"][:, 1])))
  order = np.asarray(selection.easiest_first(np.array(accuracy)))
  return [parts[i] for i in order], [round(accuracy[i], 3) for i in order]
