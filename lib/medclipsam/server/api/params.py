"""The JSON schemas of the params that requests send, for the OpenAPI document.

Clients of MONAI Label send them as JSON text in a form, or as the JSON body of a request, and may send values as texts,
as their forms hold them; each task checks them itself.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field, GetJsonSchemaHandler, TypeAdapter

from medclipsam.base.formats import MASK_SUFFIXES
from medclipsam.base.options import ZeroShotOptions
from medclipsam.finetune.options import FinetuneOptions
from medclipsam.imaging.write import MASK_DTYPES
from medclipsam.server.inference.networks import NetworkOptions
from medclipsam.server.inference.request_schema import MODALITIES
from medclipsam.server.learning.finetuner import ACTIONS
from medclipsam.training.options import TrainingOptions
from medclipsam.training.settings import RunOptions

Voxel = list[float]


class ParamsOf:
    """Describes params by option sets, as an annotation of the parameter of a route.

    Parameters
    ----------
    sets : type
        Model, or union of models.
    text : bool
        Whether they are sent as JSON text, and not as a JSON object.
    """

    def __init__(self, sets: Any, *, text: bool = False) -> None:
        self._sets = sets
        self._text = text

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Return the schema of the sets, whatever the type of the parameter."""
        inner = handler(TypeAdapter(self._sets).core_schema)
        return (
            {"type": "string", "contentMediaType": "application/json", "contentSchema": inner} if self._text else inner
        )


class AnswerParams(BaseModel):
    """What each infer request may say of the image and the answer."""

    modality: str | None = Field(
        None,
        description="DICOM modality of an image whose file does not say",
        json_schema_extra={"examples": list(MODALITIES)},
    )
    result_extension: str = Field(
        MASK_SUFFIXES[0], description="File format of the mask", json_schema_extra={"enum": list(MASK_SUFFIXES)}
    )
    result_dtype: str = Field(
        "uint8", description="Number type of the mask's voxels", json_schema_extra={"enum": list(MASK_DTYPES)}
    )
    result_compress: bool = Field(True, description="Whether an NRRD file is compressed")
    save_label: bool = Field(False, description="Whether the mask is saved as a label of the study")
    label_tag: str = Field("original", description="Tag of the saved label")


class TextParams(AnswerParams, ZeroShotOptions):
    """Params of `text_prompt`, and without a text of the models of single targets."""

    text: str | list[str] | None = Field(None, description="What to segment; several targets separated by semicolons")


class ClickParams(AnswerParams):
    """Params of `refine`: voxels in each label under its name, or those below."""

    label: str | None = Field(None, description="Name of the label that foreground, background and box are for")
    foreground: list[Voxel] = Field([], description="Voxels in the label")
    background: list[Voxel] = Field([], description="Voxels outside of the label")
    box: Voxel | None = Field(None, description="Two opposite corners of a box: [i0, j0, k0, i1, j1, k1]")
    use_last_mask: bool = Field(True, description="Whether the mask answered last is the one to refine")
    propagate: bool = Field(False, description="Whether corrections are carried on to the other planes of a volume")
    drawn: str | list[int] | None = Field(
        None, description="Planes of the mask that a person has drawn, counted from 0, such as 3-9; they are carried on"
    )


class NetworkParams(AnswerParams, NetworkOptions):
    """Params of a trained network."""


class TrainingParams(RunOptions, TrainingOptions):
    """Params of the trainer `network`."""


class FinetuningParams(FinetuneOptions):
    """Params of the trainer `finetune_clip`."""

    action: str = Field(ACTIONS[0], description="What is done", json_schema_extra={"enum": list(ACTIONS)})
    csv: str = Field("", description="Name of a table of pairs in the workspace (empty: captions of the studies)")
    device: str = Field("auto", description="Device to train on")


InferParams = TextParams | ClickParams | NetworkParams
TrainParams = TrainingParams | FinetuningParams
