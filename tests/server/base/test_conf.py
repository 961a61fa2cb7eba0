import pytest

from medclipsam.base.errors import OptionError
from medclipsam.base.options import ZeroShotOptions
from medclipsam.server.base.conf import AppConf, split_names
from medclipsam.server.base.settings import UnknownSettingError


def test_no_settings_are_the_defaults() -> None:
    assert AppConf.from_strings({}) == AppConf(weights="demo")


def test_strings_become_types() -> None:
    conf = AppConf.from_strings(
        {
            "targets": "breast tumour, lungs x-ray;heart ,",
            "weights": " biomedclip+medsam",
            "device": "cuda:1",
            "targets_file": "/a.yaml,/b.yaml",
            "presence_threshold": "0.4",
            "preset": "paper",
            "presence": "off",
            "server_mode": "true",
            "label_access": "owner",
        }
    )
    assert conf.targets == ("breast tumour", "lungs x-ray", "heart")
    assert (conf.weights, conf.device) == ("biomedclip+medsam", "cuda:1")
    assert conf.label_access == "owner"
    assert AppConf().label_access == "folder"
    assert conf.targets_files == ("/a.yaml", "/b.yaml")
    assert conf.defaults == ZeroShotOptions(presence_threshold=0.4, preset="paper", presence=False)


@pytest.mark.parametrize("device", ["auto", " auto "])
def test_device_auto_leaves_the_choice(device: str) -> None:
    assert AppConf.from_strings({"device": device}).device is None


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("device", "gpu", "cuda"),
        ("weights", " ", "default"),
        ("presence_threshold", "2", "from 0 to 1"),
        ("preset", "best", "published"),
        ("label_access", "0600", "folder"),
        ("seed", "0.5", "whole number"),
    ],
)
def test_a_bad_setting_names_key_value_and_what_is_allowed(key: str, value: str, allowed: str) -> None:
    with pytest.raises(OptionError, match=key) as error:
        AppConf.from_strings({key: value})
    assert error.value.key == key
    assert repr(value.strip()) in str(error.value) or repr(value) in str(error.value) or value in str(error.value)
    assert allowed in str(error.value)


@pytest.mark.parametrize("key", ["target", "models", "text", "port"])
def test_an_unknown_setting_is_named(key: str) -> None:
    with pytest.raises(UnknownSettingError) as error:
        AppConf.from_strings({key: "x"})
    assert error.value.key == key
    assert repr(key) in str(error.value)


def test_split_names_drops_empty_parts() -> None:
    assert split_names(" a ,, b;c; ") == ("a", "b", "c")
    assert split_names("") == ()
