"""Recipes of papers on pairs, at their scale. None was run.

Sources are what the papers, their public code or summaries of them state; a recipe's
other settings are ours, and so are the public models and data sets that stand for those
that are not.
"""

from xpo_jax.studies.atlas.paper_scale import ROUND, Recipe, on_records

HH, TLDR = "hub:Anthropic/hh-rlhf", "hub:trl-lib/tldr-preference"
ULTRA = "hub:HuggingFaceH4/ultrafeedback_binarized"
PREFS = {"data.split": "train_prefs"}
PYTHIA_28 = "hub:EleutherAI/pythia-2.8b"
MISTRAL, LLAMA = "hub:mistralai/Mistral-7B-v0.1", "hub:meta-llama/Llama-2-7b-hf"
GPT2_LARGE = "hub:openai-community/gpt2-large"
SIZE = {PYTHIA_28: 2.8e9, MISTRAL: 7.2e9, LLAMA: 6.7e9, GPT2_LARGE: 0.77e9}
PAIRS = {HH: 160_000, TLDR: 93_000, ULTRA: 60_000}


def sft(name, model, data, chips, *, prompt=512, completion=512, **more):
  """SFT on chosen completions, which the second command starts from; all of it ours."""
  return on_records(
    "sft",
    model,
    data,
    {},
    run=f"{name}-sft",
    parameters=SIZE[model],
    examples=PAIRS.get(data, 10_000),
    batch=64,
    chips=chips,
    prompt=prompt,
    completion=completion,
    columns=1,
    ours={"optimizer.learning-rate": 1e-5, **more},
  )


def pairs(
  name,
  objective,
  model,
  data,
  chips,
  sources,
  *,
  start=None,
  batch=64,
  prompt=512,
  completion=512,
  examples=None,
  examples_source=ROUND,
  ours=None,
):
  """An objective on pairs, of an SFT command's policy where no start is named."""
  return on_records(
    objective,
    start or f"runs/{name}-sft",
    data,
    sources,
    run=f"{name}-{objective}",
    parameters=SIZE[model],
    examples=examples or PAIRS.get(data, 10_000),
    batch=batch,
    chips=chips,
    prompt=prompt,
    completion=completion,
    examples_source=examples_source,
    ours=ours,
  )


