"""Package metadata; `pip install -e .` is all a user runs (`make` does it for you)."""

from pathlib import Path

from setuptools import find_namespace_packages, setup

# Recipes lie beside the package in a checkout and within it in a wheel.
_CACHES = ["__pycache__", "*.__pycache__"]
_EXPERIMENTS = [
  "xpo_jax.experiments",
  *(
    f"xpo_jax.experiments.{folder}"
    for folder in find_namespace_packages("experiments", exclude=_CACHES)
  ),
]

setup(
  name="xpo_jax",
  version="0.2.0",
  description="Every preference-optimisation method as a pure JAX function, "
  "trained by one sharded trainer.",
  long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  classifiers=[
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Programming Language :: Python :: 3.13",
    "Typing :: Typed",
  ],
  python_requires=">=3.11,<3.14",
  packages=[
    *find_namespace_packages(include=["xpo_jax", "xpo_jax.*"], exclude=_CACHES),
    *_EXPERIMENTS,
  ],
  package_dir={"xpo_jax": "xpo_jax", "xpo_jax.experiments": "experiments"},
  package_data={
    "xpo_jax": ["py.typed", "**/*.txt", "**/*.html", "**/*.css"],
    "xpo_jax.experiments": ["**/*"],  # results, launch files, READMEs
  },
  exclude_package_data={"": ["*.pyc"]},
  install_requires=[
    "jax>=0.8,<0.12",
    "flax>=0.10.6,<0.14",
    "optax>=0.2.5",
    "orbax-checkpoint>=0.11.20,<0.13",
    "etils[epath]>=1.12",
    "chex>=0.1.90",
    "transformers>=5,<6",
    "tensorflow-datasets>=4.9.10",
    "grain>=0.2.10",
    "array-record>=0.8.3",
    "importlib_resources>=1.3",  # TFDS imports it and does not ask for it
    "pyarrow>=16",
    "huggingface_hub>=1.3",
    "safetensors>=0.4.5",
    "jinja2>=3.1",  # transformers' chat templates need it and do not ask for it
    "absl-py>=0.10",
    "numpy>=2",
    "scipy>=1.15",
    "tyro>=0.9.2",
    "pyyaml>=6",
    "rich>=11.1",
    "matplotlib>=3.9",
    "tensorboardX>=2.6.1",
    "vaderSentiment>=3.3.2",
  ],
  extras_require={
    "test": [
      "pytest>=8",
      "pytest-xdist>=3",
      "nbclient>=0.10",
      "nbformat>=5.10",
      "ipykernel>=6.29",
      "jupytext>=1.16",
      "ruff>=0.9",
      "mypy>=1.15",
      "types-PyYAML",
      "setuptools>=70.1",  # builds the wheel that a test installs
      "sphinx>=8",
      "furo>=2024.8.6",
      "openai>=3,<4",
      "gcsfs>=2025.5",
      "gcp-storage-emulator>=2024.8",
    ],
    "bucket": ["gcsfs>=2025.5", "s3fs>=2025.5"],  # checkpoints on gs:// and s3://
    "judge": ["openai>=3,<4"],  # a judge behind an endpoint
    "serve": ["transformers[serving]>=5.20,<6", "torch>=2.6"],  # one served here
    "tpu": ["jax[tpu]>=0.10.2,<0.12"],
    # compiles for TPUs on any Linux machine: xpo check --topology
    "tpu-check": ["libtpu>=0.0.40; sys_platform == 'linux'"],
    "cuda": ["jax[cuda13]>=0.10.2,<0.12"],
    "wandb": ["wandb>=0.19"],
    "gguf": ["gguf>=0.10"],
    "peft": ["peft>=0.21", "torch>=2.6"],  # reads adapters of runs, and writes its own
    "lm-eval": ["lm-eval>=0.4.13,<0.5"],  # public tasks; takes no torch
  },
  entry_points={"console_scripts": ["xpo=xpo_jax.cli:main"]},
)
