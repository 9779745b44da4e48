"""Installs the package `dss_jax` and its console command `dss`.

In a checkout, `tasks/` and `gin_configs/` are top-level folders, where users look for them. In a
wheel they are inside the package, so that site-packages gets no package `tasks`.
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
  classifiers=[f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)],
  packages=[
    *find_packages(include=["dss_jax", "dss_jax.*"]),
    "dss_jax.tasks",
    "dss_jax.gin_configs",
  ],
  package_dir={"dss_jax.tasks": "tasks", "dss_jax.gin_configs": "gin_configs"},
  package_data={
    "dss_jax.gin_configs": ["**/*.gin"],
    "dss_jax.tasks": ["prompts/*.yaml"],
    "dss_jax.console": ["static/*", "templates/*"],
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
    "rouge-score>=0.1.2",
    "safetensors>=0.8",
    "scipy>=1.15",
    "sentencepiece>=0.2",
    "seqio>=0.0.19",
    "tensorboardX>=2.6",
    "tensorstore>=0.1.80",
  ],
  extras_require={
    # Conflicts with constraints.txt: Beam needs older versions of protobuf, pyarrow and pillow.
    "beam": ["apache-beam>=2.77"],
    "gcs": ["gcsfs>=2024.6"],
    "serve": [
      # Encrypted jobs.
      "cryptography>=44",
      "itsdangerous>=2.2",
      "jinja2>=3.1",
      "prometheus-client>=0.20",
      "pydantic>=2.9",
      "python-multipart>=0.0.20",
      "starlette>=1.0",
      "uvicorn>=0.34",
    ],
    "teacher": ["aiohttp>=3.14"],
    "tensorboard": ["tensorboard>=2.18"],
    # The compiler for `dss plan`, 200 MB, in the version that the installed JAX names.
    "tpu": ["jax[tpu]>=0.10"],
    # The t5x of the registry is an empty package. Install it by requirements-t5x.txt, since its own
    # requirements name newer versions than it works with.
    "t5x": [
      "t5x @ git+https://github.com/google-research/t5x@cc342d419ec3e3e9c4bf1df33c82330cafdc1e16"
    ],
    # PyTorch, for tests and benchmarks against Hugging Face's T5.
    "torch": ["torch>=2.8", "transformers>=5"],
    "test": [
      "aiohttp>=3.14",
      "build>=1.2",
      "cryptography>=44",
      # What starlette's test client speaks HTTP with.
      "httpx2>=2",
      "hypothesis>=6.100",
      "itsdangerous>=2.2",
      "jinja2>=3.1",
      "mypy>=1.11",
      "prometheus-client>=0.20",
      "pydantic>=2.9",
      "pytest>=8.2",
      "pytest-timeout>=2.3",
      "pytest-xdist>=3.6",
      "python-multipart>=0.0.20",
      "ruff>=0.6",
      # Reference values of classes and calibration.
      "scikit-learn>=1.6",
      "setuptools>=77",
      "starlette>=1.0",
      "tensorboard>=2.18",
      "uvicorn>=0.34",
    ],
  },
  entry_points={"console_scripts": ["dss=dss_jax.cli.main:main"]},
)
