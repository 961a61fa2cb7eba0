import dataclasses
from pathlib import Path
from typing import Any

import pytest

from medclipsam.base.errors import OptionError, UnknownOptionError
from medclipsam.base.options import ZeroShotOptions
from medclipsam.server.base.audit import Caller
from medclipsam.server.inference.infer_request import AnswerFormat, Envelope, StudyImage, Upload
from medclipsam.server.inference.request_schema import flag, option_table, without_address
from medclipsam.server.inference.tasks import SegmentRequest

DEFAULTS = ZeroShotOptions()
# What MONAI Label's batch task, 3D Slicer and OHIF add to the params.
CLIENT_KEYS = {
    "description": "…",
    "client_id": "user-xyz",
    "device": ["cpu"],
    "logging": "INFO",
    "restore_label_idx": False,
    "label_tag": "pre",
    "label_info": [{"name": "lung"}],
    "label": "lung",
    "multi_gpu": True,
    "gpus": "all",
    "max_workers": 1,
    "max_batch_size": 0,
    "timeout": 60,
    "images": "all",
    "output": "image",
}
ENVELOPE = Envelope("text_prompt", StudyImage("chest"), Caller("ann", "slicer"))


def read(given: dict[str, Any], *, takes_text: bool = True, defaults: ZeroShotOptions = DEFAULTS) -> SegmentRequest:
    return SegmentRequest.from_params(given, ENVELOPE, defaults, takes_text=takes_text)


def test_a_text_alone_takes_all_defaults() -> None:
    assert read({"text": " left lung ; heart "}) == SegmentRequest(
        model="text_prompt",
        image=StudyImage("chest"),
        caller=Caller("ann", "slicer"),
        mask=None,
        answer=AnswerFormat(".nii.gz", "uint8", True),
        modality=None,
        save_as=None,
        text="left lung ; heart",
        options=DEFAULTS,
    )


def test_a_request_is_frozen_and_can_be_made_for_another_image() -> None:
    request = read({"text": "heart"})
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.text = "lungs"  # type: ignore[misc]
    other = request.on(Upload(Path("sent.png")))
    assert (other.image, request.image) == (Upload(Path("sent.png")), StudyImage("chest"))
    assert other.on(StudyImage("chest")) == request


@pytest.mark.parametrize(
    ("params", "tag"),
    [
        ({}, None),
        ({"save_label": "false", "label_tag": "pre"}, None),
        ({"save_label": True}, "original"),
        ({"save_label": "yes", "label_tag": "pre"}, "pre"),
    ],
)
def test_a_mask_is_saved_under_the_tag_that_is_asked_for(params: dict[str, Any], tag: str | None) -> None:
    assert read({"text": "heart", **params}).save_as == tag


@pytest.mark.parametrize("tag", ["final", "../x", 3])
def test_a_tag_that_a_model_must_not_save_under_is_refused(tag: Any) -> None:
    with pytest.raises(OptionError) as error:
        read({"text": "heart", "save_label": True, "label_tag": tag})
    assert error.value.key == "label_tag"


@pytest.mark.parametrize("key", ["model", "image", "session", "user", "image_path", "_id", "file", "mask"])
def test_what_comes_with_the_address_is_no_param(key: str) -> None:
    with pytest.raises(UnknownOptionError) as error:
        read({"text": "heart", key: "x"})
    assert error.value.key == key


def test_what_repeats_the_address_is_left_out_and_what_contradicts_it_is_refused() -> None:
    params = {"text": "heart", "model": "text_prompt"}
    assert without_address(params, model="text_prompt", image="chest") == {"text": "heart"}
    with pytest.raises(OptionError) as error:
        without_address({**params, "image": "/etc/passwd"}, model="text_prompt", image="chest")
    assert error.value.key == "image"


def test_keys_of_monai_label_and_its_clients_are_no_options() -> None:
    assert read({**CLIENT_KEYS, "text": "heart"}) == read({"text": "heart"})


def test_what_forms_send_as_strings_is_typed() -> None:
    request = read({"text": "heart", "beta": "0.5", "layer": "7", "presence": "false", "planes": "2-4", "seed": 3.0})
    assert request.options == ZeroShotOptions(beta=0.5, layer=7, presence=False, planes="2-4", seed=3)


def test_the_table_sent_back_untouched_means_the_defaults() -> None:
    defaults = ZeroShotOptions(postprocess="threshold", beta=2.0, presence=False)
    assert read({"text": "heart", **option_table(defaults)}, defaults=defaults).options == defaults


