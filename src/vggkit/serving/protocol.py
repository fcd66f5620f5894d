"""HTTP/1.1 by uvicorn and h11, with limits that uvicorn has none of: connections, slow requests, slow readers.

ServeLimits come from the state of the application, so that the class can be named to worker processes.
"""

import asyncio
import json
import sys
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from vggkit.serving.limits import ServeLimits
from vggkit.serving.refusals import RETRY_SECONDS

LIMITS: Final = "limits"
"""The key of the limits in the application's state."""
SURPLUS: Final = "is_surplus"
"""The key in a request's state that says that its connection is one too many."""
SURPLUS_TIMES: Final = 2
"""Connections that are open at most, by those that are served: the others get a response, and are closed."""
LINGER_SECONDS: Final = 1.0
"""How long a connection that was refused is read on."""
GRACE_SECONDS: Final = 5.0
"""What a request or a response may take longer than its limit before its connection is cut."""


class LimitedProtocol(H11Protocol):
    """A connection with a request at a time; each must arrive in time, and each response be read."""

    def __init__(
        self,
        config: Any,
        server_state: Any,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits: ServeLimits = app_state[LIMITS]
        self._timer: asyncio.TimerHandle | None = None
        self._is_refused = False
        self._awaited: object = None
        """What the timer waits for: `headers`, or the request whose body comes."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called by asyncio."""
        super().connection_made(transport)
        most = self._limits.max_connections
        if len(self.connections) > most:
            self.app_state = self.app_state | {SURPLUS: True}  # its request is refused when its headers are here
        if len(self.connections) > SURPLUS_TIMES * most:
            self._refuse(503, "overloaded", f"{most} connections are open (--max-connections)")
        else:
            self._await("headers", self._limits.header_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        self._await(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        if self._is_refused or self.transport.is_closing():
            return
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Called by uvicorn."""
        super().on_response_complete()
        self._watch()
        if self.transport.get_write_buffer_size():  # the client does not read
            self.loop.call_later(self.timeout_keep_alive + GRACE_SECONDS, self._cut_unread, self.cycle)

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn for what is not HTTP, or has too long headers."""
        problem = sys.exception()
        status = problem.error_status_hint if isinstance(problem, h11.RemoteProtocolError) else 400
        most = self._limits.max_header_bytes
        if status == 431:
            self._refuse(431, "too_large", f"address and headers have up to {most:,} bytes (--max-header-bytes)")
        else:
            self._refuse(400, "bad_request", f"the request is not HTTP/1.1 ({problem or msg})")

    def _watch(self) -> None:
        """Set the timer for what is still to come of the request."""
        if self._is_refused or self.transport.is_closing():
            self._await(None)
            return
        match self.conn.their_state:
            case h11.IDLE if self.conn.trailing_data[0]:
                self._await("headers", self._limits.header_seconds)
            case h11.SEND_BODY:
                self._await(self.cycle, self._limits.upload_seconds + GRACE_SECONDS)
            case _:
                self._await(None)

    def _await(self, awaited: object, seconds: float = 0.0) -> None:
        if awaited is self._awaited:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._awaited = awaited
        self._timer = None if awaited is None else self.loop.call_later(seconds, self._give_up)

    def _give_up(self) -> None:
        if self.conn.their_state is h11.IDLE:
            seconds = self._limits.header_seconds
            self._refuse(408, "too_slow", f"headers must arrive within {seconds:g} s (--header-seconds)")
        else:
            self.transport.abort()

    def _cut_unread(self, cycle: object) -> None:
        if cycle is self.cycle and self.transport.get_write_buffer_size():
            self.transport.abort()

    def _refuse(self, status: int, error: str, message: str) -> None:
        """Respond without the application, and close the connection when the client has read it."""
        body = json.dumps({"error": error, "message": message, "request_id": ""}).encode()
        lines = [
            f"HTTP/1.1 {status} {STATUS_PHRASES[status].decode()}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "Cache-Control: no-store",
            "X-Content-Type-Options: nosniff",
            "Connection: close",
            *([f"Retry-After: {RETRY_SECONDS}"] if status == 503 else []),
        ]
        self._await(None)
        self._is_refused = True
        self.transport.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        # Closed with bytes unread, the connection would be reset, and the client never see the response.
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)
