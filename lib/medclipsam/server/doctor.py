"""`medclipsam doctor`: what stands in the way of serving, one line each with what to do.

It looks and changes nothing; nothing of MONAI Label is imported, so that it speaks where the server does not start.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import sqlite3
import stat
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from medclipsam import __version__
from medclipsam.base.devices import Machine, gpu_problem
from medclipsam.base.engine import PACKAGE, VARIABLE, choices, chosen_engine
from medclipsam.base.errors import InputError, MedClipSamError, OptionError
from medclipsam.dicomweb.options import PacsOptions
from medclipsam.server.base.conf import AppConf
from medclipsam.server.base.workspace import default_workspace, owner_of
from medclipsam.server.inference.memory import LIBRARIES
from medclipsam.studies.identity import nearby
from medclipsam.training.lock import holder_of
from medclipsam.training.store import NETWORK_FILES, NetworkStore
from medclipsam.weights import default_pair, memory_need, resolve_pair

Status = Literal["ok", "warning", "failed"]

# Free disk below which a workspace is a worry, and below which it is useless: fetched series, sessions and caches.
_LITTLE, _TOO_LITTLE = 5 << 30, 256 << 20

# Packages whose versions tell most about a failure, in the order of the list.
_SHOWN = ("torch", "monai", "monailabel", "open_clip_torch", "segment-anything", "pydicom", "highdicom", "numpy")


@dataclass(frozen=True)
class Check:
    """What was found about one thing.

    Parameters
    ----------
    name : str
        What was looked at.
    status : {"ok", "warning", "failed"}
        Failed: the server will not work as asked. Warning: it will, but not as well as it could.
    found : str
        A sentence about what was found.
    advice : str
        What to do; empty where there is nothing to do.
    """

    name: str
    status: Status
    found: str
    advice: str = ""


def examine(
    *,
    studies: str | None = None,
    workspace: Path | None = None,
    weights: str | None = None,
    device: str | None = None,
    machine: Machine | None = None,
) -> list[Check]:
    """Check what a server with these settings would need.

    Parameters
    ----------
    studies : str, optional
        Folder or DICOMweb URL; not looked at where not given.
    workspace : Path, optional
        By default that of the studies, else the folder of all workspaces.
    weights : str, optional
        Pair of weights; by default the one that is taken where none is given.
    device : str, optional
        As `serve` takes it.
    machine : Machine, optional
        What the machine has; it is looked at by default.

    Returns
    -------
    list of Check

    Raises
    ------
    OptionError
        If the device is none that the server takes.
    """
    device = AppConf.from_strings({"device": device or "auto"}).device
    weights = weights or default_pair()
    machine = machine or Machine.look()
    place = workspace
    if place is None:
        place = default_workspace(_absolute(studies)) if studies else default_workspace("any").parent
    checks = [check_versions(), check_gpu(machine, device), check_engine(machine, device), check_weights(weights)]
    checks += check_memory(machine, weights, device)
    checks.append(check_workspace(place.expanduser().absolute()))
    if workspace is not None or studies is not None:
        checks.append(check_networks(place.expanduser().absolute() / "networks"))
        checks.append(check_ledger(place.expanduser().absolute()))
    if studies is not None:
        is_url = studies.startswith(("http://", "https://"))
        checks.append(check_pacs(studies) if is_url else check_folder(Path(studies).expanduser()))
    return checks


def check_versions(
    version_of: Callable[[str], str] = importlib.metadata.version,
    requirements: Callable[[], Iterable[str]] = lambda: importlib.metadata.requires("medclipsam") or (),
    python: tuple[int, ...] = sys.version_info[:3],
) -> Check:
    """Compare the installed packages with those that the server needs; tests of the package are left out."""
    wrong, found = [], [f"medclipsam {__version__}", "Python " + ".".join(map(str, python))]
    if python[:2] != (3, 11):
        wrong.append(f"Python {python[0]}.{python[1]} is not 3.11")
    try:
        needed = [line for line in requirements() if "extra" not in line or re.search(r"extra\s*==\s*.server", line)]
    except importlib.metadata.PackageNotFoundError:
        needed = []
    for line in needed:
        name = Requirement(line).name
        try:
            version = version_of(name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{name} is not installed")
            continue
        if name in _SHOWN:
            found.append(f"{name} {version}")
        wanted = Requirement(line).specifier
        if not wanted.contains(version, prereleases=True):
            wrong.append(f"{name} {version} is not {wanted}")
    if not needed:
        wrong.append("medclipsam is not installed as a package, so that what it needs is not known")
    if wrong:
        return Check("versions", "failed", f"{'; '.join(wrong)}.", "Install the package again from its lock file.")
    return Check("versions", "ok", ", ".join(found) + ".")


def check_gpu(machine: Machine, device: str | None) -> Check:
    """Compare the driver with the CUDA of torch, and both with the device that was asked for."""
    problem = gpu_problem(machine)
    built = f"torch is built for CUDA {machine.torch_cuda}" if machine.torch_cuda else "torch is built without CUDA"
    wants_gpu = device is not None and device.startswith("cuda")
    if device == "cpu":
        return Check("gpu", "ok", "The CPU was asked for.")
    if problem is not None:
        found, _, advice = problem.rpartition(": ")
        return Check("gpu", "failed" if wants_gpu else "warning", f"{found}.", advice[:1].upper() + advice[1:])
    if machine.gpus:
        index = int(device.split(":")[1]) if device and ":" in device else 0
        if index >= len(machine.gpus):
            return Check("gpu", "failed", f"There is no {device}; torch sees {len(machine.gpus)} GPU(s).", "Name one.")
        gpu = machine.gpus[index]
        return Check("gpu", "ok", f"{gpu.name}, driver {machine.driver or 'unknown'}; {built}.")
    if wants_gpu:
        return Check("gpu", "failed", f"There is no NVIDIA GPU, but {device} was asked for.", "Leave out --device.")
    return Check("gpu", "ok", f"There is no NVIDIA GPU, the CPU is used; {built}.")


def check_engine(machine: Machine, device: str | None) -> Check:
    """Tell what runs the networks that need no gradient, and whether the engine that was asked for can be used."""
    used = device or ("cuda" if machine.gpus else "cpu")
    try:
        engine = chosen_engine(used)
    except OptionError as error:
        return Check("engine", "failed", str(error), f"Install the package, or set {VARIABLE}=auto.")
    if engine == "torch":
        automatic = used == "cpu" and os.environ.get(VARIABLE, "auto") in ("", "auto")
        advice = "To run image encoders in half the time on this CPU: pip install 'medclipsam[engine]'."
        return Check("engine", "ok", "torch runs all networks.", advice if automatic else "")
    measured = "; ".join(
        f"{choice.name}: {choice.engine}, {choice.torch_seconds / choice.openvino_seconds:.1f} x torch"
        for choice in choices()
    )
    found = f"OpenVINO {importlib.metadata.version(PACKAGE)} runs what it is faster for on the CPU"
    return Check("engine", "ok", f"{found}. {measured or 'Nothing has been measured on this machine yet'}.")


def check_weights(name: str) -> Check:
    """Look for a pair of weights and hold its files to their hashes."""
    try:
        pair = resolve_pair(name)
    except MedClipSamError as error:
        found, _, advice = str(error).partition(": ")
        return Check("weights", "failed", found.rstrip(".") + ".", advice[:1].upper() + advice[1:])
    hashes = ", ".join(f"{half.name} (sha256 {half.sha256[:12]}…)" for half in pair)
    return Check("weights", "ok", f"{hashes} are there and whole.")


def check_memory(machine: Machine, weights: str, device: str | None) -> list[Check]:
    """Compare what the weights need with the memory of the GPU, where one is used, and with main memory."""
    need = memory_need(weights)
    checks = []
    on_gpu = bool(machine.gpus) and device != "cpu"
    if on_gpu:
        index = int(device.split(":")[1]) if device and ":" in device else 0
        gpu = machine.gpus[min(index, len(machine.gpus) - 1)]
        checks.append(_room("gpu memory", gpu.free, gpu.total, need.total if need else None, weights))
    wanted = None if need is None else LIBRARIES + (need.parameters if on_gpu else need.total)
    if not machine.memory_total:
        checks.append(Check("memory", "warning", "The system does not tell how much main memory is free."))
    else:
        checks.append(_room("memory", machine.memory, machine.memory_total, wanted, weights))
    return checks


def check_workspace(folder: Path) -> Check:
    """Look at the place, mode, disk and lock of a workspace; nothing is made."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not there.is_dir():
        return Check("workspace", "failed", f"{there} is not a folder.", "Name another with --workspace.")
    if not os.access(there, os.W_OK | os.X_OK):
        return Check("workspace", "failed", f"{there} is not writable.", "Make it so, or name another: --workspace.")
    free = shutil.disk_usage(there).free
    disk = f"{_gigabytes(free)} of disk are free"
    if free < _TOO_LITTLE:
        return Check("workspace", "failed", f"{folder}: only {disk}.", "Free some, or name another: --workspace.")
    if there != folder:
        found, others = f"{folder} will be made at the first start; {disk}.", nearby(folder)
        if others:
            found += f" Workspaces of folders of this name that are gone: {', '.join(map(str, others))}."
            return Check("workspace", "warning", found, "If one of them is yours, name it with --workspace.")
        return Check("workspace", _by_disk(free), found)
    mode = stat.S_IMODE(folder.stat().st_mode)
    if (folder / "lock").exists() and mode & 0o077:
        found = f"{folder} can be read by other users (mode {mode:o})."
        return Check("workspace", "warning", found, f"Start the server once, or run: chmod 700 {folder}")
    owner = None
    with contextlib.suppress(OSError):
        owner = owner_of(folder)
    if owner is not None:
        found = f"{folder} is in use by {owner}; {disk}."
        return Check("workspace", "warning", found, "Nothing, if that is your server; a second one needs another.")
    status = _by_disk(free)
    return Check(
        "workspace", status, f"{folder} is writable and not in use; {disk}.", "" if status == "ok" else "Free some."
    )


