"""Installs the package `dss_jax` and its console command `dss`.

`tasks/` and `gin_configs/` lie at the top of a checkout, where users look for them;
a wheel carries them inside the package, so that site-packages gains no package `tasks`.
"""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(
  r'__version__ = "(.+)"', (HERE / "dss_jax/__init__.py").read_text(encoding="utf-8")
).group(1)

setup(
  name="dss-jax",
  version=VERSION,
  description="Distil a large teacher language model, step by step, into a small T5 student.",
  long_description=(HERE / "README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=[
    *find_packages(include=["dss_jax", "dss_jax.*"]),
    "dss_jax.tasks",
    "dss_jax.gin_configs",
  ],
  package_dir={"dss_jax.tasks": "tasks", "dss_jax.gin_configs": "gin_configs"},
  package_data={
    "dss_jax.gin_configs": ["**/*.gin"],
    "dss_jax.tasks": ["prompts/*.yaml"],
    "dss_jax": ["py.typed"],
  },
  install_requires=[
    "click>=8.1",
    "etils[epath]>=1.9",
    "flax>=0.12",
    "fsspec>=2024.6",
    "gin-config>=0.5",
    "jax>=0.10",
    "msgpack>=1.0",
    "numpy>=2.0",
    "optax>=0.2.6",
    "orbax-checkpoint>=0.12",
    "PyYAML>=6.0",
    "rich>=13",
    "safetensors>=0.8",
    "sentencepiece>=0.2",
    "seqio>=0.0.19",
    "tensorboardX>=2.6",
    "tensorstore>=0.1.80",
  ],
  extras_require={
    "gcs": ["gcsfs>=2024.6"],
    "teacher": ["httpx2>=2.16", "openai>=3.54"],
    "tensorboard": ["tensorboard>=2.18"],
    "test": [
      "build>=1.2",
      "httpx2>=2.16",
      "hypothesis>=6.100",
      "mypy>=1.11",
      "openai>=3.54",
      "pytest>=8.2",
      "ruff>=0.6",
      "setuptools>=77",
      "tensorboard>=2.18",
    ],
  },
  entry_points={"console_scripts": ["dss=dss_jax.cli:main"]},
)
