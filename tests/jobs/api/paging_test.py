"""Pages: whole, in order, each resource once, and tokens of this list alone."""

import base64
import json

import pytest

from dss_jax.jobs.api.filters import Field
from dss_jax.jobs.api.paging import page
from dss_jax.jobs.api_error import ApiError

FIELDS = {
  "display_name": Field("displayName"),
  "create_time": Field("createTime", "time"),
  "end_time": Field("endTime", "time"),
  "labels": Field("labels", "labels"),
}


def resource(number, **values):
  return {"name": f"r/{number:02}", "createTime": f"2026-01-01T00:00:{number // 2:02}Z", **values}


RESOURCES = [resource(number) for number in range(25)]


def names(resources=RESOURCES, **query):
  """Returns the names on all pages, and the number of pages."""
  found, pages, token = [], 0, ""
  while True:
    content = page(resources, {**query, "pageToken": token}, FIELDS, key="jobs")
    found += [each["name"] for each in content.get("jobs", [])]
    pages += 1
    token = content.get("nextPageToken", "")
    if not token:
      return found, pages


def test_all_pages_have_each_resource_once():
  found, pages = names(pageSize="4")
  assert (len(found), pages) == (25, 7)
  assert found[:3] == ["r/24", "r/22", "r/23"]
  assert set(found) == {each["name"] for each in RESOURCES}
  assert names(pageSize="4", orderBy="create_time")[0] == [each["name"] for each in RESOURCES]
  assert names(pageSize="25")[1] == 1
  assert names(pageSize="1000000")[1] == names(pageSize="0")[1] == names()[1] == 1


def test_a_filter_holds_on_every_page():
  query = {"filter": 'create_time>="2026-01-01T00:00:10Z"', "pageSize": "2"}
  assert names(**query)[0] == ["r/24", "r/22", "r/23", "r/20", "r/21"]
  assert page([], {}, FIELDS, key="jobs") == {}


def test_what_has_no_value_comes_first_and_last():
  mixed = [resource(1, endTime="2026-01-02T00:00:00Z"), resource(2), resource(3)]
  mixed[2]["endTime"] = "2026-01-01T23:00:00-02:00"
  assert names(mixed, orderBy="end_time,display_name", pageSize="1")[0] == ["r/02", "r/01", "r/03"]
  assert names(mixed, orderBy="endTime desc", pageSize="1")[0] == ["r/03", "r/01", "r/02"]


def test_resources_that_come_and_go_move_no_other():
  first = page(RESOURCES, {"pageSize": "3", "orderBy": "create_time"}, FIELDS, key="jobs")
  changed = [resource(1, name="r/00b"), *RESOURCES[3:], resource(40)]
  query = {"orderBy": "create_time", "pageToken": first["nextPageToken"], "pageSize": "2"}
  assert [each["name"] for each in page(changed, query, FIELDS, key="jobs")["jobs"]] == [
    "r/03",
    "r/04",
  ]


def token(*values):
  return base64.urlsafe_b64encode(json.dumps(values).encode()).decode()


@pytest.mark.parametrize(
  ("query", "message"),
  [
    ({"pageSize": "-1"}, "pageSize: must be a whole number from 0 on, not '-1'"),
    ({"pageSize": "9" * 5000}, "pageSize: must be"),
    ({"pageSize": "٣"}, "pageSize: must be"),
    ({"orderBy": "nothing"}, "orderBy: no field 'nothing'"),
    ({"orderBy": "create_time up"}, "orderBy: 'create_time up' must be like"),
    ({"orderBy": "labels"}, "orderBy: 'labels' must be like"),
    ({"orderBy": "create_time,"}, "orderBy: no field ''"),
    ({"pageToken": "x"}, "pageToken: is not of this list"),
    ({"pageToken": "=" * 10_000}, "pageToken: is not of this list"),
    ({"pageToken": token("x", ["2026-01-01", "r/1"])}, "pageToken: is not of this list"),
    ({"pageToken": token(*"[" * 4000)}, "pageToken: is not of this list"),
    ({"pageToken": "é"}, "pageToken: is not of this list"),
  ],
)
def test_what_is_refused(query, message):
  with pytest.raises(ApiError) as caught:
    page(RESOURCES, query, FIELDS, key="jobs")
  assert str(caught.value).startswith(message)


def test_a_token_is_of_one_list():
  """Neither of another filter, nor with values that the order does not have."""
  first = page(RESOURCES, {"pageSize": "3"}, FIELDS, key="jobs")["nextPageToken"]
  for query, key in (({"filter": "labels.a"}, "jobs"), ({}, "others")):
    with pytest.raises(ApiError, match="is not of this list"):
      page(RESOURCES, {**query, "pageToken": first}, FIELDS, key=key)
  digest = json.loads(base64.urlsafe_b64decode(first + "=="))[0]
  for place in ([], ["r/1"], [1, "r/1"], ["yesterday", "r/1"], [None, 1], "xy", 7, None):
    with pytest.raises(ApiError, match="is not of this list"):
      page(RESOURCES, {"pageToken": token(digest, place)}, FIELDS, key="jobs")
  # A time without a zone is one of UTC.
  assert (
    page(RESOURCES, {"pageToken": token(digest, ["2025-12-31", "r"])}, FIELDS, key="jobs") == {}
  )
