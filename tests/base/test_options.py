import pytest

from medclipsam.base.errors import OptionError
from medclipsam.base.options import ZeroShotOptions, parse_planes

CHOICES = {name: each.choices for name, each in ZeroShotOptions.options().items() if each.choices}
RANGES = {name: (each.low, each.high) for name, each in ZeroShotOptions.options().items() if each.low is not None}


def test_strings_of_a_form_become_typed_values() -> None:
    options = ZeroShotOptions.from_mapping(
        {"beta": "0.3", "layer": "7", "presence": "false", "box_per_component": "yes", "planes": 4, "voting": "mrm"}
    )
    assert (options.beta, options.layer, options.presence, options.box_per_component) == (0.3, 7, False, True)
    assert (options.planes, options.voting) == ("4", "mrm")


def test_an_untouched_drop_down_means_its_first_entry() -> None:
    options = ZeroShotOptions.from_mapping({"saliency": ["patch_text", "m2ib"], "beta": "auto", "layer": ""})
    assert options == ZeroShotOptions(saliency="patch_text")


def test_options_come_back_from_their_dictionary() -> None:
    options = ZeroShotOptions(beta=0.5, planes="1-3", presence_threshold=0.25)
    assert ZeroShotOptions.from_mapping(options.to_dict()) == options


@pytest.mark.parametrize("key", sorted(CHOICES))
def test_an_unknown_choice_names_key_value_and_what_is_allowed(key: str) -> None:
    with pytest.raises(OptionError) as caught:
        ZeroShotOptions.from_mapping({key: "nonsense"})
    for part in (key, "nonsense", *CHOICES[key]):
        assert part in str(caught.value)


@pytest.mark.parametrize("key", sorted(RANGES))
def test_a_number_outside_its_range_is_refused(key: str) -> None:
    low, high = RANGES[key]
    for value in (high * 2 + 1, -low - 1, "many", float("nan"), float("inf"), True, [True]):
        with pytest.raises(OptionError, match=key):
            ZeroShotOptions.from_mapping({key: value})


@pytest.mark.parametrize(
    "values",
    [{"betta": 1}, {"layer": 2.5}, {"presence": "perhaps"}, {"planes": "3-"}, {"planes": "-1"}]
    + [{"planes": digits} for digits in ("9" * 5000, "0-" + "9" * 5000, "\u0663")]
    + [{key: digits} for key in RANGES for digits in ("9" * 5000, "-" + "9" * 5000, "1e999", 10**5000, "nan")],
)
def test_bad_input_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=next(iter(values))):
        ZeroShotOptions.from_mapping(values)


def test_plane_ranges() -> None:
    assert parse_planes("all", 3) == [0, 1, 2]
    assert parse_planes("7", 8) == [7]
    assert parse_planes("5-6, 0-1,6", 8) == [0, 1, 5, 6]
    for spaced in (" all ", "ALL\n", "\tall"):
        assert parse_planes(ZeroShotOptions.from_mapping({"planes": spaced}).planes, 3) == [0, 1, 2]
        assert parse_planes(ZeroShotOptions(planes=spaced).planes, 3) == [0, 1, 2]


@pytest.mark.parametrize("text", ["8", "3-1", "0-8"])
def test_a_range_that_leaves_the_image_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="0 to 7"):
        parse_planes(text, 8)
