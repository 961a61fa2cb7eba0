"""`medclipsam serve`: MONAI Label with settings that do no harm, in a workspace of its own.

Nothing of MONAI Label is imported before its settings stand in the environment: it reads them once, at import, and its
sub-processes inherit them.
"""

from __future__ import annotations

import json
import logging
import logging.config
import os
import signal
import socket
import ssl
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from medclipsam.base.devices import Machine, cpu_warning
from medclipsam.base.errors import InputError, OptionError
from medclipsam.dicomweb.addresses import is_url, keep_user
from medclipsam.imaging.limits import resource
from medclipsam.server.api.access import Access, check_exposure, is_loopback, load_tokens
from medclipsam.server.api.oidc import OidcProvider
from medclipsam.server.base.conf import AppConf
from medclipsam.server.base.oidc_options import OidcOptions
from medclipsam.server.base.workspace import Workspace, default_workspace
from medclipsam.server.doctor import check_pacs
from medclipsam.studies.identity import nearby, remember

if TYPE_CHECKING:
    import uvicorn

    from medclipsam.server.inference.work import WorkQueue
    from medclipsam.server.monai_label.app import MedClipSamApp

logger = logging.getLogger(__name__)

# MONAI Label's own default.
_MONAI_LABEL_REALM = "http://localhost:8080/realms/monailabel"
# Seconds that requests have to end in, once the server is told to.
_GRACE = 10
# Seconds after which a temporary file is nobody's, and between two looks for such.
_LEFT_BEHIND = 24 * 3600
_EXPIRE_EVERY = 600


def serve(
    studies: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    targets: Sequence[str] = (),
    weights: str | None = None,
    workspace: Path | None = None,
    device: str | None = None,
    conf: Mapping[str, str] | None = None,
    warm_up: bool = False,
    token_file: Path | None = None,
    certificate: tuple[Path, Path] | None = None,
    behind_proxy: str | None = None,
    insecure: bool = False,
    oidc: OidcOptions | None = None,
) -> None:
    """Serve studies until the process is told to stop.

    Parameters
    ----------
    studies : str
        Folder of images, or URL of a DICOMweb server.
    host : str
        Address to listen at.
    port : int
        Port to listen at; 0 takes a free one.
    targets : sequence of str
        Known targets that get an infer task of their own.
    weights : str, optional
        Name of the pair of weights; by default as for `ZeroShot.load`.
    workspace : Path, optional
        Where the server writes; one for each studies folder or URL in the user's data folder by default.
    device : str, optional
        "cpu", "cuda", ...; the GPU where there is one by default.
    conf : mapping of str to str, optional
        Further settings of the app, see `AppConf`.
    warm_up : bool
        Whether the models are loaded and tried before the server answers, so that the first request does not wait.
    token_file : Path, optional
        Tokens of the users, see `load_tokens`.
    certificate : tuple of Path, optional
        Certificate chain and private key (PEM) for TLS.
    behind_proxy : str, optional
        Addresses of a proxy that ends TLS, whose X-Forwarded headers are believed: "127.0.0.1".
    insecure : bool
        Listen to other machines without authentication or TLS.
    oidc : OidcOptions, optional
        The users' OpenID provider; by default that of MONAI Label's settings, where these turn authentication on.

    Raises
    ------
    MedClipSamError
        Before anything is served: if a setting or target is unknown, the studies cannot be used, the port is taken or
        the workspace is in use.
    """
    settings = dict(conf or {})
    if weights:
        settings["weights"] = weights
    if targets:
        settings["targets"] = ",".join(targets)
    if device:
        settings["device"] = device
    typed = _checked_conf(settings)
    provider = oidc or _oidc_of_monai_label(os.environ)
    access = Access(load_tokens(token_file), OidcProvider(provider) if provider else None)
    if access.tokens and access.oidc:
        raise InputError("Users come with tokens of this server, or of an OpenID provider; choose one.")
    check_exposure(
        host,
        authenticates=access.authenticates,
        encrypts=certificate is not None or behind_proxy is not None,
        insecure=insecure,
    )
    if certificate is not None:
        _check_certificate(*certificate)
    if is_url(studies):
        # sub-processes and logs have the address alone
        studies = keep_user(studies)
    studies = _checked_studies(studies, typed)
    reached = BindSettings(host, access, certificate, behind_proxy)

    place = workspace.expanduser().absolute() if workspace else default_workspace(studies)
    others = [] if workspace or is_url(studies) else nearby(place)
    with _listen(host, port) as listener, Workspace(place) as space:
        _check_models(typed)
        _say("medclipsam: starting MONAI Label, which takes 10 seconds or more ...\n")
        settings.setdefault("audit_file", str(space.audit))
        settings.setdefault("networks", str(space.networks))
        _set_environment(space)
        warning = cpu_warning(Machine.look(), typed.device)
        if warning:
            sys.stderr.write(f"medclipsam: warning: {warning} `medclipsam doctor` tells more.\n")
        if others:
            sys.stderr.write(
                f"medclipsam: warning: {studies} begins with the new workspace {place}. Workspaces of other folders of "
                f"this name, which are gone: {', '.join(map(str, others))}. If one of them belongs to these studies, "
                "stop the server and name it with --workspace.\n"
            )
        if not is_url(studies):
            remember(Path(studies), place)
        _run(studies, reached, settings, space, listener, warm_up)


