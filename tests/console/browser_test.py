"""The console in a real browser: `make test-browser`.

DSS_BROWSER_PYTHON is the Python of an environment with playwright and axe-core-python. Chromium is
the one of the PATH, or DSS_CHROMIUM.
"""

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading

import pytest

from tests.e2e.conftest import sums
from tests.jobs.workplace import Workplace

PYTHON = os.environ.get("DSS_BROWSER_PYTHON")
CHROMIUM = os.environ.get("DSS_CHROMIUM") or shutil.which("chromium") or shutil.which("chrome")
TOKEN = "a-token-for-the-browser"

pytestmark = [
  pytest.mark.browser,
  pytest.mark.skipif(
    not PYTHON or not CHROMIUM, reason="no browser is set: run make test-browser with Chromium"
  ),
]


@contextlib.contextmanager
def serving(workplace):
  """Serves a workplace, whose administrator has TOKEN; gives the address."""
  command = [sys.executable, "-c", "from dss_jax.cli.main import main; main()", "jobs", "serve"]
  process = subprocess.Popen(
    [*command, "--root", str(workplace.root), "--port", "0"],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    env={**os.environ, "DSS_JOBS_TOKEN": TOKEN},
  )
  for line in process.stdout:
    if line.startswith("console: "):
      break
  else:
    raise AssertionError("the server ended")
  # Read on, or the server would wait for room in the pipe.
  rest = threading.Thread(target=process.stdout.read)
  rest.start()
  yield line.split()[-1].removesuffix("/console")
  process.terminate()
  process.wait()
  rest.join()


@pytest.fixture
def address(tmp_path):
  workplace = Workplace(tmp_path / "work")
  workplace.open()
  with serving(workplace) as address:
    yield address


@pytest.mark.timeout(1800)
def test_the_console_in_a_browser(address, tmp_path):
  rows = tmp_path / "train.jsonl"
  rows.write_text("".join(json.dumps(row) + "\n" for row in sums(1, 40)), encoding="utf-8")
  shots = pathlib.Path(os.environ.get("DSS_SHOTS") or tmp_path / "shots")
  shots.mkdir(exist_ok=True)
  script = pathlib.Path(__file__).with_name("browser_calls.py")
  environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
  result = subprocess.run(
    [PYTHON, str(script), address, TOKEN, CHROMIUM, str(rows), str(shots)],
    capture_output=True,
    text=True,
    check=False,
    env=environment,
  )
  assert result.returncode == 0, result.stderr
  found = json.loads(result.stdout.splitlines()[-1])
  assert len(set(found.pop("looked at"))) == 4 * 14
  assert found == {
    "state": "Succeeded",
    "steps grew": True,
    "last step": [150],
    "curves": 3,
    "curves of the ended job": 3,
    "log": True,
    "keyboard": ["Skip to the content", True, "Data set"],
    "clone": "Sums",
    "without scripts": "Sums",
    "values without scripts": "150",
    "console": [],
    "accessibility": [],
    "too wide": [],
  }
