"""The viewer at /viewer/: OHIF as it was installed, with this package's extension and mode."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from functools import lru_cache
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse, Response

from medclipsam.server.api.access import AsUser
from medclipsam.server.api.routes.common import give_client, mime_type
from medclipsam.server.base.errors import UnknownError
from medclipsam.server.base.ohif import VERSION, installed_viewer

router = APIRouter(prefix="/viewer", include_in_schema=False)

# The extension, the mode and the configuration, built from viewer/ in the repository.
_OURS = Path(__file__).parents[2] / "viewer" / "ohif"
_CONFIGURATION = "app-config.js"
_OUR_FOLDER = "medclipsam/"
# The page may load from and ask this server alone. OHIF's decoders are WebAssembly in workers, which it makes of blobs;
# its styles are set by scripts.
_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'wasm-unsafe-eval' blob: {scripts}; worker-src 'self' blob:; "
    "style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
# This package's mode needs no more. In its other modes OHIF compiles functions to read segmentations; where it comes
# from the list of studies to a mode, the list's policy holds.
_OUR_MODE = "annotate"
_COMPILING = "'unsafe-eval'"
_INLINE_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)
_MISSING = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Viewer not installed</title>
<body style="font: 16px/1.5 sans-serif; max-width: 40em; margin: 4em auto; padding: 0 1em">
<h1>The viewer is not installed</h1>
<p>Run this command on the server's machine, then reload the page:</p>
<pre>medclipsam viewer install</pre>
<p>Without internet, run <code>npm pack @ohif/app@{version}</code> on another machine, bring the file, and run
<code>medclipsam viewer install --file FILE</code>.</p>
<p>The older viewer that MONAI Label brings is at <a href="{older}">{older}</a>.</p>"""


@router.get("/{path:path}")
def viewer(request: Request, user: AsUser, path: str) -> Response:
    """Answer a file of the viewer; a path of the viewer's own pages gets its page."""
    root = request.url.path.removesuffix(path)
    if path.startswith("api/"):
        raise UnknownError(f"There is no viewer route {path[:80]!r}.")
    if path == _CONFIGURATION or path.startswith(_OUR_FOLDER):
        return _file(_OURS, path.removeprefix(_OUR_FOLDER))
    folder = installed_viewer()
    if folder is None:
        older = html.escape(root.removesuffix("viewer/") + "ohif/")
        return HTMLResponse(
            _MISSING.format(version=VERSION, older=older),
            503,
            {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'", "Cache-Control": "no-store"},
        )
    if path and path != "index.html" and Path(path).suffix:
        return _file(folder, path)
    page = _page(folder, root)
    scripts = [f"'sha256-{_sha256(script)}'" for script in _INLINE_SCRIPT.findall(page)]
    if path.split("/")[0] != _OUR_MODE:
        scripts.append(_COMPILING)
    policy = _POLICY.format(scripts=" ".join(scripts))
    response = HTMLResponse(page, headers={"Content-Security-Policy": policy, "Cache-Control": "no-cache"})
    give_client(request, response)
    return response


def _file(folder: Path, path: str) -> FileResponse:
    try:
        file = (folder / path).resolve()
        known = file.is_relative_to(folder.resolve()) and file.is_file()
    except (OSError, ValueError):  # no file can have such a name
        known = False
    if not known:
        raise UnknownError(f"{path[:80]!r} is not a file of the viewer.")
    # those whose names tell their content stay as they are
    kept = "public, max-age=31536000, immutable" if ".bundle." in path else "no-cache"
    # workers start with the policy of the file that they are loaded from
    headers = {"Content-Security-Policy": _POLICY.format(scripts=""), "Cache-Control": kept}
    kind = "text/javascript" if file.suffix in (".js", ".mjs") else mime_type(file)
    return FileResponse(file, media_type=kind, headers=headers)


@lru_cache(maxsize=4)
def _page(folder: Path, root: str) -> str:
    """Return the viewer's page, whose addresses begin with `root` in place of "/"."""
    page = (folder / "index.html").read_text(encoding="utf-8")
    # what it registers is a service worker that is loaded from elsewhere
    page = re.sub(r'<script[^>]*src="/init-service-worker\.js"[^>]*></script>', "", page)
    page = page.replace('window.PUBLIC_URL="/"', f'window.PUBLIC_URL="{root}"')
    return re.sub(r'\b(href|src|content)="/', rf'\1="{root}', page)


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
