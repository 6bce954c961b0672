"""GET /docs: the API's description as a page. It loads nothing from elsewhere and tells nothing that needs a key."""

from functools import cache
from importlib.resources import files

from fastapi import APIRouter, Response

router = APIRouter()

PATH = "/docs"
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cache-control": "no-cache",
}


@cache
def _page() -> str:
    return files("server.api").joinpath("docs.html").read_text()


@router.get(PATH, include_in_schema=False)
async def docs() -> Response:
    """The page asks for a key where /openapi.json wants one."""
    return Response(_page(), media_type="text/html", headers=_HEADERS)
