"""The commands of `dss jobs`: the server, its jobs, and the keys of encrypted ones.

Imports nothing heavy.
"""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import click

from dss_jax.cli import options
from dss_jax.cli.options import option
from dss_jax.errors import UserError
from dss_jax.terminal import echo

_ROOT = options.options(
  option("--root", required=True, metavar="DIR", help="The server's folder."),
  option("--config", metavar="FILE.yaml", help="The operator's settings.",
         default_text="ROOT/jobs.yaml, if it is there"),
)  # fmt: skip
_PARENT = options.options(
  option("--project", required=True, metavar="NAME", help="The project of the job."),
  option("--location", default="us-central1", show_default=True, metavar="REGION",
         help="Its region."),
)  # fmt: skip
_NAME = click.argument("name", metavar="NAME|ID")


@click.group(short_help="Run distillation jobs with the hosted service's API.")
def jobs() -> None:
  """Jobs with the API of the hosted service: a server with a queue, and its jobs from here.

  All commands but serve work on --root itself, on the server's machine; other machines use the
  API. A job that is created while no server runs waits for one.
  """


@jobs.command(short_help="Serve the API and the console, and run the queue.")
@_ROOT
@option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS",
        help="The address to listen at; others than this machine's need a token.")  # fmt: skip
@option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, metavar="N",
        help="0 takes a free one.")  # fmt: skip
@option("--tokens", metavar="FILE.yaml", help="Tokens with their roles in projects.",
        default_text="ROOT/tokens.yaml, if it is there")  # fmt: skip
@option("--token-env", default="DSS_JOBS_TOKEN", show_default=True, metavar="NAME",
        help="The environment variable with administrators' tokens, separated by "
        "commas.")  # fmt: skip
@option("--drain-seconds", type=click.IntRange(min=0), default=30, show_default=True, metavar="N",
        help="How long answers are completed after SIGTERM.")  # fmt: skip
def serve(**flags: Any) -> None:
  """Serve the API and the console, and run the jobs; SIGTERM leaves them running."""
  try:
    from dss_jax.console.app import routes
    from dss_jax.jobs.command import ServerOptions
    from dss_jax.jobs.command import serve as run
  except ImportError as error:
    raise _not_installed(error) from None
  run(ServerOptions(**flags), routes)


@jobs.command(short_help="Add a job to the queue.")
@_ROOT
@_PARENT
@option("-f", "--file", "file", required=True, metavar="REQUEST.json",
        help="A PipelineJob or TuningJob, as curl sends it; - is standard input.")  # fmt: skip
@option("--job-id", metavar="ID", help="The id of a PipelineJob.", default_text="a new one")
def create(
  root: str, config: str | None, project: str, location: str, file: str, job_id: str | None
) -> None:
  """Add a job to the queue; prints its name."""
  from dss_jax.storage.files import read_text

  try:
    body = json.loads(read_text(file))
  except (ValueError, RecursionError) as error:
    raise UserError(f"-f {file}: is not JSON ({error}); give the body of a request") from None
  # Only PipelineJobs have it.
  is_pipeline = isinstance(body, dict) and bool({"runtimeConfig", "runtime_config"} & body.keys())
  kind = "pipelineJobs" if is_pipeline else "tuningJobs"
  with _opened(root, config) as service:
    job = service.create(kind, project, location, body, job_id=job_id)
  echo(json.dumps({"name": job.name, "state": job.state}))


@jobs.command("list", short_help="List the jobs, newest first.")
@_ROOT
@options.json_output("jobs")
def list_jobs(root: str, config: str | None, as_json: bool) -> None:
  """List the jobs of all projects, newest first."""
  with _opened(root, config) as service:
    found = service.store.newest()
  if as_json:
    fields = ("name", "display_name", "state", "create_time", "end_time", "error", "result")
    echo(json.dumps([{key: getattr(job, key) for key in fields} for job in found], indent=2))
    return
  for job in found:
    echo(f"{job.state:<10} {job.create_time}  {job.name}  {job.display_name}")
  if not found:
    echo("there are no jobs; dss jobs create adds one")


@jobs.command(short_help="Show a job as the API does.")
@_ROOT
@_NAME
def show(root: str, config: str | None, name: str) -> None:
  """Show a job with its tasks, as JSON."""
  from dss_jax.jobs.bodies.job_json import job_json

  with _opened(root, config) as service:
    job = service.find(name)
    echo(json.dumps(job_json(job, service.store.tasks(job.name)), indent=2))


