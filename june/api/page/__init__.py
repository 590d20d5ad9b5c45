"""The owner's page: static files that anyone may read, since they hold no data; the API gives what they show.

The browser enforces the page's policy: no script, style, request or frame from another origin, nothing
inline, and no text that is parsed as markup (Content Security Policy Level 3, Trusted Types).
"""

from pathlib import Path

from aiohttp import web

from june.api.problems import Handler

FOLDER = Path(__file__).parent
CONTENT_TYPES = {
    "css": "text/css",
    "html": "text/html",
    "js": "text/javascript",
    "svg": "image/svg+xml",
}
FILES = {
    "/": "index.html",
    "/page/cards.js": "cards.js",
    "/page/connection.js": "connection.js",
    "/page/icon.svg": "icon.svg",
    "/page/page.css": "page.css",
    "/page/page.js": "page.js",
}
"""The file that is served at each path."""

POLICY = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self'",
    "connect-src 'self'",
    "media-src blob:",  # a recording, which was fetched with the token
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
)
HEADERS = {
    "Content-Security-Policy": "; ".join(POLICY),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def routes() -> list[web.RouteDef]:
    """Return the routes of the files."""
    return [web.get(path, _serving(FOLDER / name)) for path, name in FILES.items()]


def _serving(file: Path) -> Handler:
    body = file.read_bytes()
    content_type = CONTENT_TYPES[file.suffix.removeprefix(".")]

    async def serve(_: web.Request) -> web.Response:
        return web.Response(body=body, content_type=content_type, charset="utf-8", headers=HEADERS)

    return serve
