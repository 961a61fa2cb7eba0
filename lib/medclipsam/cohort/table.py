"""The table of findings as Parquet: a row for each thing that was looked for in an image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from medclipsam.base.files import atomic_write
from medclipsam.cohort.source import Study

_TEXT, _NUMBER, _WHOLE = pa.string(), pa.float64(), pa.int64()

# Columns of the table, with what they hold. Numbers are null where they are not known.
COLUMNS: Mapping[str, tuple[pa.DataType, str]] = {
    "study": (_TEXT, "Id of the study in the list"),
    "place": (pa.int32(), "Place of the study in its block of the list"),
    "image": (_TEXT, "Id of the image, as a server gives it"),
    "status": (_TEXT, "done, or failed: set aside after too many attempts"),
    "finding": (_TEXT, "Name of what was looked for; empty where the study failed"),
    "label": (pa.int32(), "Its number in the mask"),
    "found": (pa.bool_(), "Whether the mask holds any voxel of it"),
    "presence": (_NUMBER, "Presence score"),
    "threshold": (_NUMBER, "Threshold that the score was compared with"),
    "uncertainty": (_NUMBER, "Expected lack of Dice, by a network"),
    "voxels": (_WHOLE, "Voxels of the mask"),
    "volume_mm3": (_NUMBER, "Volume in cubic millimetres"),
    "area_mm2": (_NUMBER, "Area of all planes together in square millimetres"),
    "diameter_mm": (_NUMBER, "Largest diameter within a plane in millimetres, of findings"),
    "measurements": (_TEXT, "Further measurements as JSON"),
    "sam_score": (_NUMBER, "SAM's own score, mean over planes"),
    "reason": (_TEXT, "Sentence: how it was found, or why the mask is empty"),
    "doubt": (_TEXT, "Sentence, where the size is not plausible"),
    "text": (_TEXT, "Text that was given"),
    "evidence": (_TEXT, "Boxes, points and scores by plane, captions and settings, as JSON"),
    "mask": (_TEXT, "File of the mask, from the run's folder on"),
    "seg": (_TEXT, "File of the DICOM SEG, from the run's folder on"),
    "seg_uid": (_TEXT, "SOPInstanceUID of the SEG that was stored in the PACS"),
    "patient": (_TEXT, "PatientID"),
    "study_uid": (_TEXT, "StudyInstanceUID"),
    "series_uid": (_TEXT, "SeriesInstanceUID"),
    "modality": (_TEXT, "DICOM modality"),
    "planes": (pa.int32(), "Planes of the image"),
    "rows": (pa.int32(), "Rows of a plane"),
    "columns": (pa.int32(), "Columns of a plane"),
    "weights": (_TEXT, "Names and SHA-256 of the weights, as JSON"),
    "embedding": (pa.binary(), "CLIP embedding, float16, with --embed"),
    "encoder": (_TEXT, "What identifies the CLIP of the embedding"),
    "image_uncertainty": (_NUMBER, "Uncertainty of the whole image, by a network"),
    "planes_to_look_at": (pa.list_(pa.int32()), "Most uncertain planes, by a network"),
    "seconds": (_NUMBER, "Seconds of reading, computing and writing"),
    "read_seconds": (_NUMBER, "Seconds of retrieving and reading"),
    "compute_seconds": (_NUMBER, "Seconds of the models"),
    "write_seconds": (_NUMBER, "Seconds of writing and storing"),
    "attempts": (pa.int32(), "Attempts that were made"),
    "worker": (_TEXT, "Worker that did it"),
    "version": (_TEXT, "Version of medclipsam"),
    "finished": (_NUMBER, "Seconds since 1970"),
    "error": (_TEXT, "Sentence: why the study was set aside"),
    "log": (_TEXT, "File of the failure's log, from the run's folder on"),
}
SCHEMA = pa.schema([(name, kind) for name, (kind, _) in COLUMNS.items()])
_STUDIES = pa.schema(
    [
        *((name, pa.string()) for name in ("study", "where")),
        ("files", pa.list_(pa.string())),
        *(
            (name, pa.string())
            for name in ("volume", "stamp", "study_uid", "series_uid", "patient", "modality", "text")
        ),
    ]
)
_COUNTS = ("studies", "failed")


def write_studies(path: Path, studies: Sequence[Study]) -> None:
    """Write a block of the list of studies."""
    table = pa.Table.from_pylist([study.to_dict() for study in studies], schema=_STUDIES)
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def write_part(path: Path, rows: Sequence[Mapping[str, Any]], *, studies: int, failed: int) -> None:
    """Write the findings of a finished block.

    Parameters
    ----------
    path : Path
    rows : sequence of mapping
        By column; bytes may be given as hexadecimal text, as JSON holds them.
    studies, failed : int
        Studies of the block, and those that were set aside.
    """
    counts = {"studies": str(studies), "failed": str(failed)}
    given = [{**row, "embedding": _bytes(row.get("embedding"))} for row in rows]
    table = pa.Table.from_pylist(given, schema=SCHEMA.with_metadata(counts))
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def part_counts(path: Path) -> dict[str, int]:
    """Return `studies`, `failed` and `rows` of a finished block, from the end of its file."""
    metadata = pq.read_metadata(path)
    told = metadata.metadata or {}
    return {**{name: int(told.get(name.encode(), b"0")) for name in _COUNTS}, "rows": metadata.num_rows}


def read_part(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a finished block, JSON-able: bytes are hexadecimal text."""
    rows = pq.read_table(path, memory_map=False).to_pylist()
    for row in rows:
        row["embedding"] = None if row["embedding"] is None else row["embedding"].hex()
    return rows


def batches(parts: Iterator[Path], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield some columns of all findings, a block after the other."""
    for part in parts:
        # a block may be opened again for a retry at any moment
        with suppress(FileNotFoundError):
            yield from pq.read_table(part, columns=list(columns), memory_map=False).to_batches()


def compact(parts: Iterator[Path], path: Path) -> int:
    """Write the findings of all finished blocks to one file, and return how many these are.

    A study that was listed again since its content changed has the rows of each content; the last ones are newest.
    """
    count = 0
    with atomic_write(path) as temporary, pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
        for batch in batches(parts, SCHEMA.names):
            writer.write_batch(batch.replace_schema_metadata(None))
            count += batch.num_rows
    return count


def _bytes(value: Any) -> bytes | None:
    return bytes.fromhex(value) if isinstance(value, str) else value
