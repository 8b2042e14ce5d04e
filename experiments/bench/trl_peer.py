"""TRL's trainers on what `trl_curves.py` wrote; needs torch and TRL, and no JAX.

Command: started by trl_curves.py, in a process of its own:
  python trl_peer.py DIRECTORY
Prints one line of JSON: the loss of each step of each method.
"""

import json
import sys
import tempfile
from pathlib import Path


def main(directory: Path) -> None:
  """Trains every method."""
  import torch
  import transformers
  import trl

  transformers.logging.set_verbosity_error()
  jobs = json.loads((directory / "jobs.json").read_text())
  versions = {m.__name__: m.__version__ for m in (torch, transformers, trl)}
  losses = {name: train(directory, jobs, job) for name, job in jobs["methods"].items()}
  listed = ", ".join(f"{name} {version}" for name, version in versions.items())
  print(json.dumps({"versions": listed, "losses": losses}))


def train(directory: Path, jobs: dict, job: dict) -> list[float]:
  """Trains one method; returns the loss of each step, before its update."""
  import datasets
  import torch
  import transformers

  trainer_class, config_class = classes(job["trainer"])
  fields = set(config_class.__dataclass_fields__)
  rows = job["rows"]
  settings = {
    "per_device_train_batch_size": len(rows),
    "max_steps": jobs["steps"],
    "learning_rate": jobs["learning_rate"],
    "lr_scheduler_type": "constant",
    "optim": "adamw_torch",
    "weight_decay": 0.0,
    "max_grad_norm": 0.0,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "max_length": None,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "remove_unused_columns": False,
  }
  if "max_prompt_length" in fields:
    settings["max_prompt_length"] = None
  model, reference = (
    transformers.AutoModelForCausalLM.from_pretrained(
      directory / "model", dtype=torch.float32
    )
    for _ in range(2)
  )
  more = {"ref_model": reference} if job["trainer"] in ("DPO", "KTO") else {}
  with tempfile.TemporaryDirectory() as output:
    trainer = trainer_class(
      model=model,
      args=config_class(output_dir=output, **settings, **job["settings"]),
      train_dataset=datasets.Dataset.from_list(rows),
      processing_class=transformers.AutoTokenizer.from_pretrained(directory / "model"),
      **more,
    )
    losses, compute = [], trainer.compute_loss

    def recorded(*args, **kwargs):
      result = compute(*args, **kwargs)
      loss = result[0] if isinstance(result, tuple) else result
      losses.append(loss.item())
      return result

    trainer.compute_loss = recorded
    trainer.train()
  return losses


def classes(name: str) -> tuple[type, type]:
  """A trainer of TRL and its config; some live in `trl.experimental`."""
  import importlib

  module = importlib.import_module("trl")
  if name in ("CPO", "ORPO"):
    module = importlib.import_module(f"trl.experimental.{name.lower()}")
  return getattr(module, f"{name}Trainer"), getattr(module, f"{name}Config")


if __name__ == "__main__":
  main(Path(sys.argv[1]))
