"""Known targets: the structures that have a label, captions and settings of their own, read from YAML files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, field_validator, model_validator

from medclipsam.base.errors import OptionError, TargetError
from medclipsam.base.options import PRESETS, Options, Preset, PromptKind, ZeroShotOptions, entry_problem, option
from medclipsam.targets.wording import loose_key, normalise, typing_errors, words_of

# Labels above this one belong to free text, see `medclipsam.targets.prompt.FINDING_LABELS`.
MAX_LABEL = 200

_FOLDER = Path(__file__).parent
_BUILT_IN = (_FOLDER / "paper.yaml", _FOLDER / "demo.yaml")

_RESERVED = re.compile(r"finding \d+|background")
_SNOMED_ID = re.compile(r"[1-9][0-9]{5,17}")

# "Morphologically abnormal structure" of DICOM CID 7150.
_ABNORMAL = "49755003"


@dataclass(frozen=True)
class SnomedCode:
    """A concept of SNOMED CT: its number, and its meaning in words."""

    value: str
    meaning: str


@dataclass(frozen=True)
class StructureCode:
    """What a structure is in SNOMED CT, as DICOM segmentations say it.

    Parameters
    ----------
    category : SnomedCode
        DICOM CID 7150: an anatomical structure, a morphologically abnormal one, ...
    type : SnomedCode
        The structure itself, DICOM CID 7151.
    modifier : SnomedCode or None
        The side, DICOM CID 244.
    region : SnomedCode or None
        Where in the body it is found, for a type that does not say it.
    """

    category: SnomedCode
    type: SnomedCode
    modifier: SnomedCode | None = None
    region: SnomedCode | None = None


@dataclass(frozen=True)
class Target:
    """One known structure in one or more modalities.

    Parameters
    ----------
    name : str
        Unique name.
    label : int
        Stable id in label maps, 1 to `MAX_LABEL`, unique.
    captions : tuple of str
        What the picture's caption says where the structure is there; a text ensemble.
    modality : tuple of str
        DICOM modalities it is known in; empty for all.
    meaning : str
        Slug of the structure; targets that share it are the same structure in different modalities.
    overlaps : tuple of str
        Meanings that this structure overlaps or lies in, so that neither is a negative of the other.
    synonyms : tuple of str
        Other texts that mean it.
    absence_captions : tuple of str
        What the caption says where the structure is not there; empty leaves it to the general bank.
    window : tuple of float or None
        CT window (centre, width) in Hounsfield units; None takes the file's own.
    num_components : int
        How many largest components of its mask are kept.
    box_per_component : bool
        Whether each component has a box of its own.
    visual_prompt : {"boxes", "points", "both", "mask"}
        What SAM is given. A ring needs more than a box, which is also the box round what the ring encloses.
    saliency : dict
        Preset name to {"beta", "variance", "layer"} of M2IB.
    code : StructureCode or None
        The structure in SNOMED CT.
    plausible_volume_ml, plausible_area_mm2 : tuple of float or None
        (least, greatest) size of its mask in a volume (mL) and in an image of one plane (mm²); a mask of another size
        is doubted in the answer. None doubts none.
    """

    name: str
    label: int
    captions: tuple[str, ...]
    modality: tuple[str, ...] = ()
    meaning: str = ""
    overlaps: tuple[str, ...] = ()
    synonyms: tuple[str, ...] = ()
    absence_captions: tuple[str, ...] = ()
    window: tuple[float, float] | None = None
    num_components: int = 1
    box_per_component: bool = False
    visual_prompt: str = "boxes"
    saliency: dict[str, dict[str, float]] = field(default_factory=dict, hash=False)
    code: StructureCode | None = None
    plausible_volume_ml: tuple[float, float] | None = None
    plausible_area_mm2: tuple[float, float] | None = None

    @property
    def is_finding(self) -> bool:
        """Whether it is something abnormal, such as a tumour, by the category of its code."""
        return self.code is not None and self.code.category.value == _ABNORMAL

    def in_modality(self, modality: str | None) -> bool:
        """Return whether the target is known in a DICOM modality (None: not known which, so any)."""
        return modality is None or not self.modality or modality.upper() in self.modality

    def shares_modality(self, other: Target) -> bool:
        """Return whether there is a modality in which both targets are known."""
        return not self.modality or not other.modality or bool(set(self.modality) & set(other.modality))

    def overlaps_with(self, other: Target) -> bool:
        """Return whether both are one structure or may share pixels, whichever of the two says so."""
        return self.meaning == other.meaning or other.meaning in self.overlaps or self.meaning in other.overlaps


class TargetSet:
    """The known targets, in the order of their files.

    Parameters
    ----------
    targets : iterable of Target
        Targets whose names and labels differ, and whose texts do not mean two targets in one modality.

    Raises
    ------
    TargetError
        If two targets share a name, a label, or a text in a modality that both are known in.

    Examples
    --------
    >>> from medclipsam import Target, TargetSet, ZeroShot
    >>> cyst = Target(name="cyst", label=200, captions=("a cyst in the breast on ultrasound",), modality=("US",))
    >>> targets = TargetSet([*TargetSet.load(), cyst])
    >>> targets.get("cyst").label
    200
    >>> model = ZeroShot.load(targets=targets)
    """

    def __init__(self, targets: Iterable[Target]) -> None:
        self._targets = tuple(targets)
        self._texts: dict[str, list[Target]] = {}
        self._loose: dict[str, list[Target]] = {}
        labels: dict[int, Target] = {}
        names: dict[str, Target] = {}
        for target in self._targets:
            key = normalise(target.name)
            if key in names:
                raise TargetError(f"Target {target.name!r} has the name of another target; names must be unique.")
            names[key] = target
            other = labels.setdefault(target.label, target)
            if other is not target:
                raise TargetError(
                    f"Target {target.name!r} has label {target.label}, which {other.name!r} has already; "
                    f"labels must be unique."
                )
            self._index(target)
        self._names = names
        self._names_and_synonyms: dict[str, tuple[str, list[Target]]] = {}
        for target in self._targets:
            for text in (target.name, *target.synonyms):
                self._names_and_synonyms.setdefault(normalise(text), (text, []))[1].append(target)
        self._absences = {normalise(text) for target in self._targets for text in target.absence_captions}
        self.words = frozenset(
            word for target in self._targets for text in (target.name, *target.synonyms) for word in words_of(text)
        )

    @classmethod
    def load(cls, *extra_files: str | Path) -> TargetSet:
        """Read the built-in targets and then the user's own files.

        A target of a later file replaces the one of the same name in an earlier file.

        Parameters
        ----------
        *extra_files : str or pathlib.Path
            YAML files in the format of docs/targets.md.

        Raises
        ------
        TargetError
            If a file cannot be read, is malformed, or its targets collide with each other or with earlier ones.
        """
        merged: dict[str, Target] = {}
        for file in (*(file for file in _BUILT_IN if file.is_file()), *(Path(file) for file in extra_files)):
            merged |= {normalise(target.name): target for target in read_targets(file)}
        return cls(merged.values())

    def __iter__(self) -> Iterator[Target]:
        return iter(self._targets)

    def __len__(self) -> int:
        return len(self._targets)

    def names(self) -> list[str]:
        """Return the names in the order of the files."""
        return [target.name for target in self._targets]

    def get(self, name: str) -> Target:
        """Return the target of a name (case and punctuation do not matter).

        Raises
        ------
        TargetError
            If there is none.
        """
        target = self._names.get(normalise(name))
        if target is None:
            near = self.corrected(name) or (name if self.mentions(name) else None)
            hint = f" Did you mean {self._meant(near)[0].name!r}?" if near else ""
            raise TargetError(f"There is no target {name!r}; known targets: {', '.join(self.names())}.{hint}")
        return target

    def match(self, text: str, modality: str | None = None) -> Target | None:
        """Find the known target that a text means: its name, a synonym or a caption.

        Case, punctuation, articles, British and American spelling, singular and plural, the order of words and common
        abbreviations ("Lt lung") do not matter. A text of one modality's target means the target of the same structure
        in the image's modality.

        Parameters
        ----------
        text : str
            What the user wrote, for one target.
        modality : str or None
            DICOM modality of the image; None where it is not known.

        Returns
        -------
        Target or None
            None where no target of this modality is meant, or, without a modality, targets of different meaning are.
        """
        meant = self._meant(text)
        found = [target for target in meant if target.in_modality(modality)]
        if not found:
            # "lungs CT" asked of an X-ray means the lungs all the same.
            meanings = {target.meaning for target in meant}
            found = [target for target in self if target.meaning in meanings and target.in_modality(modality)]
        return found[0] if len({target.meaning for target in found}) == 1 else None

    def mentions(self, text: str) -> bool:
        """Return whether a text means a known target of any modality."""
        return bool(self._meant(text))

    def is_absence_caption(self, text: str) -> bool:
        """Return whether a text is one of the captions of images without a target."""
        return normalise(text) in self._absences

    def is_exact(self, text: str) -> bool:
        """Return whether a text is a name, synonym or caption but for case, punctuation and articles."""
        return normalise(text) in self._texts

    def corrected(self, text: str, modality: str | None = None, *, dictionary: bool = True) -> str | None:
        """Return the name or synonym that a text with typing errors means.

        Parameters
        ----------
        text : str
            What the user wrote, for one target.
        modality : str or None
            DICOM modality of the image, whose targets go before others; None where it is not known.
        dictionary : bool
            Whether words of the English dictionary are taken as they are.

        Returns
        -------
        str or None
            None where it is not clear which structure is meant, or none is; see `medclipsam.targets.wording`.
        """
        given = normalise(text)
        found: list[tuple[bool, int, str, Target]] = []
        for phrase, (written, targets) in self._names_and_synonyms.items():
            errors = typing_errors(given, phrase, dictionary=dictionary)
            if errors is not None:
                found += [(not target.in_modality(modality), errors, written, target) for target in targets]
        least = min((entry[:2] for entry in found), default=None)
        best = [entry for entry in found if entry[:2] == least]
        return best[0][2] if len({target.meaning for *_, target in best}) == 1 else None

    def _meant(self, text: str) -> list[Target]:
        return self._texts.get(normalise(text)) or self._loose.get(loose_key(text), [])

    def _index(self, target: Target) -> None:
        for text in (target.name, *target.synonyms, *target.captions):
            loosely = self._loose.setdefault(loose_key(text), [])
            if target not in loosely:
                loosely.append(target)
            known = self._texts.setdefault(normalise(text), [])
            if target in known:
                continue
            for other in known:
                if target.shares_modality(other):
                    raise TargetError(
                        f"The text {text!r} means the targets {other.name!r} and {target.name!r} in one modality; "
                        f"names, synonyms and captions must tell targets apart."
                    )
            known.append(target)


def read_targets(file: Path) -> list[Target]:
    """Read and check one targets file.

    Parameters
    ----------
    file : pathlib.Path
        YAML, in the format of docs/targets.md.

    Raises
    ------
    TargetError
        If the file cannot be read or breaks the format; the sentence names file, target and key.
    """
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except OSError as error:
        raise TargetError(f"The targets file {file} cannot be read: {error.strerror or error}.") from error
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise TargetError(f"The targets file {file} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict) or set(content) != {"targets"}:
        raise TargetError(f"The targets file {file} must hold the one key 'targets'.")
    entries = content["targets"]
    if not isinstance(entries, list) or not entries:
        raise TargetError(f"The targets file {file} must hold a list of at least one target below 'targets'.")
    targets = [_read_entry(file, place, entry) for place, entry in enumerate(entries, start=1)]
    try:
        TargetSet(targets)
    except TargetError as error:
        raise TargetError(f"Targets file {file}: {error}") from None
    return targets


class _UniqueKeyLoader(yaml.SafeLoader):
    """`yaml.SafeLoader`, except that a key written twice is an error instead of silently losing the first."""


def _unique_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key_node, _ in node.value:
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", key_node.start_mark)
        if key is not None:
            seen.add(key)
    return loader.construct_mapping(node, deep=True)


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def _text(text: str) -> str:
    if not text.strip():
        raise ValueError("a text that is not empty")
    return text.strip()


def _worded(text: str) -> str:
    if not normalise(text):
        raise ValueError("texts with a word in them")
    return text


def _once(texts: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(texts)) != len(texts):
        raise ValueError("each text once")
    return texts


def _code(given: Any) -> SnomedCode:
    number, meaning = given if isinstance(given, list) and len(given) == 2 else (None, None)
    if isinstance(number, bool) or not _SNOMED_ID.fullmatch(str(number)) or not isinstance(meaning, str):
        raise ValueError("a SNOMED CT number and its meaning, such as [80891009, Heart]")
    # DICOM allows 64 characters
    if not 0 < len(meaning.strip()) <= 64:
        raise ValueError("a meaning of 1 to 64 characters")
    return SnomedCode(str(number), meaning.strip())


_OPTIONS = ZeroShotOptions.options()
_Listed = BeforeValidator(lambda given: tuple(given) if isinstance(given, list) else given)
_Text = Annotated[str, AfterValidator(_text)]
_Texts = Annotated[tuple[Annotated[_Text, AfterValidator(_worded)], ...], _Listed, AfterValidator(_once)]
_Modality = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]{1,15}$")]
_Slug = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
_Size = Annotated[float, Field(ge=0, le=1e9)]
_Sizes = Annotated[tuple[_Size, _Size], _Listed]
_Code = Annotated[SnomedCode, BeforeValidator(_code)]


class _Saliency(BaseModel):
    """M2IB's settings of one preset."""

    model_config = Options.model_config

    beta: float = option(..., "Trade-off", _OPTIONS["beta"].low, _OPTIONS["beta"].high)
    variance: float = option(..., "Variance of the noise", _OPTIONS["variance"].low, _OPTIONS["variance"].high)
    layer: int = option(..., "Vision block", _OPTIONS["layer"].low, _OPTIONS["layer"].high)


