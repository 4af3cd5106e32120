"""A real shieldx server with traffic, watched by a real Prometheus, which tells a real Alertmanager, which calls us."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import orjson
import requests

from tests.credits.ledger_house import Ledger
from tests.debian import program
from tests.launcher import launched
from tests.operations.shipped import alertmanager_at, prometheus_at, write_alertmanager, write_prometheus
from tests.server import ROOT_KEY, ShieldxServer, free_port
from tests.stores import PrivateRedis, run_apart

DEADLINE_S: Final = 30.0
POLL_S: Final = 0.05
ALERT_TOKEN: Final = "alert-token-of-the-tests"

T = TypeVar("T")


def wait_for(what: str, look: Callable[[], T | None], deadline_s: float = DEADLINE_S) -> T:
    """Return what `look` finds, once it finds something true. AssertionError naming `what` when it takes too long."""
    until_s = time.monotonic() + deadline_s
    while not (found := look()):
        assert time.monotonic() < until_s, f"{what}: not within {deadline_s} s"
        time.sleep(POLL_S)
    return found


class Delivery(NamedTuple):
    """One call of Alertmanager: the receiver it was for, when, with which token, and what it said."""

    receiver: str
    at_s: float
    authorization: str
    body: dict[str, Any]

    def names(self, status: str = "firing") -> set[str]:
        """Return the alerts in it that are in this state."""
        return {alert["labels"]["alertname"] for alert in self.body["alerts"] if alert["status"] == status}


class Pager:
    """An HTTP server that keeps every call; receivers differ by the path."""

    def __init__(self) -> None:
        """Listens on a port of 127.0.0.1 until `close`."""
        self.deliveries: Final[list[Delivery]] = []
        pager = self

        class Call(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = orjson.loads(self.rfile.read(int(self.headers["Content-Length"])))
                authorization = self.headers.get("Authorization", "")
                pager.deliveries.append(Delivery(self.path.strip("/"), time.monotonic(), authorization, body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Write nothing: the deliveries are kept."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Call)
        self.url: Final = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(POLL_S,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def received(self, receiver: str, alert: str, status: str = "firing", after: int = 0) -> Delivery | None:
        """Return the first call for a receiver, of those after the first `after`, that names the alert in this state."""
        for delivery in self.deliveries[after:]:
            if delivery.receiver == receiver and alert in delivery.names(status):
                return delivery
        return None


@contextlib.contextmanager
def running(name: str, address: str, directory: Path, *arguments: str) -> Iterator[None]:
    """A program that answers /-/ready at host:port, for as long as the context is open. Killed at the end."""
    log = directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            launched([program(name), *arguments, f"--web.listen-address={address}", "--log.level=warn"], directory),
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip
        try:

            def ready() -> bool:
                assert process.poll() is None, f"{name} ended:\n{log.read_text()[-4000:]}"
                with contextlib.suppress(requests.ConnectionError):
                    return requests.get(f"http://{address}/-/ready", timeout=5).status_code == 200
                return False

            wait_for(f"{name} is ready", ready)
            yield
        finally:
            process.kill()
            process.wait()


class LiveOperations:
    """What an operator has: the server and its stores, Prometheus, Alertmanager, and a pager.

    server   the process itself, for faults; who kills it starts it again
    redis    the server's own, likewise
    ledger   URLs of its Redis, and of its Postgres as the superuser
    pager    what Alertmanager told, by receiver: page, duty, ticket, heartbeat
    """

    def __init__(
        self, server: ShieldxServer, redis: PrivateRedis, ledger: Ledger, prometheus: str, alertmanager: str, pager: Pager
    ) -> None:
        """Addresses are host:port. Everything runs already."""
        self.server: Final = server
        self.redis: Final = redis
        self.ledger: Final = ledger
        self.prometheus: Final = f"http://{prometheus}"
        self.alertmanager: Final = f"http://{alertmanager}"
        self.pager: Final = pager

    def start_redis(self) -> None:
        """Start the server's Redis again and wait until it answers. In this thread: it would die with another one."""
        self.redis.launch()
        run_apart(self.redis.wait_ready())

    def _ask(self, path: str, **query: str | float) -> Any:
        answer = requests.get(f"{self.prometheus}/api/v1/{path}", params=query, timeout=30).json()
        assert answer["status"] == "success", f"{query}: {answer.get('error')}"
        return answer["data"]

    def query(self, expr: str, at_s: float | None = None) -> list[dict[str, Any]]:
        """Return the samples of an expression, now or at a Unix time. AssertionError when it cannot be evaluated."""
        when: dict[str, float] = {} if at_s is None else {"time": at_s}
        data = self._ask("query", query=expr, **when)
        if data["resultType"] == "scalar":
            return [{"metric": {}, "value": data["result"]}]
        result: list[dict[str, Any]] = data["result"]
        return result

    def query_range(self, expr: str, start_s: float, end_s: float, step_s: float) -> list[dict[str, Any]]:
        """Return the series of an expression between two Unix times."""
        result: list[dict[str, Any]] = self._ask("query_range", query=expr, start=start_s, end=end_s, step=step_s)["result"]
        return result

    def firing(self) -> set[str]:
        """Return the alerts that Prometheus holds for firing now."""
        return {alert["labels"]["alertname"] for alert in self._ask("alerts")["alerts"] if alert["state"] == "firing"}

    def names(self) -> set[str]:
        """Return the names of all series that Prometheus has."""
        return set(self._ask("label/__name__/values"))

    def rule_faults(self) -> dict[str, str]:
        """Return the rules that could not be evaluated, with the reason."""
        groups = self._ask("rules")["groups"]
        return {rule["name"]: rule["lastError"] for group in groups for rule in group["rules"] if rule.get("lastError")}


@contextlib.contextmanager
def live_operations(server: ShieldxServer, redis: PrivateRedis, ledger: Ledger, directory: Path) -> Iterator[LiveOperations]:
    """Prometheus and Alertmanager with the shipped configuration on a server that runs."""
    pager = Pager()
    alerting, watching = directory / "alertmanager", directory / "prometheus"
    alertmanager, prometheus = (f"127.0.0.1:{free_port()}" for _ in range(2))
    # One process serves everything here, as the comment in prometheus.yml says of such a host.
    addresses = {
        "credits": [f"127.0.0.1:{server.port}"], "shadow": [], "prometheus": [prometheus], "alertmanager": [alertmanager],
    }  # fmt: skip
    write_alertmanager(alerting, alertmanager_at(pager.url), ALERT_TOKEN)
    write_prometheus(watching, prometheus_at(addresses, alertmanager), ROOT_KEY)
    with contextlib.ExitStack() as stack:
        stack.callback(pager.close)
        stack.enter_context(
            running(
                "prometheus-alertmanager", alertmanager, alerting,
                "--config.file=alertmanager.yml", "--storage.path=data", "--cluster.listen-address=",
            )
        )  # fmt: skip
        stack.enter_context(
            running("prometheus", prometheus, watching, "--config.file=prometheus.yml", "--storage.tsdb.path=data")
        )
        yield LiveOperations(server, redis, ledger, prometheus, alertmanager, pager)
