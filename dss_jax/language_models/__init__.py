"""Students in Python, under the hosted service's names (`vertexai.language_models`)."""

from dss_jax.language_models.jobs import BatchPredictionJob, TuningJob
from dss_jax.language_models.responses import (
  CountTokensResponse,
  MultiCandidateTextGenerationResponse,
  Prediction,
  TextGenerationResponse,
)
from dss_jax.language_models.specs import EvaluationTextGenerationSpec, TuningEvaluationSpec
from dss_jax.language_models.text_generation import TextGenerationModel

__all__ = [
  "BatchPredictionJob",
  "CountTokensResponse",
  "EvaluationTextGenerationSpec",
  "MultiCandidateTextGenerationResponse",
  "Prediction",
  "TextGenerationModel",
  "TextGenerationResponse",
  "TuningEvaluationSpec",
  "TuningJob",
]