class _Codes(BaseModel):
    """What a structure is in SNOMED CT."""

    model_config = Options.model_config

    category: _Code
    type: _Code
    modifier: _Code | None = None
    region: _Code | None = None


class _Entry(Options):
    """One entry of a targets file."""

    name: _Text = option(..., "Unique name", allowed="a text (in quotes if YAML would read it as a number or yes)")
    label: int = option(..., "Stable id in label maps", 1, MAX_LABEL)
    captions: _Texts = option(..., "Captions of images with the structure", allowed="a list of texts, at least one")
    modality: Annotated[tuple[_Modality, ...], _Listed, AfterValidator(_once)] = option(
        (), "DICOM modalities it is known in", allowed="a list of DICOM modalities such as [CR, DX]"
    )
    meaning: _Slug | None = option(
        None,
        "Structure that targets share",
        allowed="lower-case letters and digits joined by '-', such as lung-nodule",
    )
    overlaps: Annotated[tuple[_Slug, ...], _Listed, AfterValidator(_once)] = option(
        (),
        "Meanings that it overlaps",
        allowed="a list of lower-case letters and digits joined by '-', such as [lung-nodule]",
    )
    synonyms: _Texts = option((), "Other texts that mean it", allowed="a list of texts")
    absence_captions: _Texts = option((), "Captions of images without the structure", allowed="a list of texts")
    window: Annotated[tuple[float, float], _Listed] | None = option(
        None, "CT window", allowed="two numbers [centre, width] in Hounsfield units, width above 0"
    )
    num_components: int = option(1, "Number of largest components that are kept", 1, 100)
    box_per_component: bool = option(False, "Whether each component has its own box")
    visual_prompt: PromptKind = option("boxes", "Prompt that SAM is given")
    saliency: dict[Preset, _Saliency] = option(
        {},
        "M2IB's settings by preset",
        allowed=f"the presets {', '.join(PRESETS)}, each with the keys beta, variance and layer",
    )
    code: _Codes | None = option(
        None, "SNOMED CT codes", allowed="the keys category and type, and where they help modifier and region"
    )
    plausible_volume_ml: _Sizes | None = option(
        None, "Plausible volume", allowed="two numbers [least, greatest] from 0, the greater last"
    )
    plausible_area_mm2: _Sizes | None = option(
        None, "Plausible area", allowed="two numbers [least, greatest] from 0, the greater last"
    )

    @field_validator("name")
    @classmethod
    def _is_name(cls, name: str) -> str:
        key = normalise(name)
        if not key or _RESERVED.fullmatch(key) or any(mark in name for mark in ";|\n"):
            raise ValueError("a text with a word, without ';' and '|', other than 'finding N'")
        return name

    @field_validator("captions")
    @classmethod
    def _are_any(cls, captions: tuple[str, ...]) -> tuple[str, ...]:
        if not captions:
            raise ValueError(cls.options()["captions"].allowed)
        return captions

    @field_validator("window")
    @classmethod
    def _has_width(cls, window: tuple[float, float] | None) -> tuple[float, float] | None:
        if window is not None and window[1] <= 0:
            raise ValueError(cls.options()["window"].allowed)
        return window

    @field_validator("plausible_volume_ml", "plausible_area_mm2")
    @classmethod
    def _is_range(cls, sizes: tuple[float, float] | None) -> tuple[float, float] | None:
        if sizes is not None and sizes[0] >= sizes[1]:
            raise ValueError(cls.options()["plausible_area_mm2"].allowed)
        return sizes

    @model_validator(mode="after")
    def _is_ct(self) -> Self:
        if self.window is not None and self.modality and "CT" not in self.modality:
            raise OptionError("window", list(self.window), "a window only where modality has CT")
        return self

    def target(self) -> Target:
        """Return the target that the entry describes."""
        return Target(
            **{
                **dict(self),
                "meaning": self.meaning or normalise(self.name).replace(" ", "-"),
                "saliency": {preset: dict(each) for preset, each in self.saliency.items()},
                "code": None if self.code is None else StructureCode(**dict(self.code)),
            }
        )


def _read_entry(file: Path, place: int, entry: object) -> Target:
    where = f"Targets file {file}, target {place}"
    if not isinstance(entry, dict):
        raise TargetError(f"{where}: {entry!r} is not a mapping of keys to values.")
    if isinstance(entry.get("name"), str):
        where = f"Targets file {file}, target {entry['name']!r}"
    try:
        return _Entry(**{str(key): value for key, value in entry.items()}).target()
    except OptionError as error:
        raise TargetError(f"{where}: {entry_problem(error)}") from None
