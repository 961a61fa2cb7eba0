"""A picture of the result: planes with coloured masks, their outlines and a legend (Pillow only)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from medclipsam.base.errors import InputError
from medclipsam.imaging.colour import COLOURS
from medclipsam.imaging.image import MedicalImage
from medclipsam.imaging.windows import Window
from medclipsam.imaging.write import replace_file

_FILL = 0.32
_BACKGROUND = (18, 20, 24)
_TEXT = (235, 237, 240)
_FAINT = (150, 155, 162)
_SINGLE_SIDE = 768
_TILE_SIDE = 400
_MAX_TILES = 6
_GAP = 8
_PANEL_SIDE = 512
# The saliency map's colours from 0 to 1: dark violet, red, orange, pale yellow; 0 lets the image through.
_HEAT = ((40, 10, 90), (150, 30, 110), (230, 70, 50), (255, 160, 20), (255, 250, 170))
_HEAT_AT = (0.0, 0.25, 0.5, 0.75, 1.0)
_HEAT_SHARE = 0.75


def draw_overlay(
    labels: np.ndarray,
    image: MedicalImage,
    names: Mapping[str, int],
    *,
    plane: int | None = None,
    window: Window | None = None,
    list_absent: bool = True,
    beneath: np.ndarray | None = None,
) -> Image.Image:
    """Draw an image with its masks: translucent fill, outline and a legend.

    Small images are enlarged, large ones reduced, and pixels that are not square are shown with their true aspect.
    Of a volume, up to six planes that hold a mask are shown side by side, the one with most of it among them; without
    any mask, the middle plane.

    Parameters
    ----------
    labels : ndarray of uint8 or bool, shape (n_planes, H, W), or (H, W) of a single plane
        Label map in display orientation.
    image : MedicalImage
        The image the labels belong to.
    names : mapping of str to int
        Name of each target and its label; a name without a pixel is listed as not found.
    plane : int, optional
        Show this plane alone.
    window : Window, optional
        Grey window, see `MedicalImage.plane`.
    list_absent : bool
        Whether the legend lists names without a pixel; their colours are kept for them either way.
    beneath : ndarray of uint8, shape (n_layers, n_planes, H, W), optional
        What `labels` covers where targets overlap, see `LabelMap`; each is drawn whole.

    Returns
    -------
    PIL.Image.Image
        RGB; a notebook shows it.

    Raises
    ------
    InputError
        If the labels do not fit the image, or there is no such plane.

    Examples
    --------
    >>> import numpy as np
    >>> from medclipsam import MedicalImage, draw_overlay
    >>> image = MedicalImage.from_array(np.zeros((60, 80), np.uint8))
    >>> mask = np.zeros((60, 80), np.uint8)
    >>> mask[20:40, 30:60] = 1
    >>> draw_overlay(mask, image, {"cyst": 1}).mode
    'RGB'
    """
    labels = np.asarray(labels, dtype=np.uint8)
    labels = labels[None] if labels.ndim == 2 else labels
    if labels.shape != (image.n_planes, *image.plane_shape):
        raise InputError(
            f"A label map of shape {labels.shape} does not fit {image.source.name}; allowed is "
            f"{(image.n_planes, *image.plane_shape)}."
        )
    layers = labels[None] if beneath is None or not len(beneath) else np.concatenate([labels[None], beneath])
    shown = [plane] if plane is not None else _planes_to_show(labels)
    colours = _colours(layers, names)
    side = _SINGLE_SIDE if len(shown) == 1 else _TILE_SIDE
    tiles = [_tile(image.plane(n, window), layers[:, n], colours, _size(image, side)) for n in shown]
    if image.is_volume:
        for tile, n in zip(tiles, shown, strict=True):
            _caption(tile, f"plane {n} of 0-{image.n_planes - 1}")
    sheet = _sheet(tiles)
    present = {int(v) for v in np.unique(layers)}
    listed = {name: label for name, label in names.items() if list_absent or label in present}
    return _with_legend(sheet, [(name, colours.get(label), label in present) for name, label in listed.items()])


def write_overlay(
    labels: np.ndarray,
    image: MedicalImage,
    names: Mapping[str, int],
    path: str | os.PathLike[str],
    plane: int | None = None,
    window: Window | None = None,
    *,
    list_absent: bool = True,
    beneath: np.ndarray | None = None,
) -> Path:
    """Write the picture of `draw_overlay` as a PNG file.

    Parameters
    ----------
    labels, image, names, plane, window, list_absent, beneath
        As for `draw_overlay`.
    path : str or path-like
        PNG file to write; it appears only when complete.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    InputError
        If the labels do not fit the image, there is no such plane, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InputError(f"An overlay cannot be written to {path.name}; allowed is .png.")
    picture = draw_overlay(labels, image, names, plane=plane, window=window, list_absent=list_absent, beneath=beneath)
    replace_file(path, ".png", lambda temporary: picture.save(temporary, format="PNG", optimize=True))
    return path