@jobs.command(short_help="Show how the review of a job's rationales stands.")
@_ROOT
@_NAME
@options.json_output("review")
def review(root: str, config: str | None, name: str, as_json: bool) -> None:
  """Show how the review of a job's rationales stands, and where the teacher's answers are."""
  from dss_jax.jobs.api.reviews import Reviews

  with _opened(root, config) as service:
    job = service.find(name)
    reviews = Reviews(service)
    figures, file = reviews.figures(job), reviews.path(job)
  values = {"name": job.name, "state": job.state, **figures, "file": str(file)}
  if as_json:
    echo(json.dumps(values, indent=2))
    return
  counts = (figures["withConcerns"], figures["edited"], figures["leftOut"])
  echo(f"{job.state:<10} {job.name}")
  echo(
    f"{figures['rows']:,} rows: {counts[0]:,} with concerns, {counts[1]:,} edited,"
    f" {counts[2]:,} left out"
  )
  echo(f"read them with dss annotate report {file} --html PAGE.html")


@jobs.command(short_help="Approve a job's rationales; it trains on them.")
@_ROOT
@_NAME
def approve(root: str, config: str | None, name: str) -> None:
  """Approve the rationales of a paused job: it waits for devices, then trains on them."""
  from dss_jax.jobs.api.reviews import Reviews

  with _opened(root, config) as service:
    # As the API calls the programs of this machine.
    job = Reviews(service).approve(service.find(name).name, "local")
  echo(json.dumps({"name": job.name, "state": job.state}))


@jobs.command(short_help="Cancel a job; its checkpoints are kept.")
@_ROOT
@_NAME
def cancel(root: str, config: str | None, name: str) -> None:
  """Cancel a job: one that waits ends now, one that runs saves a checkpoint first."""
  with _opened(root, config) as service:
    job = service.cancel(service.find(name).name)
  echo(json.dumps({"name": job.name, "state": job.state}))


@jobs.command(short_help="Print the log of a job.")
@_ROOT
@_NAME
@option("--follow", is_flag=True, help="Go on until the job has ended.")
def logs(root: str, config: str | None, name: str, follow: bool) -> None:
  """Print what a job's process has written."""
  from dss_jax.jobs.api.job_stream import log_lines

  with _opened(root, config) as service:
    for line in log_lines(service, service.find(name), follow=follow):
      echo(line)


@jobs.command(short_help="Make a key that encrypts jobs.")
@option("--out", required=True, metavar="FILE", help="A new file, for its owner alone.")
def key(out: str) -> None:
  """Make a random key, for `keys` in the operator's settings."""
  from dss_jax.storage.keys import write_key

  write_key(out)


@jobs.command("open", short_help="Decrypt a file of an encrypted job.")
@click.argument("file", metavar="FILE.sealed")
@option("--key", metavar="KEY", help="The file of the key that it was encrypted with.")
@option("--root", metavar="DIR", help="The server's folder, whose settings name the key.")
@option("--config", metavar="FILE.yaml", help="The operator's settings.",
        default_text="ROOT/jobs.yaml, if it is there")  # fmt: skip
@option("--output", required=True, metavar="PATH",
        help="A file, or - for standard output; of a student or a checkpoint a new "
        "folder.")  # fmt: skip
def open_file(
  file: str, key: str | None, root: str | None, config: str | None, output: str
) -> None:
  """Decrypt a file that an encrypted job wrote: an output, a log, a student of the registry.

  It is checked, too: of a file that was changed since, nothing is written.
  """
  from dss_jax.storage.keys import read_key, unwrapped
  from dss_jax.storage.sealed_folders import open_to

  if (key is None) == (root is None):
    raise UserError(f"dss jobs open {file}: give one of --key and --root")
  try:
    if root is None:
      assert key is not None
      place = key
      open_to(file, lambda header: unwrapped(read_key(place, header.key_name), header), output)
    else:
      from dss_jax.jobs.encryption.keyring import Keyring
      from dss_jax.jobs.settings import read_settings

      open_to(file, Keyring(read_settings(root, config).keys).unlock_for(None), output)
  except ImportError as error:
    raise _not_installed(error) from None


@contextlib.contextmanager
def _opened(root: str, config: str | None) -> Iterator[Any]:
  """Gives the jobs of a root folder; what the API would refuse is a user's mistake here, too."""
  try:
    from dss_jax.jobs.api_error import ApiError
    from dss_jax.jobs.service import open_service
  except ImportError as error:
    raise _not_installed(error) from None
  try:
    yield open_service(root, config)
  except ApiError as error:
    raise UserError(f"dss jobs: {error}") from None


def _not_installed(error: ImportError) -> UserError:
  return UserError(f"dss jobs: {error.name} is not installed; pip install 'dss-jax[serve]'")