@dataclass(frozen=True)
class BindSettings:
    """Where and by whom a server is reached; see `serve` for the fields."""

    host: str
    access: Access
    certificate: tuple[Path, Path] | None = None
    behind_proxy: str | None = None

    @property
    def local(self) -> bool:
        """Whether only this machine's own addresses lead here."""
        return is_loopback(self.host) and self.behind_proxy is None


def _oidc_of_monai_label(environment: Mapping[str, str]) -> OidcOptions | None:
    """Return the OpenID provider of MONAI Label's settings, where they turn authentication on."""
    if environment.get("MONAI_LABEL_AUTH_ENABLE", "").strip().lower() not in ("1", "true", "yes", "on", "t", "y"):
        return None
    names = {
        "issuer": "REALM_URI",
        "client_id": "CLIENT_ID",
        "username_claim": "TOKEN_USERNAME",
        "roles_claim": "TOKEN_ROLES",
    }
    given = {key: environment.get(f"MONAI_LABEL_AUTH_{name}", "") for key, name in names.items()}
    return OidcOptions.from_strings({**given, "issuer": given["issuer"] or _MONAI_LABEL_REALM})


def _check_certificate(chain: Path, key: Path) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(chain, key)
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or getattr(error, "reason", None) or "no pair of certificate and key in PEM format"
        raise InputError(f"Certificate {chain} with key {key} cannot be used: {reason}.") from None


def _checked_conf(settings: Mapping[str, str]) -> AppConf:
    """Raise at once what the app would raise, as a traceback, while it starts."""
    from medclipsam.targets import TargetSet

    conf = AppConf.from_strings(settings)
    known = TargetSet.load(*map(Path, conf.targets_files))
    for name in conf.targets:
        known.get(name)
    return conf


def _check_models(conf: AppConf) -> None:
    """Raise at once what would otherwise be the answer to the first request."""
    from medclipsam.weights import resolve_pair

    resolve_pair(conf.weights)
    if conf.device in (None, "cpu"):
        return
    import torch

    try:
        torch.empty(0, device=conf.device)
    except (RuntimeError, AssertionError):
        raise OptionError("device", conf.device, "auto, cpu, or a GPU that torch sees on this machine") from None


def _checked_studies(studies: str, conf: AppConf) -> str:
    if is_url(studies):
        _ask_dicomweb(studies, conf)
        return studies
    folder = Path(studies).expanduser()
    if not folder.is_dir():
        raise InputError(f"Studies {studies} is neither a folder nor an http(s) URL of a DICOMweb server.")
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise InputError(f"Studies folder {studies} must be readable and writable: labels are kept in it.")
    return str(folder.resolve())


def _ask_dicomweb(url: str, conf: AppConf) -> None:
    check = check_pacs(url, conf.pacs)
    if check.status == "failed":
        raise InputError(f"{check.found} {check.advice}")


def _listen(host: str, port: int) -> socket.socket:
    """Take the port before anything slow happens, so that a taken one is told at once."""
    if not 0 <= port <= 65535:
        raise OptionError("port", port, "a whole number from 0 to 65535")
    try:
        family, kind, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind)
    except OSError as error:
        raise InputError(f"Host {host!r} is not an address of this machine: {error.strerror}.") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        # bound alone, a port can be bound a second time under SO_REUSEADDR
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise InputError(
            f"Port {port} of {host} cannot be used: {error.strerror}; choose another with --port."
        ) from None
    return listener


def _set_environment(space: Workspace) -> None:
    """Set MONAI Label's settings; what the user has set stands."""
    defaults = {
        "MONAI_LABEL_TRACKING_ENABLED": "false",
        "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",
        "MONAI_LABEL_DICOMWEB_CACHE_EXPIRY": "1",
        "MONAI_LABEL_SESSION_PATH": str(space.sessions),
        "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(space.dicomweb),
    }
    for key, value in defaults.items():
        os.environ.setdefault(key, value)
    os.environ["TMPDIR"] = str(space.temporary)
    tempfile.tempdir = None
    # what is written here, by sub-processes too, is for the owner's eyes
    os.umask(0o077)