def write_evidence(
    mask: np.ndarray,
    saliency: np.ndarray,
    image: MedicalImage,
    name: str,
    path: str | os.PathLike[str],
    *,
    plane: int,
    prompt: Mapping[str, Any] | None = None,
    window: Window | None = None,
    what: str = "saliency and prompt",
) -> Path:
    """Write a PNG that shows where one target's mask comes from: saliency map and prompts, and beside them the mask.

    Parameters
    ----------
    mask : ndarray of bool, shape (H, W)
        The target's mask on the plane.
    saliency : ndarray of float, shape (H, W)
        Its saliency map, in [0, 1].
    image : MedicalImage
        The image.
    name : str
        The target's name, for the legend.
    path : str or path-like
        PNG file to write; it appears only when complete.
    plane : int
        The plane.
    prompt : mapping, optional
        `boxes` [K, 4], `points` [M, 2] and `point_labels` [M] as SAM was given them, in pixels of the plane.
    window : Window, optional
        Grey window, see `MedicalImage.plane`.
    what : str
        What the map and the marks on it are.

    Raises
    ------
    InputError
        If there is no such plane, or the file cannot be written.
    """
    path = Path(path)
    pixels, size = image.plane(plane, window), _size(image, _PANEL_SIDE)
    heat = np.clip(np.asarray(saliency, dtype=np.float32), 0, 1)
    colour = np.stack([np.interp(heat, _HEAT_AT, channel) for channel in zip(*_HEAT, strict=True)], axis=-1)
    share = (_HEAT_SHARE * heat)[..., None]
    warm = np.clip(np.rint((1 - share) * pixels + share * colour), 0, 255).astype(np.uint8)
    labels = np.asarray(mask, dtype=np.uint8)
    tiles = [_tile(warm, labels[None], {}, size), _tile(pixels, labels[None], {1: COLOURS[0]}, size)]
    scale = (size[0] / pixels.shape[1], size[1] / pixels.shape[0])
    for tile in tiles:
        _draw_prompt(tile, prompt or {}, scale)
    where = f", plane {plane} of 0-{image.n_planes - 1}" if image.is_volume else ""
    _caption(tiles[0], f"{what}{where}")
    _caption(tiles[1], "mask")
    picture = _with_legend(_sheet(tiles), [(name, COLOURS[0], bool(mask.any()))])
    replace_file(path, ".png", lambda temporary: picture.save(temporary, format="PNG", optimize=True))
    return path


def _draw_prompt(tile: Image.Image, prompt: Mapping[str, Any], scale: tuple[float, float]) -> None:
    """Draw SAM's boxes and points; a pixel's centre has whole coordinates, so that its corner lies half a one off."""
    draw = ImageDraw.Draw(tile)
    x, y = scale
    width = max(2, round(max(tile.size) / 256))
    for left, top, right, bottom in prompt.get("boxes", ()):
        corners = (left * x, top * y, (right + 1) * x - 1, (bottom + 1) * y - 1)
        draw.rectangle([value + shift for value, shift in zip(corners, (-1, -1, 1, 1), strict=True)], outline=(0, 0, 0))
        draw.rectangle(corners, outline=COLOURS[1], width=width)
    points = prompt.get("points", ())
    labels = prompt.get("point_labels") or [1] * len(points)
    radius = 2 * width
    for (column, row), inside in zip(points, labels, strict=True):
        centre = ((column + 0.5) * x, (row + 0.5) * y)
        around = (centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius)
        draw.ellipse(around, fill=COLOURS[2] if inside else COLOURS[3], outline=(0, 0, 0))


