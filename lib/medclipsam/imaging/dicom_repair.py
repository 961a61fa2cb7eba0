"""DICOM files with structural faults whose meaning is plain, rewritten so that pydicom reads them.

Old archives and converters have left out the delimiters of sequences, items and frames, or the length of the pixel
data. No native code is used: a hostile file can do no more than be refused.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field

from pydicom import uid
from pydicom.datadict import dictionary_has_tag, dictionary_VR

_LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_SHORT = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split(),
)
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_PIXELS = 0x7FE00010
_DEEPEST = 32
# A file of nothing but tiny elements must not take long.
_MOST_ELEMENTS = 500_000
_ROWS, _COLUMNS, _SAMPLES, _BITS, _FRAMES = 0x00280010, 0x00280011, 0x00280002, 0x00280100, 0x00280008
_WANTED = frozenset((_ROWS, _COLUMNS, _SAMPLES, _BITS, _FRAMES))


def repaired(content: bytes) -> bytes | None:
    """Return a DICOM file with its structure repaired.

    What is repaired: missing delimiters of sequences, of items of undefined length and of encapsulated frames, and
    such delimiters where nothing ends; pixel data whose length is missing, 0, undefined or too small while all pixels
    are there; bytes behind the pixel data that are no elements. Where both an item and its sequence lack their ends,
    the item is taken to end before the first element of a higher group than the sequence's.

    Parameters
    ----------
    content : bytes
        The whole file, with or without preamble and file meta information.

    Returns
    -------
    bytes or None
        The repaired file; None where nothing was repaired, or the fault is another one.
    """
    try:
        start, syntax = _meta(content)
        if syntax == uid.DeflatedExplicitVRLittleEndian:
            return None
    except (struct.error, ValueError):
        return None
    for early in (False, True):
        walk = _Walk(content, ">" if syntax == uid.ExplicitVRBigEndian else "<", early)
        try:
            body = walk.top(start)
        except (struct.error, ValueError, IndexError):
            continue
        if _ROWS in walk.known:
            return content[:start] + body if walk.changed else None
    return None


def _meta(content: bytes) -> tuple[int, str]:
    """Return where the data set begins, and the transfer syntax; "" where it is not stated."""
    place, syntax = (132 if content[128:132] == b"DICM" else 0), ""
    while content[place : place + 2] == b"\x02\x00":
        vr = content[place + 4 : place + 6]
        if vr in _LONG:
            (length,), head = struct.unpack_from("<I", content, place + 8), 12
        elif vr in _SHORT:
            (length,), head = struct.unpack_from("<H", content, place + 6), 8
        else:
            (length,), head = struct.unpack_from("<I", content, place + 4), 8
        if content[place + 2 : place + 4] == b"\x10\x00":
            syntax = content[place + head : place + head + length].decode("ascii").strip("\0 ")
        place += head + length
    return place, syntax


@dataclass(frozen=True)
class _Element:
    place: int
    tag: int
    vr: bytes
    head: int
    length: int

    @property
    def value(self) -> int:
        return self.place + self.head


@dataclass
class _Walk:
    """A walk through the elements of a file, which writes down what was read with what was missing."""

    content: bytes
    order: str
    # whether items of undefined length end before the first element of a higher group than their sequence's
    early: bool
    changed: bool = False
    elements: int = 0
    known: dict[int, float] = field(default_factory=dict)

    def top(self, place: int) -> bytes:
        """Return the data set of the file from `place` on."""
        made = bytearray()
        end, last = len(self.content), 0
        while place < end:
            try:
                element = self._element(place, end)
                if last >= _PIXELS and element.tag <= last:
                    raise ValueError("no element")
                if element.tag in (_ITEM_END, _SEQUENCE_END) and not self.early:
                    self.changed, place = True, element.value
                    continue
                if element.tag == _PIXELS:
                    piece, place = self._pixels(element)
                else:
                    piece, place = self._copy(element, end, 0)
            except (struct.error, ValueError):
                if last < _PIXELS:
                    raise
                self.changed = True
                break
            if element.tag in _WANTED:
                self._note(element)
            made += piece
            last = element.tag
        return bytes(made)

    def _element(self, place: int, end: int) -> _Element:
        self.elements += 1
        if self.elements > _MOST_ELEMENTS:
            raise ValueError("too many elements")
        group, number = struct.unpack_from(f"{self.order}HH", self.content, place)
        vr, head = self.content[place + 4 : place + 6], 8
        if group == 0xFFFE:
            vr = b""
        if vr in _LONG:
            (length,), head = struct.unpack_from(f"{self.order}I", self.content, place + 8), 12
        elif vr in _SHORT:
            (length,) = struct.unpack_from(f"{self.order}H", self.content, place + 6)
        else:
            vr = b""
            (length,) = struct.unpack_from(f"{self.order}I", self.content, place + 4)
        element = _Element(place, group << 16 | number, vr, head, length)
        if element.tag != _PIXELS and length != _UNDEFINED and element.value + length > end:
            raise ValueError("an element is cut off")
        return element

    def _copy(self, element: _Element, end: int, depth: int) -> tuple[bytes, int]:
        """Return an element as it should be, and where the next one begins."""
        if depth > _DEEPEST:
            raise ValueError("too deep")
        defined = element.length != _UNDEFINED
        if not self._is_sequence(element):
            after = element.value + element.length
            return self.content[element.place : after], after
        inner_end = element.value + element.length if defined else end
        inside, after, complete = self._items(element, inner_end, depth)
        if defined and len(inside) == element.length:
            return self.content[element.place : element.value] + inside, after
        self.changed |= defined or not complete
        head = bytearray(self.content[element.place : element.value])
        head[-4:] = struct.pack(f"{self.order}I", _UNDEFINED)
        return bytes(head) + inside + self._delimiter(_SEQUENCE_END), after

    def _is_sequence(self, element: _Element) -> bool:
        if element.length == _UNDEFINED or element.vr == b"SQ":
            return True
        return not element.vr and dictionary_has_tag(element.tag) and dictionary_VR(element.tag) == "SQ"

    def _items(self, sequence: _Element, end: int, depth: int) -> tuple[bytes, int, bool]:
        """Return the items of a sequence, where they end, and whether its length or a delimiter said so."""
        made, place, defined = bytearray(), sequence.value, sequence.length != _UNDEFINED
        while place < end:
            item = self._element(place, end)
            if item.tag == _SEQUENCE_END:
                return bytes(made), item.value, True
            if item.tag != _ITEM:
                if defined:
                    raise ValueError("no item")
                break
            bound = end if item.length == _UNDEFINED else item.value + item.length
            piece, place = self._item(item, bound, sequence.tag >> 16, depth)
            made += piece
        return bytes(made), place, defined

    def _item(self, item: _Element, end: int, group: int, depth: int) -> tuple[bytes, int]:
        made, place, closed = bytearray(), item.value, False
        defined = item.length != _UNDEFINED
        while place < end:
            element = self._element(place, end)
            if not defined and element.tag == _ITEM_END:
                place, closed = element.value, True
                break
            if not defined and (
                element.tag in (_ITEM, _SEQUENCE_END) or (self.early and group < element.tag >> 16 < 0xFFFE)
            ):
                break
            piece, place = self._copy(element, end, depth + 1)
            made += piece
        if defined and len(made) == item.length:
            return self.content[item.place : item.value] + bytes(made), place
        self.changed |= defined or not closed
        head = self.content[item.place : item.place + 4] + struct.pack(f"{self.order}I", _UNDEFINED)
        return head + bytes(made) + self._delimiter(_ITEM_END), place

    def _delimiter(self, tag: int) -> bytes:
        return struct.pack(f"{self.order}HHI", tag >> 16, tag & 0xFFFF, 0)

    def _note(self, element: _Element) -> None:
        value = self.content[element.value : element.value + element.length]
        if element.tag == _FRAMES:
            self.known[_FRAMES] = int(value.decode("ascii").strip("\0 ") or 1)
        elif len(value) == 2:
            (self.known[element.tag],) = struct.unpack(f"{self.order}H", value)

    def _pixels(self, element: _Element) -> tuple[bytes, int]:
        """Return the element of the pixel data, and where it ends."""
        content, end = self.content, len(self.content)
        frames = int(self.known.get(_FRAMES, 1))
        if element.length == _UNDEFINED:
            place, items = element.value, -1
            while place + 8 <= end:
                group, number, length = struct.unpack_from(f"{self.order}HHI", content, place)
                tag = group << 16 | number
                if tag == _SEQUENCE_END:
                    return content[element.place : place + 8], place + 8
                if tag != _ITEM or place + 8 + length > end:
                    break
                place, items = place + 8 + length, items + 1
            if items >= frames > 0:
                self.changed = True
                return content[element.place : place] + self._delimiter(_SEQUENCE_END), place
            if items >= 0:
                raise ValueError("frames are cut off")
        try:
            pixels = math.prod(self.known[name] for name in (_ROWS, _COLUMNS)) * self.known.get(_SAMPLES, 1)
            size = int(pixels * frames * self.known[_BITS] / 8 + 0.5)
        except KeyError:
            raise ValueError("the size of the pixels is not stated") from None
        size += size % 2
        if size <= element.length <= end - element.value:
            after = element.value + element.length
            return content[element.place : after], after
        head = element.head
        if element.vr and end - (element.place + 8) == size:
            head = 8  # where the length should be, the pixels begin
        elif end - element.value < size:
            raise ValueError("pixels are cut off")
        self.changed = True
        start = element.place + head
        made = content[element.place : element.place + (8 if element.vr else 4)] + struct.pack(f"{self.order}I", size)
        return made + content[start : start + size], start + size
