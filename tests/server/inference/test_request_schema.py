from typing import Any

import pytest

from medclipsam.base.errors import OptionError, UnknownOptionError
from medclipsam.base.options import CHOICES, ZeroShotOptions
from medclipsam.server.inference.request_schema import SegmentRequest, flag, option_table

DEFAULTS = ZeroShotOptions()
# What MONAI Label's routes, its batch task, 3D Slicer and OHIF add to a request.
CLIENT_KEYS = {
    "model": "text_prompt",
    "image": "/studies/chest.dcm",
    "description": "…",
    "client_id": "user-xyz",
    "device": ["cpu"],
    "logging": "INFO",
    "restore_label_idx": False,
    "save_label": True,
    "label_tag": "original",
    "label_info": [{"name": "lung"}],
    "multi_gpu": True,
    "gpus": "all",
    "max_workers": 1,
    "max_batch_size": 0,
    "timeout": 60,
    "images": "all",
    "session": {"image": "x"},
    "_id": 3,
    "_image_id": "chest",
    "output": "image",
}


def read(given: dict[str, Any], *, takes_text: bool = True, defaults: ZeroShotOptions = DEFAULTS) -> SegmentRequest:
    return SegmentRequest.from_mapping(given, defaults, takes_text=takes_text)


def test_a_text_alone_takes_all_defaults() -> None:
    assert read({"text": " left lung ; heart "}) == SegmentRequest(
        "left lung ; heart", DEFAULTS, ".nii.gz", "uint8", True
    )


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
    assert set(table) == set(ZeroShotOptions.__dataclass_fields__)
    for key, choices in CHOICES.items():
        assert sorted(table[key]) == sorted(choices)
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
    assert (request.extension, request.dtype, request.compress) == (".nrrd", "uint16", False)


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
