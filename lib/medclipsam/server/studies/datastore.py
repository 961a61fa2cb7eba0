"""What every datastore can do, and the records of `datastore_v2.json`, as MONAI Label's clients know both."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from pydantic import BaseModel

if TYPE_CHECKING:
    from medclipsam.server.studies.labels import ReceivedLabel

FINAL, ORIGINAL = "final", "original"


class FileRecord(BaseModel):
    """What is known of the file of an image or a label.

    Parameters
    ----------
    ext : str
        Its suffix, with the dot.
    info : dict
        Whatever else, JSON-able.
    """

    ext: str = ""
    info: dict[str, Any] = {}


class ImageRecord(BaseModel):
    """What is known of an image and of its labels by tag."""

    image: FileRecord
    labels: dict[str, FileRecord] = {}


class StudiesRecord(BaseModel):
    """The content of `datastore_v2.json`: a name, and the images by id."""

    name: str
    description: str
    images_dir: str = ""
    labels_dir: str = "labels"
    objects: dict[str, ImageRecord] = {}

    def label(self, image_id: str, tag: str) -> FileRecord | None:
        """Return what is known of a label; None where there is none."""
        record = self.objects.get(image_id)
        return record.labels.get(tag) if record else None


class Datastore(ABC):
    """The images that are annotated, and their labels by tag: `final` is a person's, `original` a proposal.

    A label's id is its image's. An unknown id gives an empty answer where a method does not say otherwise.
    """

    # whether the images come from a DICOMweb server
    is_remote: bool = False

    @abstractmethod
    def name(self) -> str:
        """Return the datastore's name."""

    @abstractmethod
    def refresh(self) -> None:
        """Look again at what there is."""

    @abstractmethod
    def list_images(self) -> list[str]:
        """Return the ids of all images that can be asked for."""

    @abstractmethod
    def image_at(self, path: Path) -> str | None:
        """Return the id of the image that `get_image_uri` returned a path for."""

    @abstractmethod
    def unreadable_files(self) -> dict[str, str]:
        """Return the files and folders that cannot be read, and why."""

    @abstractmethod
    def unfetched_images(self) -> dict[str, str]:
        """Return the images that could not be fetched when they were last asked for, and why."""

    @abstractmethod
    def get_image(self, image_id: str, params: Any = None) -> BinaryIO | None:
        """Return an image as one file."""

    @abstractmethod
    def get_image_uri(self, image_id: str) -> str:
        """Return the path of an image: a file, or a folder of slices."""

    @abstractmethod
    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """Return what is known of an image."""

    @abstractmethod
    def get_label(self, label_id: str, label_tag: str, params: Any = None) -> BinaryIO | None:
        """Return a label's file."""

    @abstractmethod
    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """Return the path of a label's file."""

    @abstractmethod
    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """Return what is known of a label."""

    @abstractmethod
    def kept_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """Return what is known of a label without asking another server; empty where nothing is."""

    @abstractmethod
    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        """Return the image's id for each tag that it has a label of."""

    @abstractmethod
    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Return the ids of the images that have a label of a tag, by default `final`."""

    @abstractmethod
    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Return the ids of the images that have no label of a tag, by default `final`."""

    @abstractmethod
    def final_labels(self, image_id: str) -> list[tuple[Path, dict[str, Any]]]:
        """Return file and info of each final label that is kept of an image, the earliest first."""

    @abstractmethod
    def waits_for_consensus(self, image_id: str) -> bool:
        """Return whether several people have labelled an image, and no consensus was made since."""

    @abstractmethod
    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Return image and label of each finished image, as paths."""

    @abstractmethod
    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """Return the path of a ZIP archive of finished images and their labels, which the caller removes."""

    @abstractmethod
    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Add an image and return its id."""

    @abstractmethod
    def remove_image(self, image_id: str) -> None:
        """Remove an image and its labels."""

    @abstractmethod
    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Read a label's file, save it, and return its id."""

    @abstractmethod
    def keep_label(self, image_id: str, tag: str, received: ReceivedLabel) -> str:
        """Save a label that was read, and return its id."""

    @abstractmethod
    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a label."""

    @abstractmethod
    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Add to what is known of an image."""

    @abstractmethod
    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Add to what is known of a label."""

    @abstractmethod
    def status(self) -> dict[str, Any]:
        """Return how many images there are, how many are finished, and how many labels each tag has."""

    @abstractmethod
    def json(self) -> dict[str, Any]:
        """Return images and labels with what is known of them."""
