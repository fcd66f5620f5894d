"""What surrounds every request: its number, security headers, the token, the log and the metrics.

It wraps the application as plain ASGI, so that whatever happens inside gets a response with a reason.
"""

import hashlib
import hmac
import json
import re
import time
import uuid
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vggkit.serving.bodies import ClientGone
from vggkit.serving.limits import ServeLimits
from vggkit.serving.logs import Log
from vggkit.serving.metrics import Metrics
from vggkit.serving.protocol import SURPLUS
from vggkit.serving.refusals import Refusal

REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
SECURITY_HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
CLIENT_GONE: Final = 499
"""The status in log and metrics of a request whose client closed the connection; it gets no response."""


class Guard:
    """The application with what surrounds it.

    Args:
        app: The application.
        limits: For headers.
        log: Gets a line for each request.
        metrics: Count each request.
        token: What `Authorization: Bearer` must hold; None: nothing.
        open_paths: Paths that need no token.
        routes: Paths that are counted by their own names.
        allowed_hosts: Names by which requests may call the service; empty: any.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: ServeLimits,
        log: Log,
        metrics: Metrics,
        token: str | None,
        open_paths: frozenset[str],
        routes: frozenset[str],
        allowed_hosts: tuple[str, ...],
    ) -> None:
        self._app, self._limits, self._log, self._metrics = app, limits, log, metrics
        self._token = None if token is None else _digest(token)
        self._open, self._routes, self._hosts = open_paths, routes, frozenset(map(str.lower, allowed_hosts))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the application's start and end."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, headers = time.perf_counter(), Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {}).update(request_id=request_id, started=started)
        status = 0

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                response = MutableHeaders(scope=message)
                response["X-Request-ID"] = request_id
                for name, value in SECURITY_HEADERS.items():
                    response[name] = value
                if "cache-control" not in response:
                    response["Cache-Control"] = "no-store"
            await send(message)

        try:
            self._check(scope, headers)
            await self._app(scope, receive, send_guarded)
        except Refusal as refusal:
            await send_error(send_guarded, refusal, request_id)
        except ClientGone:
            status = CLIENT_GONE
        except Exception as problem:
            self._log.write_problem("bug", {"request_id": request_id}, problem=problem)
            if not status:
                bug = Refusal(
                    500, "internal", "an error of the service; its log has the details under the request_id"
                )
                await send_error(send_guarded, bug, request_id)
        finally:
            self._record(scope, status or CLIENT_GONE, time.perf_counter() - started, request_id)

    def _check(self, scope: Scope, headers: Headers) -> None:
        """Raise Refusal for what is refused before the application sees it."""
        if scope["state"].get(SURPLUS):
            most = self._limits.max_connections
            busy = Refusal.overloaded(
                f"the service is busy: {most} connections are open (--max-connections); try again in a second"
            )
            busy.headers = {**busy.headers, "Connection": "close"}
            raise busy
        size = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        size += sum(len(name) + len(value) for name, value in scope["headers"])
        most = self._limits.max_header_bytes
        if size > most:
            raise Refusal(
                431,
                "too_large",
                f"address and headers have up to {most:,} bytes (--max-header-bytes); got {size:,}",
            )
        host = headers.get("host", "").lower()
        if self._hosts and _strip_port(host) not in self._hosts:
            raise Refusal(
                403,
                "forbidden",
                f"this service is not called {host[:100]!r}; its names are {', '.join(sorted(self._hosts))} "
                "(--allowed-hosts)",
            )
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host:
            raise Refusal(
                403, "forbidden", f"requests from pages of another origin are refused; got {origin[:100]!r}"
            )
        if self._token is None or scope["path"] in self._open:
            return
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(_digest(token.strip()), self._token):
            raise Refusal(
                401,
                "unauthorized",
                "this service demands its token: Authorization: Bearer TOKEN",
                {"WWW-Authenticate": "Bearer"},
            )

    def _record(self, scope: Scope, status: int, seconds: float, request_id: str) -> None:
        route = scope["path"] if scope["path"] in self._routes else "other"
        self._metrics.requests.labels(route, status).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        client: Any = scope.get("client") or (None,)
        fields = {
            "request_id": request_id,
            "method": scope["method"],
            "route": route,
            "status": status,
            "seconds": round(seconds, 4),
            "client": client[0],
        }
        self._log.write("request", fields | scope["state"].get("log_fields", {}))


async def send_error(send: Send, refusal: Refusal, request_id: str) -> None:
    """Send a refusal as a response."""
    body = json.dumps(refusal.to_dict(request_id), ensure_ascii=False).encode("utf-8", "backslashreplace")
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **refusal.headers}
    raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def _digest(token: str) -> bytes:
    """Of equal length whatever the token's, so that comparing takes equally long."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _strip_port(host: str) -> str:
    """`localhost` of `localhost:8000`, `::1` of `[::1]:8000`."""
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
