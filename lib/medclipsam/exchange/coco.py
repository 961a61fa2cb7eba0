"""Label sets as COCO instance annotations: a picture for each plane, a mask for each structure on it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from medclipsam.base.errors import InputError
from medclipsam.exchange.cases import Case, Incoming, inside
from medclipsam.exchange.nifti_sets import read_json, read_provenance
from medclipsam.imaging import MedicalImage
from medclipsam.imaging.label_map import LabelMap
from medclipsam.imaging.masks import flatten
from medclipsam.imaging.outlines import fill, outlines

SPLITS = {False: "instances_train.json", True: "instances_test.json"}


class CocoSet:
    """`images/<case>_<plane>.png`, `instances_train.json`, and `instances_test.json` where patients are kept for tests.

    Parameters
    ----------
    root : Path
        The set's folder.
    classes : mapping of str to int
        Name to category id.
    masks : {"rle", "polygons"}
        Run lengths hold each mask exactly. Polygons lose holes, and programs fill them differently.
    """

    def __init__(self, root: Path, classes: Mapping[str, int], masks: Literal["rle", "polygons"] = "rle") -> None:
        self.root = root
        self.classes = dict(classes)
        self._masks = masks
        self._images: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
        self._annotations: dict[bool, list[dict[str, Any]]] = {False: [], True: []}

    def add(self, case: Case) -> None:
        """Write one case."""
        (self.root / "images").mkdir(exist_ok=True)
        height, width = case.image.plane_shape
        images, annotations = self._images[case.test], self._annotations[case.test]
        masks = {value: case.label.mask_of(value) for value in sorted(case.label.present)}
        for plane in range(case.image.n_planes):
            name = f"{case.name}_{plane:04d}.png" if case.image.is_volume else f"{case.name}.png"
            pixels = case.image.plane(plane)
            grey = (pixels == pixels[..., :1]).all()
            Image.fromarray(pixels[..., 0] if grey else pixels).save(self.root / "images" / name)
            image_id = len(images) + 1
            images.append(
                {
                    **{"id": image_id, "file_name": f"images/{name}", "width": width, "height": height},
                    # which plane of what the picture is
                    **{"case": case.name, "plane": plane, "planes": case.image.n_planes},
                }
            )
            for value, of_value in masks.items():
                mask = of_value[plane]
                if not mask.any():
                    continue
                rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
                annotations.append(
                    {
                        **{"id": len(annotations) + 1, "image_id": image_id, "category_id": value, "iscrowd": 0},
                        "area": int(mask.sum()),
                        "bbox": [
                            *(int(columns[0]), int(rows[0])),
                            *(int(columns[-1] - columns[0]) + 1, int(rows[-1] - rows[0]) + 1),
                        ],
                        "segmentation": _polygons(mask) if self._masks == "polygons" else run_lengths(mask),
                    }
                )

    def finish(self, cases: Mapping[str, Mapping[str, Any]]) -> None:
        """Write the annotations."""
        categories = [{"id": value, "name": name} for name, value in self.classes.items()]
        for test, file in SPLITS.items():
            if self._images[test]:
                content = {
                    "info": {"description": "Labels exported by medclipsam"},
                    "images": self._images[test],
                    "annotations": self._annotations[test],
                    "categories": categories,
                }
                (self.root / file).write_text(json.dumps(content) + "\n", encoding="utf-8")


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """Return a mask (bool [H, W]) as COCO's uncompressed run lengths: column by column, zeros first."""
    flat = mask.ravel(order="F")
    ends = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def mask_of(segmentation: Any, shape: Sequence[int], what: str) -> np.ndarray:
    """Return the mask (bool [H, W]) of a COCO segmentation: run lengths, compressed or not, or polygons.

    Raises
    ------
    InputError
        If it is none of these, or does not fit the picture.
    """
    height, width = shape
    if isinstance(segmentation, list):
        mask = np.zeros((height, width), bool)
        for polygon in segmentation:
            if not isinstance(polygon, list) or len(polygon) % 2 or not all(_is_number(value) for value in polygon):
                raise InputError(f"{what} has a polygon that is no list of x, y, x, y.")
            # COCO counts from the corner of the first pixel
            mask |= fill([np.array(polygon, float).reshape(-1, 2)[:, ::-1] - 0.5], (height, width))
        return mask
    counts = segmentation.get("counts") if isinstance(segmentation, dict) else None
    if isinstance(counts, str):
        counts = _decompressed(counts, what)
    if not isinstance(counts, list) or not all(isinstance(n, int) and n >= 0 for n in counts):
        raise InputError(f"{what} has a segmentation that is neither run lengths nor polygons.")
    if list(segmentation.get("size") or []) != [height, width] or sum(counts) != height * width:
        raise InputError(f"{what} has run lengths that do not fit the picture of {width} x {height} pixels.")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape((height, width), order="F")


