"""Filters: what passes, and what is refused with one sentence."""

import pytest

from dss_jax.jobs.api.filters import Field, parse_filter
from dss_jax.jobs.api_error import ApiError

FIELDS = {
  "display_name": Field("displayName"),
  "state": Field("state"),
  "create_time": Field("createTime", "time"),
  "labels": Field("labels", "labels"),
  "template_metadata.version": Field("templateMetadata.version"),
}
JOB = {
  "displayName": "my distilled job",
  "state": "PIPELINE_STATE_RUNNING",
  "createTime": "2026-03-01T10:00:00.5Z",
  "labels": {"team": "x", "google-vertex-llm-tuning-base-model-id": "text-bison-002"},
  "templateMetadata": {"version": "sha256:1"},
}


@pytest.mark.parametrize(
  ("text", "passes"),
  [
    ("", True),
    ("  ", True),
    ('display_name="my distilled job"', True),
    ("displayName='my distilled job'", True),
    ('display_name="my"', False),
    ('display_name!="my"', True),
    ('display_name:"my*"', True),
    ('display_name:"*distil*job"', True),
    ('display_name:"*job*job"', False),
    ('display_name:"distilled"', True),
    ('display_name:"*"', True),
    ('display_name:"my distilled job*job"', False),
    ("state=PIPELINE_STATE_RUNNING", True),
    ('state = "PIPELINE_STATE_FAILED"', False),
    ('create_time>"2026-03-01T10:00:00Z"', True),
    ('create_time>="2026-03-01T12:00:00.5+02:00"', True),
    ('create_time<"2026-03-01T10:00:00.5Z"', False),
    ("create_time<2026-03-01T10:00:01Z", True),
    ('create_time!="2026-03-01"', True),
    ('labels.team="x"', True),
    ("labels.team=y", False),
    ('labels.google-vertex-llm-tuning-base-model-id="text-bison-002"', True),
    ('labels."team"="x"', True),
    ("labels.team", True),
    ("labels.team:*", True),
    ("labels:team", True),
    ("labels.none:*", False),
    ("labels.none", False),
    ("NOT labels.none", True),
    ("-labels.none:*", True),
    ('labels.none!="x"', True),
    ('template_metadata.version="sha256:1"', True),
    ('labels.team="x" AND state=PIPELINE_STATE_FAILED', False),
    ('labels.team="x" state=PIPELINE_STATE_FAILED', False),
    ('labels.team="x" OR state=PIPELINE_STATE_FAILED', True),
    # OR binds closer than AND.
    ("state=no AND labels.team OR labels.team", False),
    ("(state=no AND labels.team) OR labels.team", True),
    ("NOT (state=no OR labels.none)", True),
    (r'display_name="a\"b"', False),
  ],
)
def test_what_passes(text, passes):
  assert parse_filter(text, FIELDS)(JOB) is passes


def test_missing_values():
  assert parse_filter('state!="x"', FIELDS)({})
  assert not parse_filter('state="x" OR create_time>"2000-01-01" OR labels.a', FIELDS)({})


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("state", "state takes =, !=, :, not at its end"),
    ("state=", "expected a value at its end"),
    ("state>1", "state takes =, !=, :, not at '>1'"),
    ('create_time:"x"', "create_time takes"),
    ("create_time>now", "'now' is no time such as"),
    ("nothing=1", "no field 'nothing'; there are create_time, display_name"),
    ("a=1 AND", "no field 'a'"),
    ("state=1 AND", "expected the name of a field at its end"),
    ("state=1 OR OR state=2", "expected the name of a field at 'OR state=2'"),
    ("(state=1", "expected ')' at its end"),
    ("state=1)", "expected AND or OR at ')'"),
    ('state="1', "expected a value"),
    ('"x"', "cannot be read at"),
    ("labels=x", "labels needs the name of a label"),
    ("(" * 21 + "state=1" + ")" * 21, "more than 20 parentheses"),
    ("(" * 4000, "more than 20 parentheses"),
    ("state=1 " * 600, "more than 4,096 characters"),
    ("__class__=1", "expected the name of a field"),
    ("state.__class__=1", "no field 'state.__class__'"),
    ("\x00", "cannot be read|expected the name"),
  ],
)
def test_what_is_refused(text, message):
  with pytest.raises(ApiError, match=r"^filter: ") as caught:
    parse_filter(text, FIELDS)
  assert caught.match(message.replace("(", r"\(").replace(")", r"\)"))
  assert "\n" not in str(caught.value)
  assert len(str(caught.value)) < 300
