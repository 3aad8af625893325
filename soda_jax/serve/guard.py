"""Checks requests before they reach the API: Host, Origin and rate; adds security headers."""

import time
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse

_HEADERS = {
    "content-security-policy": "default-src 'self'; media-src 'self' blob:; img-src 'self' data:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
_CLIENTS = 1024  # whose rates are remembered


class Guard:
    """ASGI middleware.

    A page of another origin may send requests to a local server: by its address, which the Origin header shows, or
    by a name that it lets resolve to 127.0.0.1, which the Host header shows.
    """

    def __init__(self, app: Any, *, hosts: Iterable[str], per_minute: int):
        """Wraps an app.

        Args:
          app: the app.
          hosts: permitted values of the Host header, such as "127.0.0.1:8000".
          per_minute: requests that need the model or a computation, of one client per minute, at most; as many
            may come at once.
        """
        self._app, self._hosts = app, {host.lower() for host in hosts}
        self._per_minute = per_minute
        self._budgets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Refuses a request, or passes it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._refusal(scope)
        await (refusal or self._app)(scope, receive, with_headers)

    def _refusal(self, scope: Any) -> JSONResponse | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "").lower()
        if host not in self._hosts:
            return _error(
                421,
                f"host {host[:80]!r} is not served: use one of {', '.join(sorted(self._hosts))}",
            )
        origin = headers.get("origin")
        # A proxy may add https.
        if origin is not None and origin.lower().partition("://")[2] not in self._hosts:
            return _error(403, "requests from other sites are refused")
        if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            return _error(403, "requests from other sites are refused")
        computes = scope["method"] == "POST" or scope["path"].endswith(("/mel", "/tokens"))
        if computes and not self._within_rate(scope):
            response = _error(429, f"more than {self._per_minute} requests per minute: wait")
            response.headers["retry-after"] = "10"
            return response
        return None

    def _within_rate(self, scope: Any) -> bool:
        """Takes one request from the budget of the client, which fills at `per_minute`."""
        client = (scope.get("client") or ("",))[0]
        now = time.monotonic()
        left, last = self._budgets.pop(client, (float(self._per_minute), now))
        left = min(self._per_minute, left + (now - last) * self._per_minute / 60)
        allowed = left >= 1
        self._budgets[client] = (left - allowed, now)
        while len(self._budgets) > _CLIENTS:
            self._budgets.popitem(last=False)
        return allowed


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": message}, status)