def read_coco(root: Path) -> list[Incoming]:
    """Return the cases of COCO annotations: the planes of a case together; a picture without a case is one by itself.

    Raises
    ------
    InputError
        If there are no annotations, or they contradict themselves.
    """
    files = sorted(root.glob("*.json")) if root.is_dir() else []
    files = [file for file in files if "annotations" in (content := _object(file)) and "categories" in content]
    if not files:
        raise InputError(f"{root} has no COCO annotations (*.json with images, annotations and categories).")
    known = read_provenance(root)
    planes: dict[str, dict[int, tuple[str, tuple[int, int], list[tuple[str, Any]]]]] = defaultdict(dict)
    names: dict[str, int] = {}
    counts: dict[str, int] = {}
    for file in files:
        content = read_json(file)
        categories = {}
        for category in _items(content, "categories", file):
            categories[category.get("id")] = str(category.get("name"))
            names.setdefault(str(category.get("name")), len(names) + 1)
        drawn: dict[Any, list[tuple[str, Any]]] = defaultdict(list)
        for annotation in _items(content, "annotations", file):
            if annotation.get("category_id") not in categories:
                raise InputError(
                    f"{file} has an annotation of the category {annotation.get('category_id')!r}, unknown."
                )
            drawn[annotation.get("image_id")].append(
                (categories[annotation["category_id"]], annotation.get("segmentation"))
            )
        for image in _items(content, "images", file):
            name, width, height = image.get("file_name"), image.get("width"), image.get("height")
            if not isinstance(name, str) or not all(isinstance(n, int) and 0 < n < 1 << 16 for n in (width, height)):
                raise InputError(f"{file} has an image without file_name, width and height.")
            case = str(image.get("case") or Path(name).stem)
            plane = image.get("plane", 0)
            if not isinstance(plane, int) or plane in planes[case]:
                raise InputError(f"{file} has the plane {plane!r} of {case} twice, or one that is no number.")
            planes[case][plane] = (name, (int(height or 0), int(width or 0)), drawn.pop(image.get("id"), []))
            counts[case] = max(counts.get(case, 0), int(image.get("planes") or 1), plane + 1)
        if drawn:
            raise InputError(f"{file} has annotations of images that it does not list: {next(iter(drawn))!r}.")
    if len(names) > 255:
        raise InputError(f"{root} has {len(names)} categories; allowed: 255.")
    found = []
    for case, of_case in planes.items():
        provenance = known.get(case, {})
        own = provenance.get("classes")
        of_names = {name: names[name] for name in own if name in names} if isinstance(own, list) else dict(names)
        picture = of_case[min(of_case)][0]
        # the planes of a volume are pictures, and not the image
        file_of_image = inside(root, picture) if counts[case] == 1 and (root / picture).exists() else None
        read = partial(_read, case, of_case, counts[case], names, of_names)
        found.append(Incoming(case, str(provenance.get("image") or case), read, file_of_image, provenance))
    return found


def _read(
    case: str,
    planes: Mapping[int, tuple[str, tuple[int, int], list[tuple[str, Any]]]],
    count: int,
    names: Mapping[str, int],
    of_case: dict[str, int],
    image: MedicalImage,
) -> LabelMap:
    if count != image.n_planes:
        raise InputError(f"{case} has {count} planes, the image {image.n_planes}.")
    masks: dict[int, np.ndarray] = {}
    for plane, (file, shape, drawn) in planes.items():
        if shape != image.plane_shape:
            raise InputError(
                f"{file} has {shape[1]} x {shape[0]} pixels, the image {image.plane_shape[1]} x {image.plane_shape[0]}."
            )
        for name, segmentation in drawn:
            mask = mask_of(segmentation, shape, f"{file}, {name!r}")
            whole = masks.setdefault(names[name], np.zeros((image.n_planes, *image.plane_shape), bool))
            whole[plane] |= mask
    drawn_names = {name: names[name] for _, _, drawn in planes.values() for name, _ in drawn}
    values, beneath = flatten(masks.items(), (image.n_planes, *image.plane_shape))
    return LabelMap(values, image, {**of_case, **drawn_names}, beneath=beneath)


def _polygons(mask: np.ndarray) -> list[list[float]]:
    return [(outline.outer[:, ::-1] + 0.5).ravel().tolist() for outline in outlines(mask)]


def _decompressed(text: str, what: str) -> list[int]:
    """Return the run lengths of COCO's compressed form: 5 bits a character, each run less the last but one."""
    counts: list[int] = []
    value, shift = 0, 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            raise InputError(f"{what} has compressed run lengths that cannot be read.")
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            if code & 16:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value, shift = 0, 0
    return counts


def _object(file: Path) -> dict[str, Any]:
    try:
        return read_json(file)
    except InputError:
        return {}


def _items(content: Mapping[str, Any], key: str, file: Path) -> list[Mapping[str, Any]]:
    items = content.get(key)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise InputError(f"{file} has no list of {key}.")
    return items


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and bool(np.isfinite(value))
