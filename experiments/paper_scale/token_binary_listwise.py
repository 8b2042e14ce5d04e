"""Recipes of papers on tokens, single completions, lists and negatives, at their scale.

None was run. What stands beside a source is the paper's, its public code's, or a
summary's of them; the rest is ours, as in `pairwise`.
"""

import functools

from xpo_jax.studies.atlas.paper_scale import Recipe, on_records

HH = "hub:Anthropic/hh-rlhf"
PYTHIA_28, LLAMA = "hub:EleutherAI/pythia-2.8b", "hub:meta-llama/Llama-2-7b-hf"
GPT2_MEDIUM = "hub:openai-community/gpt2-medium"

on = functools.partial(on_records, batch=32, chips=8, prompt=512, completion=256)


def sft(run, model, parameters, data, examples):
  """SFT that the next command starts from; all of it ours."""
  return on(
    "sft",
    model,
    data,
    {},
    run=run,
    parameters=parameters,
    examples=examples,
    columns=1,
    ours={"optimizer.learning-rate": 1e-5},
  )


RECIPES = (
  Recipe(
    "From r to Q*",
    "DPO on Anthropic HH, read token by token.",
    8,
    (
      sft("r-to-q-sft", PYTHIA_28, 2.8e9, HH, 160_000),
      on(
        "token_dpo",
        "runs/r-to-q-sft",
        HH,
        {
          "defaults of the DPO code, which the paper uses": {
            "objective.beta": 0.1,
            "data.rows-per-step": 64,
            "optimizer.kind": "rmsprop",
            "optimizer.learning-rate": 5e-7,
            "optimizer.warmup-steps": 150,
          }
        },
        run="r-to-q",
        parameters=2.8e9,
        examples=160_000,
        batch=64,
        ours={"optimizer.schedule": "constant"},
      ),
    ),
    "The betas of its search by beams were not found.",
  ),
  Recipe(
    "TDPO",
    "TDPO2 on Anthropic HH.",
    8,
    (
      sft("tdpo-sft", PYTHIA_28, 2.8e9, HH, 160_000),
      on(
        "tdpo2",
        "runs/tdpo-sft",
        HH,
        {
          "the authors' README and config": {
            "objective.beta": 0.1,
            "objective.alpha": 0.5,
            "data.rows-per-step": 64,
            "data.limits.prompt": 256,
            "optimizer.kind": "rmsprop",
            "optimizer.learning-rate": 5e-6,
            "optimizer.warmup-steps": 150,
            "optimizer.clip": 10.0,
            "data.epochs": 3,
          }
        },
        run="tdpo",
        parameters=2.8e9,
        examples=160_000,
        batch=64,
        prompt=256,
        ours={"optimizer.schedule": "constant"},
      ),
    ),
    "The README suggests three epochs.",
  ),
  Recipe(
    "CRINGE",
    "Pairs of the model's own samples, by repetition.",
    8,
    (
      on(
        "pairwise_cringe",
        GPT2_MEDIUM,
        "repetition_pairs.jsonl",
        {},
        run="cringe",
        parameters=0.35e9,
        examples=10_000,
        prompt=64,
        completion=192,
        ours={
          "objective.alpha": 1.0,
          "objective.margin": 0.0,
          "objective.temperature": 1.0,
          "optimizer.learning-rate": 1e-5,
        },
      ),
    ),
    "The paper's margin, temperature and alpha are set for each task; their values "
    "were not found. repetition_pairs.jsonl is yours; `xpo train iterative_cringe` "
    "samples and labels in one run.",
  ),
  Recipe(
    "KTO",
    "Llama 7B on Anthropic HH, each completion alone.",
    8,
    (
      sft("kto-sft", LLAMA, 6.7e9, HH, 160_000),
      on(
        "kto",
        "runs/kto-sft",
        HH,
        {
          "the authors' code": {
            "objective.beta": 0.1,
            "objective.desirable-weight": 1.0,
            "objective.undesirable-weight": 1.0,
            "optimizer.learning-rate": 5e-6,
          },
          "the paper": {"data.rows-per-step": 32},
        },
        run="kto",
        parameters=6.7e9,
        examples=320_000,
        columns=1,
        # The other row of an example is its mismatched completion.
        ours={"data.row-length": 1024},
      ),
    ),
    "The paper also has OpenAssistant and SHP.",
  ),
  Recipe(
    "DRO",
    "Completions with a reward each, on UltraFeedback.",
    8,
    (
      on(
        "dro",
        PYTHIA_28,
        "rated_completions.jsonl",
        {
          "the paper": {
            "objective.beta": 1.0,
            "optimizer.kind": "adafactor",
            "optimizer.learning-rate": 1e-4,
            "optimizer.b2": 0.8,
            "optimizer.warmup-steps": 150,
            "data.rows-per-step": 32,
            "data.steps": 40_000,
          }
        },
        run="dro",
        parameters=2.8e9,
        examples=250_000,
        columns=1,
        ours={"data.epochs": 6, "adapter.rank": 16},
      ),
    ),
    "The paper's policy is a T5-L, 40,000 steps; its value network is one of its own. "
    "LoRA is ours, for that learning rate. rated_completions.jsonl is yours: rewards "
    "of mean 0 and variance 1.",
  ),
  Recipe(
    "LiPO",
    "Lists of eight samples with averaged win rates.",
    8,
    (
      on(
        "lipo",
        PYTHIA_28,
        "ranked_lists.jsonl",
        {
          "the paper": {
            "objective.beta": 0.05,
            "optimizer.kind": "adafactor",
            "optimizer.learning-rate": 2e-5,
            "data.rows-per-step": 32,
          }
        },
        run="lipo",
        parameters=2.8e9,
        examples=93_000,
        columns=8,
        completion=64,
      ),
    ),
    "The paper's policy is a T5-large and its reward model a T5-XXL. "
    "ranked_lists.jsonl is yours: 8 samples at temperature 0.7 and top-k 40.",
  ),
  Recipe(
    "RRHF",
    "Four to five completions a prompt on HH.",
    8,
    (
      on(
        "rrhf",
        LLAMA,
        "ranked_lists.jsonl",
        {
          "the authors' script": {
            "objective.weight": 1.0,
            "objective.length-penalty": 1.0,
            "optimizer.learning-rate": 2e-5,
            "data.epochs": 3,
            "data.limits.completion": 192,
          }
        },
        run="rrhf",
        parameters=6.7e9,
        examples=160_000,
        batch=64,
        columns=5,
        prompt=192,
        completion=192,
      ),
    ),
    "Its completions are written by other models and by the start; ranked_lists.jsonl "
    "is yours. The authors' code divides by the padded width and not by the length.",
  ),
  Recipe(
    "PRO",
    "Ranked lists on HH.",
    8,
    (
      on(
        "pro",
        LLAMA,
        "ranked_lists.jsonl",
        {
          "the authors' script": {
            "objective.sft-weight": 0.05,
            "optimizer.learning-rate": 5e-6,
            "data.epochs": 2,
          }
        },
        run="pro",
        parameters=6.7e9,
        examples=160_000,
        batch=16,
        columns=5,
      ),
    ),
    "Lists of 2 to 5 with completions of ChatGPT and Alpaca; ranked_lists.jsonl is "
    "yours. The script's batch is 2 on each of 7 GPUs.",
  ),
  Recipe(
    "Negating Negatives (D2O)",
    "Harmful completions against the model's own samples.",
    8,
    (
      on(
        "d2o",
        "hub:PKU-Alignment/alpaca-7b-reproduced",
        "harmful_and_own.jsonl",
        {
          "a third party's code": {
            "objective.beta": 0.1,
            "objective.alpha": 0.1,
            "optimizer.learning-rate": 1e-4,
          }
        },
        run="d2o",
        parameters=6.7e9,
        examples=10_000,
        columns=12,
        completion=128,
        ours={
          "adapter.rank": 16,
          "references": [
            "ref_minus=hub:PKU-Alignment/alpaca-7b-reproduced",
            "ref_plus=hub:PKU-Alignment/alpaca-7b-reproduced",
          ],
        },
      ),
    ),
    "The paper's beta, alpha and number of samples were not found; the third party has "
    "11 samples. harmful_and_own.jsonl is yours: a harmful completion of PKU-SafeRLHF "
    "below the model's own.",
  ),
  Recipe(
    "NPO",
    "Forgetting authors of TOFU with Llama-2 7B.",
    8,
    (
      on(
        "npo",
        "hub:locuslab/tofu_ft_llama2-7b",
        "hub:locuslab/TOFU:forget10",
        {
          "the authors' code": {
            "objective.beta": 0.1,
            "optimizer.learning-rate": 1e-5,
            "optimizer.weight-decay": 0.01,
            "data.epochs": 10,
            "data.rows-per-step": 32,
          }
        },
        run="npo",
        parameters=6.7e9,
        examples=400,
        columns=1,
        prompt=64,
        completion=192,
      ),
    ),
    "The authors' batch is 4 times 4 accumulated on 2 GPUs, their warm-up one epoch. "
    "The columns of the data are to be named, and every record is undesirable "
    "(--data.reading); a loss on the retain set is an auxiliary one.",
  ),
)
