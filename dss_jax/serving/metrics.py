"""What a server measures, in Prometheus' format."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

# From a label of a few tokens on an accelerator to a queue of rationales on a CPU.
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
  """The metrics of one server; a registry of its own, so that tests may have several."""

  def __init__(self) -> None:
    self.registry = CollectorRegistry()
    self.requests = Counter(
      "dss_requests", "Requests by call and HTTP status.", ("call", "status"),
      registry=self.registry,
    )  # fmt: skip
    self.seconds = Histogram(
      "dss_request_seconds", "Time from a request to the last byte of the answer.", ("call",),
      buckets=_SECONDS, registry=self.registry,
    )  # fmt: skip
    self.tokens = Counter(
      "dss_tokens", "Tokens read and written.", ("model", "direction"), registry=self.registry
    )
    self.drift = Counter(
      "dss_drift", "Inputs unlike those of the training, by reason.", ("model", "reason"),
      registry=self.registry,
    )  # fmt: skip
    self.waiting = Gauge(
      "dss_waiting_answers", "Answers that wait for a slot.", ("model",), registry=self.registry
    )
    self.running = Gauge(
      "dss_running_answers", "Answers that are written.", ("model",), registry=self.registry
    )