def test_configured_defaults_stand_where_the_request_is_silent_or_empty() -> None:
    defaults = ZeroShotOptions(beta=2.0, visual_prompt="both")
    assert read({"text": "heart", "beta": ""}, defaults=defaults).options == defaults
    assert read({"text": "heart", "beta": "auto"}, defaults=defaults).options.beta is None


def test_table_is_flat_and_lists_every_option() -> None:
    table = option_table(ZeroShotOptions(saliency="patch_text"))
    assert set(table) == set(ZeroShotOptions.options())
    for key, option in ZeroShotOptions.options().items():
        assert not option.choices or sorted(table[key]) == sorted(option.choices)
    assert table["saliency"][0] == "patch_text"
    assert table["beta"] == "auto"
    assert table["presence"] is True
    assert table["planes"] == "all"
    assert not any(isinstance(value, dict) for value in table.values())


@pytest.mark.parametrize("text", ["", "  ", None, 3, ["", "lung"], {"a": 1}])
def test_a_missing_text_is_an_error_that_shows_what_to_write(text: Any) -> None:
    with pytest.raises(OptionError, match="left lung") as error:
        read({"text": text})
    assert error.value.key == "text"


def test_a_task_with_its_own_text_takes_none() -> None:
    for nothing in ({}, {"text": ""}, {"text": None}):
        assert read(nothing, takes_text=False).text is None
    with pytest.raises(OptionError, match="'text'"):
        read({"text": "heart"}, takes_text=False)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("colour", "red"),
        ("Beta", 1),
        ("result_extention", ".nrrd"),
        ("beta", "much"),
        ("beta", -1),
        ("layer", 7.5),
        ("presence_threshold", 1.5),
        ("saliency", "gradcam"),
        ("planes", "9-"),
        ("presence", "perhaps"),
        ("steps", float("nan")),
        ("postprocess", {"a": 1}),
        ("result_extension", ".dcm"),
        ("result_extension", "/../../x.nii.gz"),
        ("result_dtype", "object"),
        ("result_compress", "a little"),
    ],
)
def test_a_bad_key_or_value_is_named(key: str, value: Any) -> None:
    with pytest.raises(OptionError) as error:
        read({"text": "heart", key: value})
    assert error.value.key == key
    assert repr(key) in str(error.value)
    assert repr(value) in str(error.value)


def test_ohif_and_slicer_formats() -> None:
    request = read({"text": "heart", "result_extension": ".nrrd", "result_dtype": "uint16", "result_compress": "False"})
    assert request.answer == AnswerFormat(".nrrd", "uint16", False)


@pytest.mark.parametrize(
    ("value", "meant"), [(True, True), ("true", True), ("0", False), ("no", False), ([False], False)]
)
def test_flag_reads_words(value: Any, meant: bool) -> None:
    assert flag({"save_label": value}, "save_label", default=not meant) is meant


@pytest.mark.parametrize("value", [None, ""])
def test_flag_that_is_not_given_is_the_default(value: Any) -> None:
    assert flag({"save_label": value}, "save_label", default=True) is True
    assert flag({}, "save_label", default=False) is False


def test_a_modality_is_taken_for_files_that_do_not_say() -> None:
    assert read({"text": "lungs"}).modality is None
    assert read({"text": "lungs", "modality": ["auto", "US", "MR"]}).modality is None
    assert read({"text": "lungs", "modality": "DX"}).modality == "DX"
    assert read({"text": "lungs", "modality": "mr"}).modality == "MR"
    for wrong in ("xray", "X-RAY", "C", 3, {"a": 1}):
        with pytest.raises(OptionError, match="US, MR, CT, CR, DX, MG"):
            read({"text": "lungs", "modality": wrong})


def test_a_list_of_texts_asks_for_all_of_them() -> None:
    assert read({"text": ["left lung", "heart; liver"]}).text == "left lung; heart; liver"


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("txt", "text"),
        ("Text", "text"),
        ("num_component", "num_components"),
        ("Beta", "beta"),
        ("result_extention", "result_extension"),
    ],
)
def test_a_misspelt_key_is_named_with_the_one_that_is_meant(key: str, meant: str) -> None:
    with pytest.raises(UnknownOptionError) as error:
        read({key: "heart"})
    assert error.value.key == key
    assert error.value.suggestion == meant
    assert repr(meant) in str(error.value)


def test_a_key_that_is_like_none_is_named_with_those_there_are() -> None:
    with pytest.raises(UnknownOptionError) as error:
        read({"qqqqqq": 1})
    assert error.value.suggestion is None
    assert "presence_threshold" in str(error.value)
