"""Pairs as they are published, what is bad among them, and images as inference sees them."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import BasicTextSRStorage, ExplicitVRLittleEndian, generate_uid

from medclipsam.base.errors import CancelledError, InputError
from medclipsam.finetune.captions import cut_caption, report_text
from medclipsam.finetune.data import (
    Listing,
    Pair,
    prepare,
    read_csv,
    read_folder,
    read_shards,
    read_source,
    split_listing,
)
from medclipsam.imaging import read_image


def picture(folder: Path, name: str, value: int = 100) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((12, 16), value, np.uint8)).save(folder / name)
    return folder / name


@pytest.mark.parametrize(
    ("head", "row"),
    [
        ("filename,Caption", 'a.png,"A chest x-ray, normal."'),
        ("id\tname\tcaption", "ROCO_1\ta.png\tA chest x-ray, normal."),
        ("ID;Caption", "a;A chest x-ray, normal."),
    ],
)
def test_published_tables_are_read(tmp_path, head, row):
    picture(tmp_path / "images", "a.png")
    (tmp_path / "t.csv").write_text(f"\ufeff{head}\n\n{row}\n", encoding="utf-8")
    (pair,) = read_csv(tmp_path / "t.csv").pairs
    assert pair.path == tmp_path / "images" / "a.png"
    assert pair.caption == "A chest x-ray, normal."


def test_bad_rows_are_named_and_the_rest_is_kept(tmp_path):
    picture(tmp_path, "a.png")
    (tmp_path / "t.csv").write_text(
        'image,caption,plane,modality\na.png,"one\ntwo",,DX\n,text,,\nb.png,text,,\na.png, ,,\na.png\na.png,t,x,\n'
    )
    found = read_csv(tmp_path / "t.csv")
    (pair,) = found.pairs
    assert (pair.caption, pair.modality, pair.plane) == ("one two", "DX", None)
    assert [row.reason.split()[0] for row in found.bad] == ["there", "there", "the", "it", "plane"]
    assert found.bad[1].name == "t.csv row 4 (b.png)"


def test_columns_can_be_named_and_missing_ones_are_told(tmp_path):
    picture(tmp_path, "a.png")
    (tmp_path / "t.csv").write_text("bild,befund\na.png,text\n")
    with pytest.raises(InputError, match="no column of the image among bild, befund"):
        read_csv(tmp_path / "t.csv")
    assert len(read_csv(tmp_path / "t.csv", columns={"image": "bild", "caption": "Befund"}).pairs) == 1


def test_images_outside_the_allowed_folders_are_bad(tmp_path):
    outside = picture(tmp_path / "elsewhere", "a.png")
    inside = picture(tmp_path / "here", "b.png")
    table = tmp_path / "here" / "t.csv"
    table.write_text(f"image,caption\n{outside},text\n../elsewhere/a.png,text\nb.png,text\n")
    (tmp_path / "here" / "link.png").symlink_to(outside)
    table.write_text(table.read_text() + "link.png,text\n")
    found = read_csv(table, within=[tmp_path / "here"])
    assert [pair.path for pair in found.pairs] == [inside]
    assert len(found.bad) == 3


def test_folders_take_text_files_structured_reports_and_descriptions(tmp_path, write_radiograph, write_series):
    pixels = np.tile(np.arange(32, dtype=np.uint8) * 8, (32, 1))
    for name in ("own", "study"):
        write_radiograph(pixels, tmp_path / f"{name}.dcm")
    (tmp_path / "own.txt").write_text(
        "FINAL REPORT\n EXAMINATION: chest\n INDICATION: cough\n FINDINGS: The lungs are\n clear.\n IMPRESSION: Normal."
    )
    mimic = tmp_path / "s50" / "a.dcm"
    mimic.parent.mkdir()
    write_radiograph(pixels, mimic)
    (tmp_path / "s50.txt").write_text("A heart of normal size.")
    write_series(np.zeros((3, 16, 16), np.uint8), tmp_path / "ct")
    (tmp_path / "ct" / "report.txt").write_text("A chest CT.")
    report(tmp_path / "report.dcm", pydicom.dcmread(tmp_path / "study.dcm").StudyInstanceUID)
    Image.fromarray(pixels).save(tmp_path / "alone.png")
    found = {pair.name: pair.caption for pair in read_folder(tmp_path).pairs}
    assert found == {
        "own.dcm": "The lungs are clear. Normal.",
        "s50/a.dcm": "A heart of normal size.",
        "ct": "A chest CT.",
        "study.dcm": "An opacity in the left lung.",
    }
    assert "alone.png" in {row.name for row in read_folder(tmp_path).bad}
    (tmp_path / "report.dcm").unlink()
    described = pydicom.dcmread(tmp_path / "study.dcm")
    described.StudyDescription, described.SeriesDescription = "Chest PA", "Chest PA"
    described.save_as(tmp_path / "study.dcm")
    assert "study.dcm" not in {pair.name for pair in read_folder(tmp_path).pairs}
    texts = {pair.name: pair.caption for pair in read_folder(tmp_path, descriptions=True).pairs}
    assert texts["study.dcm"] == "Chest PA"


def report(path: Path, study: str) -> None:
    def item(kind: str, meaning: str, **more: object) -> Dataset:
        part, name = Dataset(), Dataset()
        name.CodeMeaning = meaning
        part.ValueType, part.ConceptNameCodeSequence = kind, [name]
        for key, value in more.items():
            setattr(part, key, value)
        return part

    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = BasicTextSRStorage
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.StudyInstanceUID, data.Modality = study, "SR"
    finding = item("TEXT", "Findings", TextValue="An opacity in the left lung.")
    reason = item("TEXT", "Reason for study", TextValue="Fever.")
    data.ContentSequence = [reason, item("CONTAINER", "Section", ContentSequence=[finding])]
    data.save_as(path, enforce_file_format=True)


def shard(path: Path, samples) -> Path:
    with tarfile.open(path, "w") as tar:
        for key, parts in samples:
            for suffix, content in parts.items():
                entry = tarfile.TarInfo(f"{key}.{suffix}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return path


def test_shards_are_read_once(tmp_path):
    png = picture(tmp_path, "a.png", 77).read_bytes()
    first = shard(tmp_path / "0.tar", [("a", {"png": png, "txt": b"a  chest"}), ("b", {"png": png})])
    second = shard(
        tmp_path / "1.tar",
        [("c", {"png": png, "json": json.dumps({"caption": "a brain"}).encode()}), ("d", {"txt": b"no image"})],
    )
    found = read_shards([first, second], tmp_path / "work")
    assert [(pair.name, pair.caption) for pair in found.pairs] == [("0.tar/a", "a chest"), ("1.tar/c", "a brain")]
    assert [row.name for row in found.bad] == ["0.tar/b", "1.tar/d"]
    assert read_image(found.pairs[1].path).plane(0)[0, 0].tolist() == [77] * 3
    stamp = found.pairs[0].path.stat().st_mtime_ns
    again = read_source(tmp_path, work=tmp_path / "work")
    assert (again.pairs, again.bad) == (found.pairs, found.bad)
    assert found.pairs[0].path.stat().st_mtime_ns == stamp
    (tmp_path / "2.tar").write_bytes(b"\0" * 100 + b"no tar" * 200)
    with pytest.raises(InputError, match=r"2\.tar cannot be read"):
        read_shards([tmp_path / "2.tar"], tmp_path / "other")


def test_what_is_no_source_is_refused(tmp_path):
    for source in (tmp_path / "nowhere", picture(tmp_path, "a.png")):
        with pytest.raises(InputError, match="holds no pairs"):
            read_source(source, work=tmp_path)


def test_training_sees_what_inference_sees(tmp_path, encoder, write_series):
    planes = np.stack([np.tile(np.arange(20, dtype=np.uint8) * 10, (12, 1)) + 10 * k for k in range(5)])
    folder = write_series(planes, tmp_path / "ct")
    image = read_image(folder)
    for pair, plane in ((Pair("middle", folder, "text"), 2), (Pair("fourth", folder, "text", plane=3), 3)):
        prepared = prepare(Listing([pair]), encoder)
        tensor, tokens, _ = prepared[0]
        assert torch.equal(tensor, encoder.preprocess(image.plane(plane))[0])
        assert torch.equal(tokens, encoder.tokenizer(["text"])[0])
        assert prepared.modalities == ["CT"]


def test_the_same_with_worker_processes_and_without_the_cache(listing, encoder):
    some = Listing(listing.pairs[:6])
    one = prepare(some, encoder)
    two = prepare(some, encoder, workers=1, cache_bytes=0)
    assert one.in_memory
    assert not two.in_memory
    assert one.digest == two.digest
    assert torch.equal(one[4][0], two[4][0])
    (batch,) = two.batches([[4, 2]], workers=1)
    assert torch.equal(batch[0][0], one[4][0])


def test_unreadable_images_count_as_bad_up_to_a_limit(tmp_path, listing, encoder):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    bad = Listing([*listing.pairs[:9], Pair("row 11 (broken.png)", broken, "text")])
    prepared = prepare(bad, encoder, max_bad=0.1)
    assert len(prepared) == 9
    assert [row.name for row in prepared.bad] == ["row 11 (broken.png)"]
    with pytest.raises(InputError, match=r"1 of 10 pairs cannot be used.*row 11 \(broken.png\)"):
        prepare(bad, encoder, max_bad=0.05)
    with pytest.raises(InputError, match="0 of 0 pairs"):
        prepare(Listing(), encoder)
    with pytest.raises(CancelledError):
        prepare(bad, encoder, cancelled=lambda: True)


def test_the_digest_depends_on_images_captions_and_order(listing, encoder):
    base = listing.pairs[:3]
    changed = [Pair("x", base[0].path, "another text"), *base[1:]]
    digests = {prepare(Listing(pairs), encoder).digest for pairs in (base, base[::-1], changed)}
    assert len(digests) == 3


def test_split_keeps_captions_and_images_together(tmp_path):
    pairs = [Pair(str(n), Path(f"{n // 2}.png"), f"caption {n % 7}" if n < 28 else f"own {n // 2}") for n in range(200)]
    train, held = split_listing(Listing(pairs), 0.2, seed=3)
    assert len(train.pairs) + len(held.pairs) == 200
    assert 0.1 < len(held.pairs) / 200 < 0.4
    for what in ("caption", "path"):
        assert not {getattr(p, what) for p in train.pairs} & {getattr(p, what) for p in held.pairs}
    again = split_listing(Listing(pairs[::-1]), 0.2, seed=3)[1]
    assert {pair.name for pair in again.pairs} == {pair.name for pair in held.pairs}


def words(text: str) -> int:
    return len(text.split()) + 2


def test_captions_are_cut_at_sentence_ends():
    text = "A chest x-ray of 1.5 cm. The lungs, e.g. the left one, are clear! Is it normal? Yes."
    assert cut_caption(text, words, 100) == text
    assert cut_caption(text, words, 16) == "A chest x-ray of 1.5 cm. The lungs, e.g. the left one, are clear!"
    assert cut_caption(text, words, 9) == "A chest x-ray of 1.5 cm."
    assert cut_caption(text, words, 6) == "A chest x-ray of"
    assert cut_caption(text, lambda _: None, 3) == text


def test_prepared_captions_fit_the_context(tmp_path, listing, encoder):
    long = " ".join(f"The finding number {n} is a small nodule in the lung." for n in range(40))
    prepared = prepare(Listing([Pair("a", listing.pairs[0].path, long)]), encoder)
    assert prepared.captions[0].endswith("lung.")
    assert encoder.count_tokens(prepared.captions[0]) <= encoder.context_length < encoder.count_tokens(long)
    encoder.encode_texts(prepared.captions)


def test_reports_without_sections_are_taken_whole():
    assert report_text("Clear lungs.\n  No effusion.") == "Clear lungs. No effusion."
    assert report_text("INDICATION: cough. IMPRESSION: Clear. ") == "Clear."
    assert report_text("IMPRESSION:  ") == "IMPRESSION:"


def test_an_image_whose_patient_cannot_be_read_is_a_bad_row(tmp_path, hide_patients):
    for name in ("one", "two"):
        picture(tmp_path, f"{name}.png")
        (tmp_path / f"{name}.txt").write_text("Clear lungs.")
    hide_patients.add("two")
    found = read_folder(tmp_path)
    assert [pair.name for pair in found.pairs] == ["one.png"]
    assert [row.name for row in found.bad] == ["two.png"]
    hide_patients.clear()
    assert len(read_folder(tmp_path).pairs) == 2
