"""Recipes of papers on rewards, feedback and games, at their scale. None was run.

What stands beside a source is the paper's, its public code's, or a summary's of them;
the rest is ours, as in `pairwise`: the public models that stand for GPT-3, PaLM 2, T5
and Anthropic's own, and a reward model that the first command trains.
"""

import functools

from xpo_jax.studies.atlas.paper_scale import Recipe, on_records, on_rollouts

HH, TLDR = "hub:Anthropic/hh-rlhf", "hub:trl-lib/tldr-preference"
TLDR_PROMPTS = "hub:trl-lib/tldr"
ULTRA = "hub:HuggingFaceH4/ultrafeedback_binarized"
PREFS = {"data.split": "train_prefs"}
PYTHIA_69 = "hub:EleutherAI/pythia-6.9b"
LLAMA_70 = "hub:meta-llama/Llama-2-70b-hf"
MISTRAL = "hub:mistralai/Mistral-7B-Instruct-v0.2"
LLAMA_8 = "hub:meta-llama/Meta-Llama-3-8B-Instruct"
QWEN_MATH = "hub:Qwen/Qwen2.5-Math-7B"

rollouts = functools.partial(on_rollouts, chips=8, batch=64, prompt=512, completion=64)
# Pairs that are labelled elsewhere.
own_pairs = functools.partial(
  on_records, chips=8, batch=64, prompt=1024, completion=1024
)


def reward_model(
  run, model, data, parameters, *, objective="bradley_terry", chips=8, sources=None
):
  """The reward model that a later command reads."""
  sources = sources or {}
  stated = [flag for own in sources.values() for flag in own]
  rate = "optimizer.learning-rate"
  return on_records(
    objective,
    model,
    data,
    sources,
    run=run,
    parameters=parameters,
    examples=160_000 if data == HH else 93_000,
    batch=64,
    chips=chips,
    prompt=512,
    completion=256,
    ours={} if rate in stated else {rate: 1e-5},
  )


