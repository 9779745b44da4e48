"""Distil a large teacher language model, step by step, into a small T5 student."""

import importlib

__version__ = "0.1.0"

_LANGUAGE_MODELS = (
  "EvaluationTextGenerationSpec",
  "TextGenerationModel",
  "TuningEvaluationSpec",
)
__all__ = ["__version__", *_LANGUAGE_MODELS]


def __getattr__(name: str):
  """Imports the classes of language_models when they are first used."""
  if name in _LANGUAGE_MODELS:
    return getattr(importlib.import_module("dss_jax.language_models"), name)
  raise AttributeError(f"module 'dss_jax' has no attribute {name!r}")