def _planes_to_show(labels: np.ndarray) -> list[int]:
    counts = np.count_nonzero(labels.reshape(len(labels), -1), axis=1)
    holding = np.flatnonzero(counts)
    if not len(holding):
        return [len(labels) // 2]
    if len(holding) <= _MAX_TILES:
        return [int(n) for n in holding]
    fullest = int(np.argmax(counts))
    # Evenly spaced over the extent of the mask, ends a little inside; the nearest one gives way to the fullest.
    spread = holding[np.linspace(0, len(holding) - 1, 2 * _MAX_TILES + 1).round().astype(int)[1::2]]
    spread[np.argmin(np.abs(spread - fullest))] = fullest
    return sorted({int(n) for n in spread})


def _colours(labels: np.ndarray, names: Mapping[str, int]) -> dict[int, tuple[int, int, int]]:
    """Return a colour for each label: those with a name in their order, then any others."""
    order = list(dict.fromkeys([*(int(v) for v in names.values()), *(int(v) for v in np.unique(labels) if v)]))
    return {label: COLOURS[n % len(COLOURS)] for n, label in enumerate(order)}


def _size(image: MedicalImage, side: int) -> tuple[int, int]:
    """Return (width, height) in screen pixels: the longer side `side`, square on the patient."""
    height, width = image.plane_shape
    row_mm, column_mm = image.pixel_spacing or (1.0, 1.0)
    tall, wide = height * row_mm, width * column_mm
    scale = side / max(tall, wide)
    return max(round(wide * scale), 1), max(round(tall * scale), 1)


def _tile(
    plane: np.ndarray, layers: np.ndarray, colours: Mapping[int, tuple[int, int, int]], size: tuple[int, int]
) -> Image.Image:
    enlarged = size[0] >= plane.shape[1]
    how = Image.Resampling.BICUBIC if enlarged else Image.Resampling.LANCZOS
    canvas = np.asarray(Image.fromarray(plane).resize(size, how), dtype=np.float32)
    width = max(2, round(max(size) / 256))
    for label, colour in colours.items():
        mask = (layers == label).any(axis=0)
        if not mask.any():
            continue
        inside = _resize(mask, size)
        rim = inside & (ndimage.distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1] <= width)
        halo = ~inside & (ndimage.distance_transform_edt(~inside) <= 1.5) if inside.any() else rim
        canvas = np.where(inside[..., None], (1 - _FILL) * canvas + _FILL * np.asarray(colour), canvas)
        canvas = np.where(halo[..., None], 0.45 * canvas, canvas)
        canvas = np.where(rim[..., None], np.asarray(colour, dtype=np.float32), canvas)
    return Image.fromarray(np.clip(np.rint(canvas), 0, 255).astype(np.uint8))


def _resize(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a mask at screen size, resized as a smooth field so that its outline is a curve and not a staircase."""
    field = ndimage.gaussian_filter(mask.astype(np.float32), 0.7)
    parts, count = ndimage.label(mask, structure=np.ones((3, 3)))
    # Smoothing must not make specks of a pixel or two vanish.
    peaks = ndimage.maximum(field, parts, index=np.arange(1, count + 1))
    field = np.where(np.isin(parts, 1 + np.flatnonzero(np.asarray(peaks) < 0.6)), 1.0, field).astype(np.float32)
    inside = np.asarray(Image.fromarray(field).resize(size, Image.Resampling.BICUBIC)) >= 0.5
    return inside if inside.any() else np.asarray(Image.fromarray(mask).resize(size))


def _sheet(tiles: Sequence[Image.Image]) -> Image.Image:
    if len(tiles) == 1:
        return tiles[0]
    columns = 3 if len(tiles) > 4 else 2
    rows = -(-len(tiles) // columns)
    width, height = tiles[0].size
    sheet = Image.new("RGB", (columns * width + (columns - 1) * _GAP, rows * height + (rows - 1) * _GAP), _BACKGROUND)
    for n, tile in enumerate(tiles):
        sheet.paste(tile, ((n % columns) * (width + _GAP), (n // columns) * (height + _GAP)))
    return sheet


def _caption(tile: Image.Image, text: str) -> None:
    draw = ImageDraw.Draw(tile)
    font = ImageFont.load_default(13)
    draw.text((8, 6), text, font=font, fill=_TEXT, stroke_width=2, stroke_fill=(0, 0, 0))


def _with_legend(sheet: Image.Image, entries: Sequence[tuple[str, tuple[int, int, int] | None, bool]]) -> Image.Image:
    if not entries:
        return sheet
    font = ImageFont.load_default(17)
    swatch, pad, line = 16, 14, 28
    measure = ImageDraw.Draw(sheet)
    texts = [name if found else f"{name}: not found" for name, _, found in entries]
    widths = [swatch + 8 + measure.textlength(text, font=font) + 22 for text in texts]
    width = max(sheet.width, int(max(widths)) + 2 * pad - 22)
    places, x, y = [], float(pad), 0
    for entry_width in widths:
        if x > pad and x + entry_width - 22 > width - pad:
            x, y = float(pad), y + 1
        places.append((x, y))
        x += entry_width
    top = sheet.height
    picture = Image.new("RGB", (width, top + (y + 1) * line + 2 * 10), _BACKGROUND)
    picture.paste(sheet, ((width - sheet.width) // 2, 0))
    draw = ImageDraw.Draw(picture)
    for (_, colour, found), text, (left, row) in zip(entries, texts, places, strict=True):
        middle = top + 10 + row * line + line // 2
        box = (left, middle - swatch // 2, left + swatch, middle + swatch // 2)
        if found:
            draw.rounded_rectangle(box, radius=4, fill=colour)
        else:
            draw.rounded_rectangle(box, radius=4, outline=_FAINT, width=2)
        draw.text((left + swatch + 8, middle), text, font=font, fill=_TEXT if found else _FAINT, anchor="lm")
    return picture