SDPO = {
  "parameters": 10.7e9,
  "batch": 64,
  "chips": 16,
  "prompt": 1024,
  "completion": 512,
  "examples_source": "the paper",
}
RECIPES = (
  Recipe(
    "DPO",
    "Dialogue on Anthropic HH.",
    8,
    (
      sft("dpo", PYTHIA_28, HH, 8, prompt=256, completion=256),
      pairs(
        "dpo",
        "dpo",
        PYTHIA_28,
        HH,
        8,
        {
          "the paper's appendix B": {
            "objective.beta": 0.1,
            "data.rows-per-step": 64,
            "optimizer.kind": "rmsprop",
            "optimizer.learning-rate": 1e-6,
            "optimizer.warmup-steps": 150,
          },
          "the authors' code": {"optimizer.clip": 10.0},
        },
        prompt=256,
        completion=256,
        ours={"optimizer.schedule": "constant"},
      ),
    ),
    "The authors' code has a learning rate of 5e-7. IMDb with GPT-2 large is "
    "`xpo train controlled_sentiment_imdb`.",
  ),
  Recipe(
    "IPO",
    "A bandit of three actions; `xpo reproduce ipo` runs it at its size.",
    1,
    (),
    "The paper trains no language model.",
  ),
  Recipe(
    "Robust DPO",
    "Sentiment on IMDb with flipped labels.",
    8,
    (
      pairs(
        "robust-dpo",
        "robust_dpo",
        GPT2_LARGE,
        "imdb_pairs.jsonl",
        8,
        {
          "TRL's index of papers": {
            "objective.beta": 0.1,
            "objective.flip-rate": 0.1,
            "optimizer.learning-rate": 1e-3,
            "data.rows-per-step": 16,
          }
        },
        batch=16,
        start=GPT2_LARGE,
        prompt=64,
        completion=224,
        ours={"adapter.rank": 16},
      ),
    ),
    "imdb_pairs.jsonl is yours: two completions of each prompt, labelled by a "
    "sentiment classifier, a tenth of the labels flipped. LoRA is ours: the learning "
    "rate is one of an adapter.",
  ),
  Recipe(
    "DPOP (Smaug)",
    "MetaMath pairs with small edit distances.",
    8,
    (
      pairs(
        "dpop",
        "dpop",
        MISTRAL,
        "metamath_pairs.jsonl",
        8,
        {"third parties' code (SamPO, mlx-lm-lora)": {"objective.penalty": 50.0}},
        start=MISTRAL,
        ours={"objective.beta": 0.3, "optimizer.learning-rate": 5e-7},
      ),
    ),
    "The paper's models are 7B to 72B; its beta and learning rate were not found. "
    "metamath_pairs.jsonl is yours.",
  ),
  Recipe(
    "beta-DPO",
    "Dialogue on Anthropic HH.",
    8,
    (
      sft("beta-dpo", PYTHIA_28, HH, 8, prompt=256, completion=256),
      pairs(
        "beta-dpo",
        "beta_dpo",
        PYTHIA_28,
        HH,
        8,
        {
          "the paper": {"objective.keep": 0.8, "objective.momentum": 0.9},
          "the example of the authors' code": {"objective.alpha": 0.6},
        },
        prompt=256,
        completion=256,
        ours={"objective.beta": 0.1, "optimizer.learning-rate": 1e-6},
      ),
    ),
    "The default alpha of the authors' code is 0.",
  ),
  Recipe(
    "sDPO",
    "Two stages, the easier data first, each stage's policy the next one's reference.",
    16,
    (
      on_records(
        "dpo",
        "hub:upstage/SOLAR-10.7B-v1.0",
        "hub:Intel/orca_dpo_pairs",
        {},
        run="sdpo-1",
        examples=12_000,
        ours={"objective.beta": 0.1, "optimizer.learning-rate": 5e-7},
        **SDPO,
      ),
      on_records(
        "dpo",
        "runs/sdpo-1",
        ULTRA,
        {},
        run="sdpo-2",
        examples=60_000,
        ours=PREFS | {"objective.beta": 0.1, "optimizer.learning-rate": 5e-7},
        **SDPO,
      ),
    ),
    "The paper starts from an SFT model of its own, and follows Zephyr in what it does "
    "not state.",
  ),
  Recipe(
    "GPO",
    "Summaries labelled by a golden reward model.",
    8,
    (
      pairs(
        "gpo",
        "gpo",
        PYTHIA_28,
        TLDR,
        8,
        {},
        start=PYTHIA_28,
        ours={
          "objective.link": "truncated_quadratic",
          "objective.beta": 0.1,
          "optimizer.learning-rate": 1e-6,
        },
      ),
    ),
    "The paper's policy is a T5, its hyperparameters were not found, and its labels "
    "are a golden model's.",
  ),
  Recipe(
    "R-DPO",
    "Dialogue on Anthropic HH.",
    8,
    (
      sft("r-dpo", PYTHIA_28, HH, 8, prompt=256, completion=256),
      pairs(
        "r-dpo",
        "r_dpo",
        PYTHIA_28,
        HH,
        8,
        {
          "the paper": {"objective.beta": 0.1},
          "a third party's code (SamPO)": {"objective.alpha": 0.01},
        },
        prompt=256,
        completion=256,
        ours={"optimizer.learning-rate": 1e-6},
      ),
    ),
    "The paper's alpha was not found.",
  ),
  Recipe(
    "SimPO",
    "Mistral, base setting, on UltraFeedback.",
    8,
    (
      pairs(
        "simpo",
        "simpo",
        MISTRAL,
        ULTRA,
        8,
        {
          "the authors' code": {
            "objective.beta": 2.0,
            "objective.gamma": 1.6,
            "optimizer.learning-rate": 3e-7,
            "optimizer.schedule": "cosine",
            "data.rows-per-step": 128,
            "data.epochs": 1,
          }
        },
        batch=128,
        start="hub:alignment-handbook/zephyr-7b-sft-full",
        prompt=1024,
        completion=1024,
        ours=PREFS | {"optimizer.warmup-steps": 47},
      ),
    ),
    "The code's gamma is a share of beta, 0.8. Its warm-up is 10 % of the steps: 47 of "
    "470. The start's name is ours.",
  ),
  Recipe(
    "ORPO",
    "Mistral 7B on UltraFeedback, from the base model.",
    8,
    (
      pairs(
        "orpo",
        "orpo",
        MISTRAL,
        ULTRA,
        8,
        {
          "the paper": {"objective.weight": 0.1},
          "the authors' code": {
            "optimizer.learning-rate": 5e-6,
            "optimizer.warmup-steps": 200,
            "data.epochs": 5,
            "data.rows-per-step": 32,
            "data.limits.prompt": 1792,
          },
        },
        batch=32,
        start=MISTRAL,
        prompt=1792,
        completion=1024,
        ours=PREFS | {"optimizer.schedule": "cosine"},
      ),
    ),
    "The authors' schedule is an inverse square root and their completions have 2,048 "
    "tokens.",
  ),
  Recipe(
    "PAFT",
    "SFT and DPO in parallel on Mistral 7B, with LoRA, merged afterwards.",
    8,
    (
      pairs(
        "paft",
        "dpo",
        MISTRAL,
        ULTRA,
        8,
        {},
        start=MISTRAL,
        ours=PREFS
        | {
          "objective.beta": 0.1,
          "adapter.rank": 16,
          "optimizer.learning-rate": 5e-5,
        },
      ),
      sft("paft", MISTRAL, ULTRA, 8, **{"adapter.rank": 16}),
    ),
    "The paper's L1 weight, rank and threshold were not found. `xpo train paft` has "
    "the L1 penalty and the merges; these are its two arms alone.",
  ),
  Recipe(
    "Beyond reverse KL (f-DPO)",
    "Dialogue on Anthropic HH with the Jensen-Shannon divergence.",
    8,
    (
      sft("f-dpo", PYTHIA_28, HH, 8, prompt=256, completion=256),
      pairs(
        "f-dpo",
        "f_dpo",
        PYTHIA_28,
        HH,
        8,
        {"the authors' scripts": {"objective.beta": 0.1}},
        prompt=256,
        completion=256,
        ours={
          "objective.divergence": "jensen_shannon",
          "optimizer.learning-rate": 1e-6,
        },
      ),
    ),
    "The scripts sweep beta from 0.1 to 0.9.",
  ),
  Recipe(
    "CPO",
    "ALMA 13B with LoRA on parallel sentences of ten directions.",
    8,
    (
      on_records(
        "cpo",
        "hub:haoranxu/ALMA-13B",
        "hub:haoranxu/ALMA-R-Preference",
        {
          "the authors' code": {
            "objective.beta": 0.1,
            "objective.weight": 1.0,
            "objective.reduction": "token_mean",
            "optimizer.learning-rate": 1e-4,
            "data.epochs": 1,
          }
        },
        run="cpo",
        parameters=13e9,
        examples=22_000,
        examples_source="the paper",
        batch=128,
        chips=8,
        prompt=256,
        completion=256,
        ours={"adapter.rank": 16, "optimizer.schedule": "cosine"},
      ),
    ),
    "The authors' schedule is an inverse square root; the columns of their data are to "
    "be named (--data.reading).",
  ),
  Recipe(
    "NCA, InfoNCA",
    "Mistral 7B on UltraFeedback with an adapter.",
    8,
    (
      pairs(
        "nca",
        "nca",
        MISTRAL,
        ULTRA,
        8,
        {
          "the authors' code": {
            "objective.beta": 0.01,
            "optimizer.learning-rate": 5e-6,
            "data.rows-per-step": 32,
            "data.epochs": 1,
            "adapter.rank": 16,
            "adapter.alpha": 16.0,
          }
        },
        batch=32,
        start="hub:HuggingFaceH4/mistral-7b-sft-beta",
        ours=PREFS,
      ),
    ),
    "The authors' adapter is on a base of 4 bits, with dropout.",
  ),
  Recipe(
    "APO",
    "Llama-3 8B Instruct on contrastive revisions.",
    8,
    (
      on_records(
        "apo_zero",
        "hub:meta-llama/Meta-Llama-3-8B-Instruct",
        "hub:ContextualAI/ultrafeedback_clair_32k",
        {
          "TRL's index of papers": {
            "objective.beta": 0.1,
            "optimizer.learning-rate": 2e-7,
            "data.rows-per-step": 64,
          }
        },
        run="apo",
        parameters=8e9,
        examples=32_000,
        batch=64,
        chips=8,
        prompt=512,
        completion=1024,
      ),
    ),
    "The name of the data set is ours.",
  ),
  Recipe(
    "SLiC-HF",
    "Calibration on ranked samples of an SFT policy.",
    8,
    (
      pairs(
        "slic",
        "slic",
        PYTHIA_28,
        "ranked_samples.jsonl",
        8,
        {
          "the paper": {
            "objective.delta": 1.0,
            "optimizer.learning-rate": 1e-5,
            "data.rows-per-step": 32,
          },
          "a third party's code (HALOs)": {"objective.weight": 0.1},
        },
        batch=32,
        start=PYTHIA_28,
        prompt=512,
        completion=64,
        examples=117_000,
        examples_source="the paper, prompts of its SFT data",
      ),
    ),
    "The paper's policy is a T5-Large and its ranker a T5-XXL. ranked_samples.jsonl is "
    "yours: 8 samples at temperature 0.7 and top-k 40, ranked; `xpo train "
    "slic_sample_rank` makes such pairs in one run.",
  ),
  Recipe(
    "RSO",
    "Pairs of samples that rejection accepts.",
    8,
    (
      pairs(
        "rso",
        "rso",
        PYTHIA_28,
        "accepted_samples.jsonl",
        8,
        {
          "the paper": {
            "objective.beta": 0.05,
            "optimizer.learning-rate": 1e-5,
            "optimizer.kind": "adafactor",
            "data.rows-per-step": 32,
          }
        },
        batch=32,
        start=PYTHIA_28,
        prompt=512,
        completion=64,
        examples=93_000,
      ),
    ),
    "The paper's policy is a T5-Large and its ranker a T5-XXL. accepted_samples.jsonl "
    "is yours: 8 accepted of 64 candidates at rejection beta 0.5; `xpo train rso` "
    "makes such pairs in one run.",
  ),
)
