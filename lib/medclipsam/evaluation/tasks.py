"""Tasks: what is asked for in a folder of images, and the texts that its sensitivity to text is measured with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, field_validator

from medclipsam.base.errors import InputError, MedClipSamError, OptionError
from medclipsam.base.options import Options, entry_problem, option
from medclipsam.targets import Target, TargetSet, check_text, normalise, parse_prompt

# The four tasks of the paper, by the names that their folders commonly have.
_PAPER_TASKS = Path(__file__).parent / "paper_tasks.yaml"

# Texts that mean nothing in any medical image, for tasks that name none of their own.
NONSENSE = (
    "a parking ticket under a windscreen wiper",
    "the third movement of a symphony",
    "wooden bridge over a river",
    "blorptang quixel vandrim",
    "tax form for small businesses",
)
_MAX_OTHERS = 4


@dataclass(frozen=True)
class Task:
    """One structure that is asked for in the images of one folder.

    Attributes
    ----------
    name : str
        Unique name.
    folder : str
        Folder below the data folder; tasks may share one.
    prompt : str
        The fixed text of protocol B.
    modality : str or None
        DICOM modality of images whose files do not say.
    labels : tuple of int or None
        Values of the mask that belong to the structure; None takes all but 0.
    paraphrases : tuple of str
        Other texts for the same structure.
    other_structures : tuple of str
        Texts for structures of the same modality that share no pixel with it.
    other_modality : tuple of str
        Texts for structures of another modality.
    nonsense : tuple of str
        Texts that mean nothing in a medical image.
    published : str or None
        Key of the published figures that stand beside this task's.
    """

    name: str
    folder: str
    prompt: str
    modality: str | None = None
    labels: tuple[int, ...] | None = None
    paraphrases: tuple[str, ...] = ()
    other_structures: tuple[str, ...] = ()
    other_modality: tuple[str, ...] = ()
    nonsense: tuple[str, ...] = NONSENSE
    published: str | None = None

    def texts(self) -> dict[str, tuple[str, ...]]:
        """Return the texts by kind, the right one first."""
        return {
            "right": (self.prompt,),
            "paraphrase": self.paraphrases,
            "other structure": self.other_structures,
            "other modality": self.other_modality,
            "nonsense": self.nonsense,
        }


def _stripped(text: str) -> str:
    if not text.strip():
        raise ValueError("a text that is not empty")
    return text.strip()


def _once(texts: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(texts)) != len(texts):
        raise ValueError("each text once")
    return texts


_Listed = BeforeValidator(lambda given: tuple(given) if isinstance(given, list) else given)
_Text = Annotated[str, AfterValidator(_stripped)]
_Texts = Annotated[tuple[_Text, ...], _Listed, AfterValidator(_once)]
_ALLOWED = "a list of texts that are not empty"


class _Entry(Options):
    """One entry of a tasks file; None stands for what the known targets say."""

    folder: _Text = option(..., "Folder below the data folder")
    prompt: _Text = option(..., "Fixed text of protocol B")
    modality: _Text | None = option(None, "DICOM modality of images whose files do not say")
    labels: tuple[Annotated[int, Field(ge=1)], ...] | None = option(
        None, "Values of the mask that belong to the structure", allowed="whole numbers from 1"
    )
    published: _Text | None = option(None, "Key of the published figures beside this task's")
    paraphrases: _Texts = option((), "Other texts for the same structure", allowed=_ALLOWED)
    other_structures: _Texts | None = option(None, "Texts for other structures", allowed=_ALLOWED)
    other_modality: _Texts | None = option(None, "Texts for structures of other modalities", allowed=_ALLOWED)
    nonsense: _Texts = option(NONSENSE, "Texts that mean nothing in a medical image", allowed=_ALLOWED)

    @field_validator("folder")
    @classmethod
    def _is_below(cls, folder: str) -> str:
        if Path(folder).is_absolute() or ".." in Path(folder).parts:
            raise ValueError("a folder below the data folder")
        return folder

    @field_validator("labels", mode="before")
    @classmethod
    def _as_tuple(cls, given: Any) -> Any:
        if isinstance(given, int):
            return (given,)
        return tuple(given) if isinstance(given, list) else given

    @field_validator("labels")
    @classmethod
    def _are_any(cls, labels: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if labels == ():
            raise ValueError(cls.options()["labels"].allowed)
        return None if labels is None else tuple(sorted(set(labels)))


def read_tasks(file: Path, targets: TargetSet) -> list[Task]:
    """Read a tasks file.

    Parameters
    ----------
    file : pathlib.Path
        YAML with the one key `tasks`, a mapping of names to entries (docs/evaluation.md).
    targets : TargetSet
        The known targets, for texts that an entry leaves out.

    Raises
    ------
    InputError
        If the file cannot be read or breaks the format; the sentence names the file, the task and the key.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"The tasks file {file} cannot be read: {error.strerror or error}.") from error
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise InputError(f"The tasks file {file} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict) or set(content) != {"tasks"} or not isinstance(content["tasks"], dict):
        raise InputError(f"The tasks file {file} must hold the one key 'tasks', a mapping of names to entries.")
    return [
        _task(f"Tasks file {file}, task {name!r}", str(name), entry, targets)
        for name, entry in content["tasks"].items()
    ]


def task_of_folder(
    name: str, targets: TargetSet, *, folder: str | None = None, labels: tuple[int, ...] | None = None
) -> Task:
    """Make the task of a folder (or of a label of a studies folder) that no tasks file describes.

    Parameters
    ----------
    name : str
        A folder of the paper (`breast_tumors`, `lung_CT` ...), or the name, synonym or caption of a known target with
        "_" for blanks.
    targets : TargetSet
        The known targets.
    folder : str, optional
        Where its images lie, where this is not `name`.
    labels : tuple of int, optional
        See `Task`.

    Raises
    ------
    InputError
        If the name means no known target.
    """
    text = name.replace("_", " ")
    for paper in read_tasks(_PAPER_TASKS, targets):
        if normalise(text) == normalise(paper.name.replace("_", " ")):
            return Task(**{**vars(paper), "name": name, "folder": folder or name, "labels": labels})
    target = targets.match(text)
    if target is None:
        raise InputError(
            f"The task {name!r} means no known target; describe it in tasks.yaml or name its folder after a target: "
            f"{', '.join(targets.names())}."
        )
    entry = {"folder": folder or name, "prompt": target.name, "labels": None if labels is None else list(labels)}
    return _task(f"Task {name!r}", name, entry, targets)


def _task(where: str, name: str, given: object, targets: TargetSet) -> Task:
    if not isinstance(given, dict):
        raise InputError(f"{where}: {given!r} is not a mapping of keys to values.")
    if not normalise(name):
        raise InputError(f"{where}: a task's name must hold a word.")
    try:
        entry = _Entry(**{"folder": name, "prompt": name.replace("_", " "), **{str(key): given[key] for key in given}})
    except OptionError as error:
        raise InputError(f"{where}: {entry_problem(error)}") from None
    prompt, modality = entry.prompt, entry.modality
    target = _known(where, "prompt", prompt, modality, targets)
    modality = modality or (target.modality[0] if target and target.modality else None)
    for text in entry.other_structures or ():
        other = _known(where, "other_structures", text, modality, targets)
        if target is not None and other is not None and target.overlaps_with(other):
            raise InputError(f"{where}: other_structures cannot hold {text!r}, which shares pixels with {prompt!r}.")
    beside, elsewhere = _other_targets(target, modality, targets)
    return Task(
        **{
            **dict(entry),
            "name": name,
            "modality": modality,
            "other_structures": beside if entry.other_structures is None else entry.other_structures,
            "other_modality": elsewhere if entry.other_modality is None else entry.other_modality,
        }
    )


def _other_targets(
    target: Target | None, modality: str | None, targets: TargetSet
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return texts for structures beside a known target, and for structures of other modalities."""
    if target is None:
        return (), ()
    apart = [other for other in targets if not target.overlaps_with(other)]
    beside = [other for other in apart if modality is not None and other.in_modality(modality)]
    elsewhere = [other for other in apart if other.modality and not target.shares_modality(other)]
    # A first caption names the modality; one structure of each modality before the second of any.
    first = {other.modality: other for other in reversed(elsewhere)}
    spread = sorted(elsewhere, key=lambda other: first[other.modality] is not other)
    return tuple(other.captions[0] for other in beside[:_MAX_OTHERS]), tuple(
        other.captions[0] for other in spread[:_MAX_OTHERS]
    )


def _known(where: str, key: str, text: str, modality: str | None, targets: TargetSet) -> Target | None:
    try:
        asked = parse_prompt(text, modality, targets)
    except MedClipSamError as error:
        raise InputError(f"{where}: {key} cannot be {text!r}: {error}") from None
    if len(asked) > 1:
        raise InputError(f"{where}: {key} cannot be {text!r}, which asks for {len(asked)} targets; allowed: one.")
    return asked[0].target


def read_prompts(file: Path, tasks: Mapping[str, Sequence[str]], targets: TargetSet) -> dict[str, dict[str, str]]:
    """Read the prompts of protocol A: a text for each image.

    Parameters
    ----------
    file : pathlib.Path
        JSON: {"image.png": "text"} as published, for a single task; or {"task": {"image.png": "text"}}.
    tasks : mapping of str to sequence of str
        The tasks, and the file names of their images.
    targets : TargetSet
        The known targets.

    Returns
    -------
    dict
        Task -> file name -> text.

    Raises
    ------
    InputError
        If the file cannot be read, or an image has no prompt or one that cannot be searched for; the sentence names it.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"The prompts file {file} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise InputError(f"The prompts file {file} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise InputError(f"The prompts file {file} must hold a mapping of image names to texts.")
    if not any(isinstance(value, dict) for value in content.values()):
        if len(tasks) > 1:
            raise InputError(
                f"The prompts file {file} names no task but there are {len(tasks)}; give one with --tasks, or write "
                '{"task": {"image": "text"}}.'
            )
        content = dict.fromkeys(tasks, content)
    prompts: dict[str, dict[str, str]] = {}
    for task, names in tasks.items():
        given = content.get(task)
        if not isinstance(given, dict):
            raise InputError(f"The prompts file {file} has no prompts for the task {task!r}.")
        for name in names:
            text = given.get(name)
            if not isinstance(text, str) or not text.strip():
                raise InputError(f"The prompts file {file} has no text for the image {name!r} of the task {task!r}.")
            try:
                check_text(text, targets)
            except InputError as error:
                raise InputError(f"The prompts file {file}, image {name!r} of the task {task!r}: {error}") from None
        prompts[task] = {name: given[name].strip() for name in names}
    return prompts
