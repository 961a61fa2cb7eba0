"""The folder of demo studies: readable by the imaging room, upright, the patient's right at the image's left."""

import numpy as np
import pydicom
import pytest

from medclipsam.base.errors import InputError
from medclipsam.demo.phantoms import make_phantom, make_volume
from medclipsam.demo.studies import main, write_studies
from medclipsam.imaging import read_image


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("studies")
    assert main([str(path), "--n", "1"]) == 0
    return path


def correlation(first, second):
    return np.corrcoef(first.ravel().astype(float), second.ravel().astype(float))[0, 1]


def test_folder_is_flat_with_unique_stems_and_every_file_can_be_read(folder):
    files = sorted(folder.iterdir())
    stems = [file.name.partition(".")[0] for file in files]
    assert len(files) == 10
    assert len(set(stems)) == len(stems)
    for file in files:
        assert read_image(file).plane(0).dtype == np.uint8


@pytest.mark.parametrize(("name", "modality"), [("chest-xray-1.dcm", "CR"), ("chest-ct-slice-1.dcm", "CT")])
def test_dicom_files_say_what_they_are_and_name_no_real_patient(folder, name, modality):
    dataset = pydicom.dcmread(folder / name)
    assert dataset.Modality == modality
    assert str(dataset.PatientName).startswith("Phantom")
    assert dataset.PatientBirthDate == ""


def test_xray_is_shown_as_drawn(folder):
    shown = read_image(folder / "chest-xray-1.dcm").plane(0)[..., 0]
    drawn = make_phantom("XR", 0, size=512, pathology=True).image
    assert shown.shape == drawn.shape
    assert correlation(shown, drawn) > 0.99


def test_ultrasound_is_shown_as_drawn(folder):
    shown = read_image(folder / "breast-us-1.png").plane(0)
    drawn = make_phantom("US", 0, size=384, pathology=True).image
    assert np.array_equal(shown, drawn if drawn.ndim == 3 else np.repeat(drawn[..., None], 3, axis=2))


@pytest.mark.parametrize(("name", "modality"), [("brain-mri-1.nii.gz", "MR"), ("chest-ct-1.nii.gz", "CT")])
def test_volumes_are_shown_upright_from_below_with_patient_right_at_image_left(folder, name, modality):
    image = read_image(folder / name)
    drawn, _ = make_volume(modality, 0, 24, raw=True)
    if modality == "CT":
        drawn = np.clip(drawn, -160, 240)  # the window that a CT is shown in
    assert image.n_planes == 24
    assert image.modality == (modality if modality == "CT" else None)
    for index in (6, 12, 17):
        plane = image.plane(index)[..., 0]
        right = correlation(plane, drawn[index])
        assert right > 0.9
        assert right > correlation(plane, drawn[index][:, ::-1])
        assert right > correlation(plane, drawn[index][::-1])


def test_ct_slice_keeps_hounsfield_units(folder):
    dataset = pydicom.dcmread(folder / "chest-ct-slice-1.dcm")
    units = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    stack, masks = make_volume("CT", 500, 9, size=256, raw=True)
    assert np.array_equal(units, np.clip(stack[5], -1024, 3071))
    assert masks["lungs"][5].any()


def test_writing_again_gives_the_same_files(folder, tmp_path):
    again = write_studies(tmp_path, 1)
    assert [path.read_bytes() for path in again] == [(folder / path.name).read_bytes() for path in again]


def test_no_studies_are_refused(tmp_path):
    with pytest.raises(InputError, match="at least 1 phantom"):
        write_studies(tmp_path, 0)