def check_networks(folder: Path) -> Check:
    """Look which networks a workspace serves, whether their files are there, and whether a training runs."""
    store = NetworkStore(folder)
    found, broken = [], []
    for name in store.names():
        try:
            network = store.current(name)
            newest = store.newest(name)
        except InputError as error:
            broken.append(str(error).rstrip("."))
            continue
        if network is not None:
            found.append(f"{name} serves version {network.version} ({', '.join(network.labels)})")
        elif newest is not None:
            found.append(f"{name} has not been validated yet (version {newest.version})")
        missing = [file for file in NETWORK_FILES if network and not (network.folder / file).is_file()]
        if network is not None and missing:
            broken.append(f"{network.folder} lacks {', '.join(missing)}")
    holder = holder_of(folder)
    if holder is not None:
        found.append(f"process {holder.pid} trains {holder.what}")
    if broken:
        return Check("networks", "failed", f"{'; '.join(broken)}.", "Serve another: medclipsam train rollback.")
    return Check("networks", "ok", f"{'; '.join(found) or 'No network has been trained here'}.")


def check_ledger(workspace: Path) -> Check:
    """Look whether the ledger of the rounds can be read by this version."""
    try:
        from medclipsam.active import LEDGER_FILE
        from medclipsam.active.ledger import SCHEMA
    except ImportError as error:
        return Check("ledger", "warning", f"The ledger was not looked at: {error.name} is not installed.")
    file = workspace / LEDGER_FILE
    if not file.is_file():
        return Check("ledger", "ok", "No image has been offered and no label saved here yet.")
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=5)) as database:
            version = int(database.execute("PRAGMA user_version").fetchone()[0])
            if version > SCHEMA:
                found = (
                    f"{file} was written by a newer version of medclipsam (schema {version}, this one has {SCHEMA})."
                )
                return Check("ledger", "failed", found, "Install that version, or name another workspace.")
            labels = int(database.execute("SELECT COUNT(*) FROM labels").fetchone()[0])
    except sqlite3.Error as error:
        advice = "Restore it from a backup, or move it away: the labels themselves are with the studies."
        return Check("ledger", "failed", f"{file} cannot be read ({error}).", advice)
    return Check("ledger", "ok", f"{file} has schema {version} and holds {labels} saved labels.")


