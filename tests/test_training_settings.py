"""Settings: what wins over what, and what is refused with which words."""

from pathlib import Path
from typing import Any

import pytest

from unspool import UsageError
from unspool.training.settings import METHODS, differences, presets_of, resolve


def dul(preset: str | None = None, config: Path | None = None, *single: str, **given: Any) -> Any:
    return resolve("dul", preset, config, single, {k.replace("__", "."): v for k, v in given.items()})


def test_the_small_preset_is_the_default() -> None:
    settings = dul()
    assert (settings.preset, settings.config.width) == ("dul-small", 32)
    assert settings.augmentation.size == (128, 128)


@pytest.mark.parametrize("preset", [name for method in METHODS for name in presets_of(method)])
def test_every_preset_resolves(preset: str) -> None:
    settings = resolve(preset.split("-", maxsplit=1)[0], preset, None, [], {})
    assert (settings.training.steps is None) == (settings.method != "ba")  # whose tables count steps


def test_command_line_wins_over_config_over_preset(tmp_path: Path) -> None:
    config = tmp_path / "my.toml"
    config.write_text("preset = 'dul-oxuva'\n[dul]\nwidth = 8\ncross_view = 0.3\n[training]\nseed = 5\n")
    settings = dul(None, config, "dul.cross_view=0.4", training__seed=7)
    assert settings.preset == "dul-oxuva"
    assert settings.sampling.gap == 10
    assert (settings.config.width, settings.config.cross_view, settings.training.seed) == (8, 0.4, 7)
    assert dul("dul-ytvos", config).preset == "dul-ytvos"


def test_lists_become_pairs_and_whole_numbers_pass_for_real_ones() -> None:
    settings = dul(None, None, "augmentation.size=[64, 96]", "dul.cross_view=1", "dul.optimiser=sgd")
    assert settings.augmentation.size == (64, 96)
    assert settings.config.cross_view == 1
    assert settings.config.optimiser == "sgd"


@pytest.mark.parametrize(
    ("single", "message"),
    [
        ("dul.widht=3", r"--set dul.widht=3: 'dul.widht' is no setting; did you mean 'width'\?"),
        (
            "timet.width=3",
            r"'timet' is no table of settings; there are dul, sampling, augmentation",
        ),
        ("width=3", r"expected TABLE.KEY=VALUE"),
        ("dul.width=3.5", r"dul.width = 3.5: expected int"),
        ("dul.width=true", r"dul.width = True: expected int"),
        ("dul.cross_view=much", r"dul.cross_view = 'much': expected float"),
        ("dul.optimiser=lion", r"dul.optimiser = 'lion': expected 'adam' or 'sgd'"),
        ("augmentation.size=[64]", r"augmentation.size = \(64,\): expected \[int, int\]"),
        ("training.steps=0", r"training.steps = 0: give 1 or more"),
        ("training.rendered_share=2", r"training.rendered_share = 2: give 0 to 1"),
        ("dul.temperature=0", r"dul.temperature = 0 is out of range"),
    ],
)
def test_a_wrong_setting_is_refused_with_what_would_be_right(single: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        dul(None, None, single)


def test_an_unknown_preset_lists_those_that_exist() -> None:
    with pytest.raises(UsageError, match=r"preset 'dino' does not train dul; there are dul-kinetics"):
        dul("dino")


def test_a_config_of_another_version_names_the_key_that_is_not_known(tmp_path: Path) -> None:
    config = tmp_path / "old.toml"
    config.write_text("[dul]\nwarm_up = 10\n")
    with pytest.raises(UsageError, match=r"old.toml: 'dul.warm_up' is no setting.*there are zoom, width"):
        dul(None, config)


@pytest.mark.parametrize(("text", "message"), [("[dul", "not TOML"), (None, "cannot be read")])
def test_a_config_that_cannot_be_read_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    config = tmp_path / "my.toml"
    if text is not None:
        config.write_text(text)
    with pytest.raises(UsageError, match=rf"my.toml: {message}"):
        dul(None, config)


def test_differences_name_both_sides() -> None:
    assert list(differences({"a": 1, "b": 2}, {"b": 3, "c": 4})) == [
        "a: 1 there, None now", "b: 2 there, 3 now", "c: None there, 4 now",
    ]  # fmt: skip


def test_tuples_of_any_length_are_understood() -> None:
    from unspool.training.settings import _fits, _words

    assert _fits((1, 2, 3), tuple[int, ...])
    assert _fits((), tuple[int, ...])
    assert not _fits((1, "2"), tuple[int, ...])
    assert _words(tuple[int, ...]) == "[int, ...]"