def _run(
    studies: str,
    reached: BindSettings,
    conf: Mapping[str, str],
    space: Workspace,
    listener: socket.socket,
    warm_up: bool,
) -> None:
    import uvicorn

    from medclipsam.server.monai_label import upstream

    port = listener.getsockname()[1]
    origins = upstream.apply_settings(space.app, studies, reached.host, port, conf)
    log_config = _quiet(upstream.write_log_config(space.app))
    # uvicorn does so too, but only after the app has looked at the studies and has warned of files that it cannot read
    logging.config.dictConfig(json.loads(log_config.read_text()))
    # before the server answers, so that what is wrong with the app is an error and not a failed start
    from medclipsam.server.api.asgi import create_app
    from medclipsam.server.api.protocol import BoundedProtocol

    instance = upstream.make_app()
    if warm_up:
        _say("medclipsam: loading the models ...\n")
        instance.pipeline.warm_up()
    threading.Thread(target=_keep_house, args=(space, instance), name="housekeeping", daemon=True).start()
    app = create_app(instance, reached.access, origins=origins, local=reached.local)
    chain, private = reached.certificate or (None, None)
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        log_config=str(log_config),
        access_log=False,
        ssl_certfile=chain,
        ssl_keyfile=private,
        proxy_headers=reached.behind_proxy is not None,
        forwarded_allow_ips=reached.behind_proxy,
        timeout_graceful_shutdown=_GRACE,
    )
    _allow_connections()
    # uvicorn raises a signal again once it has shut down, and SIGTERM's own way would leave the sub-processes running
    signal.signal(signal.SIGTERM, _leave)
    base = address(reached.host, port, secure=reached.certificate is not None)
    try:
        _announcing_server(config, base, app.state.queue).run(sockets=[listener])
    finally:
        upstream.stop_sub_processes()


def _allow_connections() -> None:
    """Raise the limit of open files, where the system lets us, to what the connections and as many files need."""
    if resource is None:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _keep_house(space: Workspace, instance: MedClipSamApp, every: float = _EXPIRE_EVERY) -> None:
    """Call `expire` again and again until the process ends."""
    while True:
        expire(space, instance)
        time.sleep(every)


def expire(space: Workspace, instance: MedClipSamApp) -> None:
    """Remove what requests have left behind and the fetched series that nobody asks for any more.

    An error in one of the two, such as a file that another thread removes at the same moment, is logged and stops
    neither the other nor the next run.
    """
    from medclipsam.server.studies.dicomweb import DicomWebStudies

    try:
        space.expire(_LEFT_BEHIND)
    except Exception:
        logger.exception("Temporary files could not be removed; the next run tries again")
    try:
        store = instance.datastore()
        if isinstance(store, DicomWebStudies):
            store.forget_series(instance.app_conf.limits.cache_days * 24 * 3600)
    except Exception:
        logger.exception("Fetched series could not be removed; the next run tries again")


def _quiet(file: Path) -> Path:
    """Keep requests, with their texts and image ids, out of the log: MONAI Label writes them at level INFO.

    pydicom's warnings quote what stands in a file, patients' names among them.
    """
    settings = json.loads(file.read_text())
    settings["loggers"]["monailabel"] = {"level": "WARNING"}
    settings["loggers"]["pydicom"] = {"level": "CRITICAL"}
    file.write_text(json.dumps(settings))
    warnings.filterwarnings("ignore", module="pydicom")
    return file


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


def _announcing_server(config: uvicorn.Config, base: str, queue: WorkQueue) -> uvicorn.Server:
    import uvicorn

    class AnnouncingServer(uvicorn.Server):
        """Says where to go once it answers; told to end, it lets nobody wait for the models."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                _say(welcome(base))

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            super().handle_exit(sig, frame)
            queue.close()

    return AnnouncingServer(config)


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def address(host: str, port: int, *, secure: bool = False) -> str:
    """Return the URL that a browser on this machine can open."""
    shown = "127.0.0.1" if host in ("", "0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"{'https' if secure else 'http'}://{shown}:{port}"


def welcome(base: str) -> str:
    """Return the addresses below `base` to open, for people."""
    return (
        "\nmedclipsam serves the studies:\n"
        f"  viewer            {base}/viewer/\n"
        f"  OHIF 3.10         {base}/ohif/   (for studies on a DICOMweb server)\n"
        f"  3D Slicer         module MONAILabel, server address {base}\n"
        f"  DICOMweb          {base}/dicom-web/\n"
        f"  API               {base}/docs, to read {base}/redoc\n"
        "Stop with Ctrl+C. For research use only.\n\n"
        f"open {base}/\n\n"
    )
