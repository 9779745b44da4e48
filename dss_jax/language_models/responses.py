"""What predictions return, in the hosted service's form."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Prediction:
  """A response as the hosted service's REST API gives it.

  Attributes:
    predictions: one dictionary for each candidate, with its `content`.
    model_resource_name: NAME of a registered student, else its folder.
    model_version_id: its version; None if it is not registered.
  """

  predictions: list[dict[str, Any]]
  deployed_model_id: str
  model_resource_name: str
  model_version_id: str | None = None


@dataclasses.dataclass(repr=False)
class TextGenerationResponse:
  """An answer.

  Attributes:
    is_blocked, errors, safety_attributes: as in the hosted service; here nothing is blocked.
    drift: how the prompt differs from the training inputs (see student/drift.py); empty if it
      looks like them.
  """

  text: str
  _prediction_response: Prediction
  is_blocked: bool = False
  errors: tuple[int, ...] = ()
  safety_attributes: dict[str, float] = dataclasses.field(default_factory=dict)
  grounding_metadata: None = None
  drift: tuple[str, ...] = ()

  def __repr__(self) -> str:
    return self.text or f"{type(self).__name__}(text='')"

  @property
  def raw_prediction_response(self) -> Prediction:
    return self._prediction_response


@dataclasses.dataclass(repr=False)
class MultiCandidateTextGenerationResponse(TextGenerationResponse):
  """The first candidate, and in `candidates` all of them."""

  candidates: list[TextGenerationResponse] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class CountTokensResponse:
  """The tokens of texts, and their characters without white space."""

  total_tokens: int
  total_billable_characters: int
