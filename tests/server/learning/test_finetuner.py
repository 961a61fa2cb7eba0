"""The train task of the CLIP: where pairs come from, what requests may say, and when new weights are used."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image

from medclipsam.base.errors import ImageError, InputError, OptionError
from medclipsam.base.options import ZeroShotOptions
from medclipsam.finetune.store import ClipStore
from medclipsam.imaging import MedicalImage
from medclipsam.server.base.conf import AppConf
from medclipsam.server.inference.pipeline import SharedPipeline
from medclipsam.server.learning.finetuner import FinetuneTrainer, datastore_pairs
from medclipsam.server.learning.trainer import candidates, patient_of
from medclipsam.server.studies.folder import FolderStudies
from medclipsam.targets import TargetSet
from medclipsam.training.lock import TrainingLock, TrainingRunsError, holder_of

SAID = ("a breast ultrasound", "an MRI of the brain", "a chest x-ray", "a chest CT")
EACH = 40


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with one bright quarter, which their caption depends on."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for kind in range(len(SAID)):
        for number in range(EACH):
            picture = rng.normal(30, 10, (2, 24, 2, 24))
            picture[kind // 2, :, kind % 2] += 150
            Image.fromarray(picture.reshape(48, 48).astype(np.uint8)).save(folder / f"{kind}-{number:02d}.png")
    return folder


def captions() -> dict[str, str]:
    return {f"{kind}-{number:02d}": text for kind, text in enumerate(SAID) for number in range(EACH)}


class Store:
    """A datastore of pictures, as far as the trainer asks it."""

    def __init__(self, folder: Path, captions: dict[str, str]) -> None:
        self.folder, self.captions = folder, captions

    def list_images(self) -> list[str]:
        return sorted(path.stem for path in self.folder.glob("*.png"))

    def get_image_uri(self, image: str) -> str:
        return str(self.folder / f"{image}.png")

    def get_image_info(self, image: str) -> dict[str, Any]:
        return {"caption": self.captions[image]} if image in self.captions else {}


@pytest.fixture
def trainer(tmp_path: Path, pictures: Path, tiny_pair: Path) -> FinetuneTrainer:
    (tmp_path / "pairs").mkdir()
    return FinetuneTrainer(
        TargetSet.load(),
        ClipStore(tmp_path / "finetuned"),
        str(tiny_pair),
        lock=tmp_path / "networks",
        pairs=tmp_path / "pairs",
        studies=pictures,
        device="cpu",
    )


def test_options_that_a_request_does_not_name_are_the_servers(trainer: FinetuneTrainer) -> None:
    defaults = AppConf.from_strings({"finetune_epochs": "3", "finetune_loss": "hn-nce", "finetune_beta1": "0.5"})
    trainer._defaults = dict(defaults.finetuning)
    form = trainer.config()
    assert (form["epochs"], form["loss"][0], form["beta1"]) == (3, "hn-nce", 0.5)
    # a form that nobody touched
    for request in ({}, form, {"epochs": "", "loss": [], "beta1": "auto"}):
        options = trainer.check(request).options
        assert (options.epochs, options.loss, options.beta1) == (3, "hn-nce", 0.5)
    assert trainer.check({"epochs": 7}).options.epochs == 7
    # its constants belong to the loss
    other = trainer.check({"loss": "infonce"}).options
    assert (other.epochs, other.loss, other.beta1) == (3, "infonce", None)


def test_pairs_come_from_captions_text_files_reports_and_descriptions(tmp_path, write_radiograph):
    studies = tmp_path / "studies"
    studies.mkdir()
    pixels = np.tile(np.arange(32, dtype=np.uint8) * 8, (32, 1))
    for name in ("told", "file", "described", "silent"):
        write_radiograph(pixels, studies / f"{name}.dcm")
        data = pydicom.dcmread(studies / f"{name}.dcm")
        data.PatientID = name
        if name != "silent":
            data.StudyDescription = "Chest PA"
        data.save_as(studies / f"{name}.dcm")
    store = FolderStudies(studies, settle=0)
    store.update_image_info("told", {"caption": "  clear\n lungs "})
    (studies / "file.txt").write_text("An opacity.")
    found = datastore_pairs(store, studies)
    texts = {pair.name: (pair.caption, pair.modality, pair.group) for pair in found.pairs}
    assert texts == {
        "told": ("clear lungs", "DX", "patient:told"),
        "file": ("An opacity.", "DX", "patient:file"),
        "described": ("Chest PA", "DX", "patient:described"),
    }
    assert [row.name for row in found.bad] == ["silent"]


def test_an_image_whose_patient_cannot_be_read_is_learned_by_no_training(tmp_path, hide_patients):
    studies = tmp_path / "studies"
    studies.mkdir()
    for name in ("one", "two"):
        Image.fromarray(np.full((8, 8), 9, np.uint8)).save(studies / f"{name}.png")
    store = FolderStudies(studies, settle=0)
    for name in ("one", "two"):
        store.update_image_info(name, {"caption": "clear lungs"})
        store.save_label(name, str(studies / f"{name}.png"), "final", {"label_names": {"thing": 9}})
    hide_patients.add("two")
    pairs = datastore_pairs(store, None)
    assert ([pair.name for pair in pairs.pairs], [row.name for row in pairs.bad]) == (["one"], ["two"])
    assert [each.image_id for each in candidates(store)] == ["one"]
    with pytest.raises(ImageError):
        patient_of(store, "two")
    hide_patients.clear()
    assert len(datastore_pairs(store, None).pairs) == len(list(candidates(store))) == 2
    assert patient_of(store, "two") == "image:two"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"csv": "../pairs.csv"}, "csv"),
        ({"csv": "/etc/passwd"}, "csv"),
        ({"csv": "a..csv"}, "csv"),
        ({"csv": "nowhere.csv"}, "no table"),
        ({"action": "delete"}, "action"),
        ({"epochs": 0}, "epochs"),
        ({"loss": "triplet"}, "loss"),
    ],
)
def test_requests_out_of_range_are_refused(trainer, given, message):
    with pytest.raises((OptionError, InputError), match=message):
        trainer.check(given)


def test_untouched_forms_mean_the_defaults(trainer):
    checked = trainer.check({**trainer.config(), "model": "finetune_clip"})
    assert checked.options == type(checked.options)()
    assert (checked.action, checked.csv) == ("fine-tune", "")


def test_too_few_captions_are_told(trainer, pictures):
    with pytest.raises(InputError, match="5 images have a caption"):
        trainer({"batch_size": 16}, Store(pictures, dict(list(captions().items())[:5])))
    assert holder_of(trainer._lock) is None


def test_one_training_at_a_time(trainer, pictures, tmp_path):
    with TrainingLock(tmp_path / "networks", "network"), pytest.raises(TrainingRunsError, match="one training"):
        trainer({}, Store(pictures, {}))


FAST = {"epochs": 12, "batch_size": 16, "learning_rate": 3e-3, "loss": "infonce", "gallery": 24}


def segment(shared: SharedPipeline, image: MedicalImage) -> dict[str, Any]:
    options = ZeroShotOptions.from_mapping({"steps": 1, "presence": False})
    return shared.segment(image, "lungs", options).weights["clip"]


def test_better_weights_are_used_at_once_and_taken_back(trainer, pictures, tiny_pair, tmp_path):
    store = Store(pictures, captions())
    clips = ClipStore(tmp_path / "finetuned")
    shared = SharedPipeline(AppConf(device="cpu", weights=str(tiny_pair)), TargetSet.load(), clips)
    image = MedicalImage.from_array(np.asarray(Image.open(pictures / "0-00.png").convert("L")))
    own = segment(shared, image)
    embedded = shared._pipeline.sam.encoder_runs
    worse = trainer({**FAST, "learning_rate": 1e-12, "epochs": 1}, store)
    assert not worse["used"]
    assert segment(shared, image) == own
    done = trainer(FAST, store)
    assert done["used"], done
    assert "new weights are used" in done["reason"]
    tuned = segment(shared, image)
    assert tuned["name"] == "0001"
    assert tuned["sha256"] != own["sha256"]
    assert shared._pipeline.sam.encoder_runs == embedded  # SAM's work is kept, the old CLIP's is not
    assert [line["event"] for line in trainer.stats()["history"]] == ["refused", "published"]
    assert not (tmp_path / "finetuned" / ".work").exists()
    assert trainer({"action": "roll back"}, store)["in_use"] is None
    assert segment(shared, image) == own


def test_a_table_of_the_workspace_names_images_of_the_studies(trainer, pictures, tmp_path):
    rows = [f"{image}.png,{text}" for image, text in captions().items()]
    (tmp_path / "pairs" / "mine.csv").write_text("\n".join(["image,caption", *rows, "/etc/hostname,outside"]))
    done = trainer({**FAST, "csv": "mine.csv", "epochs": 1}, Store(pictures, {}))
    assert trainer.stats()["history"][-1]["pairs"]["bad"] == 1
    assert "held-out pairs" in done["reason"]
