"""A page to ask a student: its answer with rationale, probability, drift and timing."""

import math
import time
from typing import Any

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from dss_jax.console.console import Console
from dss_jax.console.forms import text_of
from dss_jax.errors import UserError
from dss_jax.jobs.api_error import ApiError, invalid
from dss_jax.jobs.google_errors import refused
from dss_jax.jobs.names import parse
from dss_jax.jobs.students.predictions import Predictions
from dss_jax.jobs.students.versions import find_version
from dss_jax.serving.errors import Refused
from dss_jax.serving.generation import Answer
from dss_jax.serving.service import DRIFT_HEADER, Call
from dss_jax.student.chosen_tokens import ChosenTokens
from dss_jax.student.registry import DEFAULT, Version

SECTION = "try"
# The fields of the form that are parameters of predict: their kind, and what they begin with.
_NUMBERS: dict[str, tuple[type, str]] = {
  "temperature": (float, "0"),
  "topK": (int, ""),
  "topP": (float, ""),
  "maxOutputTokens": (int, ""),
  "candidateCount": (int, "1"),
  "seed": (int, ""),
}
_LISTED_TOKENS = 5
DRIFT = {
  "template-missing": "It lacks a part that the training inputs have.",
  "fields-reordered": "It has the fields of the training inputs in another order.",
  "field-empty": "A field is empty that is never empty in the training inputs.",
  "longer": "It is longer than the training inputs.",
  "shorter": "It is shorter than the training inputs.",
  "unknown-pieces": "It has many pieces that the vocabulary does not know.",
  "unfamiliar-words": "It has few of the training inputs' words.",
}


class TryPages:
  """The form and its answer, on one page."""

  def __init__(self, console: Console):
    self._console = console

  def routes(self) -> list[BaseRoute]:
    return [
      self._console.show("/projects/{project}/try", self._show),
      # A verb of the API, by which viewers may send it.
      self._console.act("/projects/{project}/try:predict", self._ask),
    ]

  def _show(self, request: Request) -> Response:
    values = {name: default for name, (_, default) in _NUMBERS.items()}
    given = {"target": request.query_params.get("target", ""), "prompt": "", "explain": "true"}
    return self._page(request, {**values, **given})

  def _page(self, request: Request, values: dict[str, str], **answer: Any) -> Response:
    return self._console.page(
      request,
      "try.html",
      section=SECTION,
      values=values,
      targets=self._targets(request),
      **{"error": "", "answers": [], **answer},
    )

  def _targets(self, request: Request) -> list[tuple[str, str]]:
    """Returns what can be asked: the endpoints with a model, then all versions of models."""
    project = request.path_params["project"]
    registry = self._console.service.registry(project)
    found = [
      (f"endpoint:{each['name']}", f"Endpoint {each['displayName'] or each['name']}")
      for each in request.state.endpoints.list(project)
      if each["deployedModels"]
    ]
    for name in registry.names():
      for version in reversed(registry.versions(name)):
        note = " (default)" if DEFAULT in version.aliases else ""
        found.append((f"model:{version.reference}", f"Model {version.reference}{note}"))
    return found

  async def _ask(self, request: Request, form: FormData) -> Response:
    names = ("target", "prompt", "explain", *_NUMBERS)
    values = {name: text_of(form, name) for name in names}
    # As it was typed: a student is trained on spaces, too.
    prompt = form.get("prompt")
    values["prompt"] = prompt.replace("\r\n", "\n") if isinstance(prompt, str) else ""
    try:
      shown = await self._answer(request, values)
    except (Refused, UserError, TimeoutError) as error:
      refusal = refused(error, self._console.service)
      shown = {"error": str(refusal), "answers": []}
    if "hx-request" in request.headers:
      return self._console.page(request, "try_answer.html", **shown)
    return self._page(request, values, **shown)

  async def _answer(self, request: Request, values: dict[str, str]) -> dict[str, Any]:
    version = self._version(request, values["target"])
    parameters: dict[str, Any] = {
      "explain": values["explain"] == "true",
      "logprobs": _LISTED_TOKENS,
      **{name: _number(name, values[name]) for name in _NUMBERS},
    }
    body = {"instances": [{"content": values["prompt"]}], "parameters": parameters}
    predictions = request.state.predictions
    assert isinstance(predictions, Predictions)
    begin = time.perf_counter()
    call, answers = await predictions.predict(
      request, request.path_params["project"], version, body
    )
    drift = call.headers.get(DRIFT_HEADER, "")
    return {
      "error": "",
      "answers": [_shown(answer, call) for answer in answers],
      "version": version,
      "seconds": time.perf_counter() - begin,
      "call": call,
      "drift": [DRIFT.get(each, each) for each in drift.split(", ") if each],
    }

  def _version(self, request: Request, target: str) -> Version:
    """Returns the version that answers."""
    kind, _, name = target.partition(":")
    if kind == "endpoint":
      endpoint = parse(name, "endpoints", request.path_params["project"], "endpoint")
      version: Version = request.state.endpoints.chosen(endpoint)[1]
      return version
    if kind != "model":
      raise invalid("choose a student to ask")
    return find_version(self._console.service.registry(request.path_params["project"]), name)


def _number(name: str, text: str) -> float | None:
  if not text:
    return None
  kind, _ = _NUMBERS[name]
  try:
    return kind(text)
  except ValueError:
    raise ApiError("INVALID_ARGUMENT", f"{name} is {text[:40]!r}, but must be a number") from None


def _shown(answer: Answer, call: Call) -> dict[str, Any]:
  """Returns an answer for the page."""
  tokens = ChosenTokens(call.model.student.texts_after).add(
    answer.ids, answer.log_probabilities, answer.alternatives
  )
  return {
    "label": answer.label,
    "rationale": answer.rationale,
    "is_cut": answer.finish == "length",
    "probability": math.exp(sum(answer.log_probabilities)),
    "tokens": [
      {
        "text": token.text,
        "probability": math.exp(token.log_probability),
        "others": [
          (text, math.exp(value)) for text, value in token.likeliest().items() if text != token.text
        ],
      }
      for token in tokens
    ],
  }
