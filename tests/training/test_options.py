import pytest

from medclipsam.base.errors import OptionError
from medclipsam.training.options import PRESETS, TrainingOptions


def test_strings_of_forms_become_typed_values():
    options = TrainingOptions.from_mapping(
        {
            "epochs": "30",
            "learning_rate": "1e-3",
            "augment": "false",
            "memory": "4 GB",
            "loss": ["dice_gce", "dice_ce"],  # a drop-down that nobody touched
            "spacing": "auto",
            "keep": "",
            "seed": None,
        }
    )
    assert (options.epochs, options.learning_rate, options.augment) == (30, 0.001, False)
    assert (options.memory, options.loss, options.spacing, options.keep, options.seed) == (
        4 * 10**9,
        "dice_gce",
        None,
        None,
        0,
    )


@pytest.mark.parametrize(
    ("given", "bytes_"), [("500 MB", 5 * 10**8), ("1GiB", 2**30), ("2.5 gb", 2_500_000_000), (10**9, 10**9)]
)
def test_memory_takes_units(given, bytes_):
    assert TrainingOptions.from_mapping({"memory": given}).memory == bytes_


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("epoch", 3, "epochs"),
        ("epochs", 0, "1 to 100000"),
        ("epochs", 2.5, "a whole number"),
        ("epochs", "many", "a whole number"),
        ("epochs", True, "a whole number"),
        ("learning_rate", "nan", "a number from"),
        ("gamma", 1.5, "0 to 1"),
        ("loss", "dice", "dice_ce, dice_gce"),
        ("augment", "perhaps", "true or false"),
        ("memory", "4 parsecs", "a whole number"),
        ("memory", 10, "50000000|5e"),
        ("device", 3, "a text"),
        ("window", "wide", "centre/width"),
        ("window", "40/0", "centre/width"),
        ("mirror", "left", "auto, none, horizontal, both"),
    ],
)
def test_what_is_not_allowed_is_named(key, value, allowed):
    with pytest.raises(OptionError, match=allowed) as caught:
        TrainingOptions.from_mapping({key: value})
    assert caught.value.key == key


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_fills_what_is_open_and_nothing_else(preset):
    options = TrainingOptions(preset=preset, device="cpu", momentum=0.5).resolved()
    assert options.momentum == 0.5
    for key, value in PRESETS[preset].items():
        assert getattr(options, key) == (0.5 if key == "momentum" else value)


def test_a_cpu_is_given_the_small_preset():
    assert TrainingOptions(device="cpu").resolved().preset == "small"


def test_the_checkpoints_of_short_cycles_are_as_many_as_there_are_epochs():
    assert TrainingOptions(device="cpu", epochs=3).resolved().keep == 1
    with pytest.raises(OptionError, match="up to 2"):
        TrainingOptions(device="cpu", epochs=6, keep=3).resolved()
    with pytest.raises(OptionError, match="3 cycles"):
        TrainingOptions(device="cpu", epochs=2).resolved()


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(OptionError, match="device"):
        TrainingOptions(device="cuda:99").resolved()


def test_options_come_back_from_their_dictionary():
    options = TrainingOptions(epochs=7, window="-600/1500", memory=10**9)
    assert TrainingOptions.from_mapping(options.to_dict()) == options
