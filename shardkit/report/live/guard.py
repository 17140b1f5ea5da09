"""Who may look: only a browser on this machine that was given the address with its token."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp

from shardkit.report.page.rendering import policy


@dataclass
class Keys:
    """The token of the first visit, and what the browser keeps after it."""

    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    session: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    is_used: bool = False

    def take(self, given: str) -> bool:
        """Whether this is the token, which is good for one visit."""
        is_right = not self.is_used and hmac.compare_digest(given.encode(), self.token.encode())
        self.is_used = self.is_used or is_right
        return is_right


class Guard(BaseHTTPMiddleware):
    """Refuses other hosts (a page elsewhere that rebinds its name) and visitors without token."""

    def __init__(self, app: ASGIApp, keys: Keys, port: int) -> None:
        super().__init__(app)
        self._keys = keys
        self._hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost")}
        self._cookie = f"shardkit-{port}"

    async def dispatch(
        self, request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        """Let a request through, or not."""
        response = await self._answer(request, call_next)
        response.headers["Content-Security-Policy"] = f"{policy()}; frame-ancestors 'none'"
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        response.headers["Cache-Control"] = "no-store"
        return response

    async def _answer(
        self, request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        if request.headers.get("host", "") not in self._hosts:
            return PlainTextResponse("This is not the host that shardkit view serves.\n", 421)
        if request.method not in ("GET", "HEAD"):
            return PlainTextResponse("shardkit view only shows.\n", 405)
        token = request.query_params.get("token")
        if token is not None and self._keys.take(token):
            answer: Response = RedirectResponse("/samples", 303)
            answer.set_cookie(self._cookie, self._keys.session, httponly=True, samesite="strict")
            return answer
        given = request.cookies.get(self._cookie, "")
        if not hmac.compare_digest(given.encode(), self._keys.session.encode()):
            text = "Open the address that shardkit view printed; it is good for one browser.\n"
            return PlainTextResponse(text, 403)
        return await call_next(request)