def check_folder(folder: Path) -> Check:
    """Look whether a studies folder can be read and written."""
    if not folder.is_dir():
        return Check("studies", "failed", f"{folder} is not a folder.", "Name the folder that holds the images.")
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        found = f"{folder} is not readable and writable."
        return Check("studies", "failed", found, "Make it so: labels are kept in it.")
    return Check("studies", "ok", f"{folder} is readable and writable.")


def check_pacs(url: str, options: PacsOptions | None = None) -> Check:
    """Ask a DICOMweb server for one study, in the way that the server would."""
    from medclipsam.base.errors import UpstreamError
    from medclipsam.dicomweb.client import Credentials, Pacs

    options = options or PacsOptions()
    try:
        credentials = Credentials.from_environment(options.token_file)
    except OptionError as error:
        return Check("pacs", "failed", str(error), "Set one of the two.")
    pacs = Pacs(url, options, credentials)
    try:
        with pacs.send(
            "GET",
            pacs.address("qido", "studies"),
            params={"limit": "1"},
            headers={"Accept": "application/dicom+json"},
            timeout=10,
        ) as answer:
            status, reason, content = answer.status_code, answer.reason, pacs.body(answer)
    except UpstreamError as error:
        advice = "Set MONAI_LABEL_DICOMWEB_USERNAME and MONAI_LABEL_DICOMWEB_PASSWORD, or pacs_token_file."
        refused = "credentials" in str(error)
        return Check("pacs", "failed", str(error), advice if refused else "Check host, port, certificate and firewall.")
    if status >= 300:
        found = f"{pacs.url} answers {status} {reason} to a search for studies (QIDO)."
        return Check("pacs", "failed", found, "Give the DICOMweb root, such as http://pacs:8042/dicom-web.")
    try:
        studies = json.loads(content) if content else []
    except ValueError:
        studies = None
    if not isinstance(studies, list) or not all(isinstance(study, dict) for study in studies):
        found = f"{pacs.url} answers a search for studies (QIDO) with something else than DICOM JSON."
        return Check("pacs", "failed", found, "Give the DICOMweb root: this may be a web page or a log-in.")
    if not studies:
        return Check("pacs", "warning", f"{pacs.url} answers, but shows no study.", "Check what this user may see.")
    known = credentials.header() is not None
    return Check("pacs", "ok", f"{pacs.url} answers searches{' with these credentials' if known else ''}.")