SAMPLES_OF_FIVE = (
  "The pairs of each round are yours: five samples a prompt, ranked by PairRM."
)
RECIPES = (
  Recipe(
    "InstructGPT",
    "PPO at 6.9B parameters, after a reward model; the KL weight and sizes of PPO.",
    16,
    (
      reward_model(
        "instructgpt-reward",
        PYTHIA_69,
        HH,
        6.9e9,
        chips=16,
        sources={
          "the paper, appendix C.2": {
            "optimizer.learning-rate": 9e-6,
            "optimizer.schedule": "cosine",
            "optimizer.floor": 0.1,
            "optimizer.b2": 0.95,
            "data.rows-per-step": 64,
            "data.epochs": 1,
          }
        },
      ),
      rollouts(
        "ppo",
        PYTHIA_69,
        HH,
        "runs/instructgpt-reward",
        {
          "the paper, appendix C.4": {
            "objective.beta": 0.02,
            "objective.clip": 0.2,
            "objective.gamma": 1.0,
            "data.prompts-per-iteration": 512,
            "data.minibatches": 8,
            "data.ppo-epochs": 1,
            "data.iterations": 500,
            "data.sampling.temperature": 1.0,
            "optimizer.schedule": "constant",
            "optimizer.warmup-steps": 10,
            "optimizer.ema": 0.992,
          }
        },
        run="instructgpt-ppo",
        parameters=6.9e9,
        chips=16,
        batch=64,
        completion=256,
        ours={
          "data.sampling.completions": 1,
          "data.critic-init": "runs/instructgpt-reward",
          "optimizer.learning-rate": 5e-6,
        },
      ),
    ),
    "GPT-3 and its data are not public; the learning rate of PPO was not read. 256,000 "
    "episodes are 500 iterations of 512. The pretraining loss, weight 27.8, is not in "
    "the command: `xpo train instructgpt` has it.",
  ),
  Recipe(
    "RLHF (Anthropic)",
    "PPO against a preference model on helpful and harmless dialogue.",
    16,
    (
      reward_model("hh-reward", PYTHIA_69, HH, 6.9e9, chips=16),
      rollouts(
        "ppo",
        PYTHIA_69,
        HH,
        "runs/hh-reward",
        {"the paper": {"objective.beta": 0.001}},
        run="hh-ppo",
        parameters=6.9e9,
        chips=16,
        batch=256,
        completion=256,
        ours={
          "data.sampling.completions": 1,
          "data.iterations": 1000,
          "optimizer.learning-rate": 1e-6,
        },
      ),
    ),
    "The paper's models have up to 52B parameters and are not public; its other "
    "hyperparameters of RL were not read.",
  ),
  Recipe(
    "Online / iterative RLHF",
    "The first of three iterations of DPO on the policy's own best and worst samples.",
    8,
    (
      own_pairs(
        "dpo",
        "hub:RLHFlow/LLaMA3-SFT",
        "own_pairs_1.jsonl",
        {
          "the authors' code": {
            "objective.beta": 0.1,
            "optimizer.learning-rate": 5e-7,
            "optimizer.schedule": "cosine",
            "data.rows-per-step": 128,
            "data.epochs": 2,
          }
        },
        run="iterative-1",
        parameters=8e9,
        examples=20_000,
        examples_source="the authors' code",
        batch=128,
      ),
    ),
    "own_pairs_1.jsonl is yours: 8 samples of 20,000 prompts, the best and the worst "
    "by a reward model. `xpo train iterative_dpo` samples, labels and trains in one "
    "run.",
  ),
  Recipe(
    "RLAIF (Anthropic)",
    "A preference model on AI labels of harmlessness and people's of helpfulness, then "
    "PPO.",
    16,
    (
      own_pairs(
        "bradley_terry",
        PYTHIA_69,
        "labelled_pairs.jsonl",
        {},
        run="cai-reward",
        parameters=6.9e9,
        examples=318_127,
        examples_source="the paper: 135,296 of people, 182,831 of the AI",
        chips=16,
        ours={"optimizer.learning-rate": 1e-5},
      ),
      rollouts(
        "ppo",
        PYTHIA_69,
        HH,
        "runs/cai-reward",
        {"the paper": {"objective.beta": 0.001}},
        run="cai-ppo",
        parameters=6.9e9,
        chips=16,
        batch=256,
        completion=256,
        ours={
          "data.sampling.completions": 1,
          "data.iterations": 1000,
          "optimizer.learning-rate": 1e-6,
        },
      ),
    ),
    "The paper's models are not public. labelled_pairs.jsonl is yours: labels clamped "
    "to 0.4 to 0.6 where they come with reasons. `xpo train constitutional_ai` has "
    "both phases.",
  ),
  Recipe(
    "RLAIF (Google)",
    "A reward model on AI labels of summaries, then REINFORCE.",
    8,
    (
      own_pairs(
        "bradley_terry",
        PYTHIA_69,
        "ai_labelled_summaries.jsonl",
        {},
        run="rlaif-reward",
        parameters=6.9e9,
        examples=93_000,
        ours={"optimizer.learning-rate": 1e-5},
      ),
      rollouts(
        "reinforce",
        PYTHIA_69,
        TLDR_PROMPTS,
        "runs/rlaif-reward",
        {},
        run="rlaif-reinforce",
        parameters=6.9e9,
        batch=128,
        ours={
          "objective.beta": 0.05,
          "data.sampling.completions": 1,
          "data.sampling.temperature": 0.9,
          "data.iterations": 1000,
          "optimizer.learning-rate": 1e-5,
          "adapter.rank": 16,
        },
      ),
    ),
    "The paper's labeller, policy and reward model are PaLM 2; its batch, temperature, "
    "learning rate and KL weight were not read in it, and the baseline of `reinforce` "
    "is a running mean where the paper learns a value. LoRA is ours.",
  ),
  Recipe(
    "Self-Rewarding LMs",
    "Two rounds of DPO on pairs that the model judged itself.",
    64,
    (
      own_pairs(
        "dpo",
        LLAMA_70,
        "judged_pairs_1.jsonl",
        {
          "the paper": {
            "objective.beta": 0.1,
            "optimizer.learning-rate": 1e-6,
            "optimizer.floor": 0.1,
          }
        },
        run="self-rewarding-2",
        parameters=70e9,
        examples=3_964,
        examples_source="the paper",
        chips=64,
      ),
      own_pairs(
        "dpo",
        "runs/self-rewarding-2",
        "judged_pairs_2.jsonl",
        {
          "the paper": {
            "objective.beta": 0.1,
            "optimizer.learning-rate": 1e-6,
            "optimizer.floor": 0.1,
          }
        },
        run="self-rewarding-3",
        parameters=70e9,
        examples=6_942,
        examples_source="the paper",
        chips=64,
      ),
    ),
    "The paper's batch is 16, which 64 chips do not divide: 64 here. Its start is "
    "tuned on 3,200 examples of OpenAssistant and on judgements. The pairs are yours: "
    "4 samples a prompt, 3 judgements each; `xpo train self_rewarding` has the rounds.",
  ),
  Recipe(
    "RLOO",
    "Pythia 6.9B on TL;DR with two samples a prompt.",
    8,
    (
      reward_model("rloo-reward", PYTHIA_69, TLDR, 6.9e9),
      rollouts(
        "rloo",
        PYTHIA_69,
        TLDR_PROMPTS,
        "runs/rloo-reward",
        {
          "the paper": {
            "objective.beta": 0.03,
            "data.iterations": 600,
            "data.prompts-per-iteration": 256,
            "data.sampling.completions": 2,
            "optimizer.learning-rate": 1e-6,
            "optimizer.schedule": "constant",
            "optimizer.warmup-steps": 18,
          }
        },
        run="rloo",
        parameters=6.9e9,
        batch=256,
      ),
    ),
    "The paper's rollout batch is 512 samples, 256 a step: 256 prompts of two samples, "
    "in one step here; warm-up of 3 % is 18 steps of 600. Its start is tuned on "
    "summaries.",
  ),
  Recipe(
    "ReMax",
    "Llama-2 7B on HH, one sample and a greedy one.",
    8,
    (
      reward_model("remax-reward", "hub:meta-llama/Llama-2-7b-hf", HH, 6.7e9),
      rollouts(
        "remax",
        "hub:meta-llama/Llama-2-7b-hf",
        HH,
        "runs/remax-reward",
        {},
        run="remax",
        parameters=6.7e9,
        completion=256,
        ours={
          "data.sampling.completions": 2,
          "data.iterations": 1000,
          "optimizer.learning-rate": 1e-6,
        },
      ),
    ),
    "The paper trains on full-hh-rlhf; its hyperparameters were not read.",
  ),
  Recipe(
    "Dr. GRPO",
    "Qwen2.5-Math on problems with an answer.",
    8,
    (
      rollouts(
        "dr_grpo",
        QWEN_MATH,
        "math_problems.jsonl",
        "runs/no-reward-model",
        {},
        run="dr-grpo",
        parameters=7.6e9,
        batch=128,
        completion=3000,
        ours={
          "objective.length": 3000.0,
          "data.sampling.completions": 8,
          "data.iterations": 500,
          "optimizer.learning-rate": 1e-6,
        },
      ),
    ),
    "The paper's hyperparameters were not read. math_problems.jsonl is yours, and so "
    "is the reward, which compares answers: write it in place of runs/no-reward-model, "
    "as MODULE:FUNCTION.",
  ),
  Recipe(
    "Nash learning (NLHF)",
    "Nash-MD on TL;DR against a preference.",
    8,
    (
      reward_model("nash-reward", PYTHIA_69, TLDR, 6.9e9),
      rollouts(
        "nash_md",
        PYTHIA_69,
        TLDR_PROMPTS,
        "runs/nash-reward",
        {"the paper": {"objective.beta": 0.008, "data.iterations": 10_000}},
        run="nash-md",
        parameters=6.9e9,
        ours={
          "data.sampling.opponent.share": 0.25,
          "optimizer.learning-rate": 1e-6,
        },
      ),
    ),
    "The paper's policy is a T5X-L and its preference model a T5X-XL on both "
    "completions; here a preference is made of a reward model, which is transitive. "
    "Optimiser, learning rate and batch are not reported; the share of the reference "
    "in the mixture is best from 0.125 to 0.375 there.",
  ),
  Recipe(
    "SPPO",
    "The first of three rounds of Mistral 7B against itself.",
    8,
    (
      own_pairs(
        "sppo",
        MISTRAL,
        "own_pairs_1.jsonl",
        {
          "the authors' code": {
            "objective.beta": 0.001,
            "optimizer.learning-rate": 5e-7,
            "optimizer.kind": "rmsprop",
          }
        },
        run="sppo-1",
        parameters=7.2e9,
        examples=20_000,
      ),
    ),
    f"{SAMPLES_OF_FIVE} The authors' script has 18 epochs with an early stop, their "
    "config 6; one here.",
  ),
  Recipe(
    "DNO",
    "The first round of contrastive training on pairs of the policy and a teacher.",
    8,
    (
      own_pairs(
        "dno",
        MISTRAL,
        "ranked_pairs_1.jsonl",
        {},
        run="dno-1",
        parameters=7.2e9,
        examples=20_000,
        ours={"objective.beta": 0.1, "optimizer.learning-rate": 5e-7},
      ),
    ),
    "The paper's model, Orca-2.5 7B, is not public, and its hyperparameters were not "
    "read. ranked_pairs_1.jsonl is yours: 5 samples a prompt and GPT-4 Turbo's own, "
    "ranked by it.",
  ),
)