def report(checks: Sequence[Check]) -> str:
    """Return the checks as aligned lines."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(
            f"{check.status:<8}{check.name:<{width}}  {check.found}{' ' + check.advice if check.advice else ''}"
        )
    return "\n".join(lines)


def report_json(checks: Sequence[Check]) -> str:
    """Return the checks as a JSON object: `ok` (nothing failed) and the list `checks`."""
    return json.dumps({"ok": passed(checks), "checks": [asdict(check) for check in checks]}, indent=2)


def passed(checks: Sequence[Check]) -> bool:
    """Return whether nothing failed."""
    return all(check.status != "failed" for check in checks)


def _room(name: str, free: int, total: int, need: int | None, weights: str) -> Check:
    have = f"{_gigabytes(free)} of {_gigabytes(total)} are free"
    if need is None:
        return Check(name, "ok", f"{have}; what the weights {weights} need is not known.")
    if need > total:
        found = f"{have}; the weights {weights} need {_gigabytes(need)}."
        return Check(name, "failed", found, "Use smaller weights, such as a pair with sam_vit_b or medsam.")
    if need > free:
        found = f"{have}; the weights {weights} need {_gigabytes(need)}."
        return Check(name, "warning", found, "End other programs that use it (a running server counts as well).")
    return Check(name, "ok", f"{have}; the weights {weights} need {_gigabytes(need)}.")


def _by_disk(free: int) -> Status:
    return "ok" if free >= _LITTLE else "warning"


def _absolute(studies: str) -> str:
    """Return a studies folder as `serve` names it, which its workspace is called after."""
    return studies if studies.startswith(("http://", "https://")) else str(Path(studies).expanduser().resolve())


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
