"""What a training run is told: the method's config, how clips are drawn and changed, how long, how exactly.

Command line over config file over preset over defaults, and nothing else; a table for each dataclass.
"""

from __future__ import annotations

import difflib
import tomllib
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import cache
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from unspool.data.augment import Augmentation
from unspool.data.sampling import Sampling
from unspool.errors import UsageError

Json = dict[str, Any]
METHODS = ("dul", "timet", "ba")
DEFAULT_PRESET = {"dul": "dul-small", "timet": "timet-small", "ba": "ba-small"}


@dataclass(frozen=True)
class Training:
    """How a method is trained, whichever it is; all of it decides the weights."""

    steps: int | None = None  # of the optimiser; None: as many as the method's epochs have
    accumulate: int = 1  # batches of a step, one after the other, each a loss of its own
    clip_gradients: float = 0.0  # largest norm of all gradients together; 0: any
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of the network; losses are computed in float32
    channels_last: bool | None = None  # memory format of the network; None: on GPUs, where it is faster
    compile: bool = False  # the network, by torch.compile
    seed: int = 0  # of weights, clips and everything that is drawn
    rendered: int = 0  # scenes that stand beside the videos
    rendered_share: float | None = None  # of clips, 0..1; None: every video and every scene equally often
    rendered_frames: int = 40  # of each scene

    def __post_init__(self) -> None:
        share = self.rendered_share
        for name, valid, rule in (
            ("steps", self.steps is None or self.steps >= 1, "1 or more"),
            ("accumulate", self.accumulate >= 1, "1 or more"),
            ("clip_gradients", self.clip_gradients >= 0, "0 or more"),
            ("seed", self.seed >= 0, "0 or more"),
            ("rendered", self.rendered >= 0, "0 or more"),
            ("rendered_share", share is None or 0 <= share <= 1, "0 to 1"),
            ("rendered_frames", self.rendered_frames >= 1, "1 or more"),
        ):
            if not valid:
                raise UsageError(f"training.{name} = {getattr(self, name)!r}: give {rule}")


@dataclass(frozen=True)
class Settings:
    """All of it, resolved."""

    method: str
    preset: str
    config: Any  # the method's
    sampling: Sampling
    augmentation: Augmentation
    training: Training

    def flat(self) -> Json:
        """`table.key` -> value, as a run records and compares them."""
        tables = {self.method: self.config, "sampling": self.sampling, "augmentation": self.augmentation}
        tables["training"] = self.training
        named = {f"{t}.{k}": v for t, values in tables.items() for k, v in asdict(values).items()}
        return {"method": self.method, "preset": self.preset, **named}


def method_named(name: str) -> Any:
    """The method's module (a convention, not a class: see `unspool.methods`)."""
    if name not in METHODS:
        raise UsageError(f"method '{name}' is unknown; there are {', '.join(METHODS)}")
    return import_module(f"unspool.methods.{name}")


def presets_of(method: str) -> list[str]:
    """Names of the presets that train this method."""
    names = [Path(p.name) for p in (files("unspool") / "presets").iterdir()]
    return sorted(p.stem for p in names if p.suffix == ".toml" and p.stem.startswith(f"{method}-"))


def resolve(
    method: str, preset: str | None, config: Path | None, single: Sequence[str], given: Mapping[str, Any]
) -> Settings:
    """Settings from a preset's name, a TOML file, `KEY=VALUE` texts, and `table.key` values (the last wins).

    A config file may name the preset itself (`preset = "dul-ytvos"`). Raises UsageError naming where an
    unknown key or a value of the wrong kind stands.
    """
    own = _read(config) if config else {}
    preset = preset or own.pop("preset", None) or DEFAULT_PRESET[method]
    own.pop("preset", None)
    kinds = _kinds(method)
    merged: dict[str, Json] = {name: {} for name in kinds}
    _merge(merged, _preset(method, preset), f"preset {preset}", kinds)
    _merge(merged, own, str(config), kinds)
    for text in single:
        _merge(merged, _parse(text), f"--set {text}", kinds)
    for key, value in given.items():
        table, _, name = key.partition(".")
        merged[table][name] = value
    built = {name: kind(**merged[name]) for name, kind in kinds.items()}
    return Settings(
        method, preset, built[method], built["sampling"], built["augmentation"], built["training"]
    )


def _kinds(method: str) -> dict[str, Any]:
    return {
        method: method_named(method).Config,
        "sampling": Sampling,
        "augmentation": Augmentation,
        "training": Training,
    }


def _preset(method: str, name: str) -> Json:
    if name not in presets_of(method):
        raise UsageError(
            f"preset '{name}' does not train {method}; there are {', '.join(presets_of(method))}"
        )
    table = tomllib.loads((files("unspool") / "presets" / f"{name}.toml").read_text("utf-8"))
    return {k: v for k, v in table.items() if k not in ("title", "source")}


def _read(path: Path) -> Json:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); --config takes a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not TOML: {error}") from error


def _parse(text: str) -> Json:
    key, equals, value = text.partition("=")
    for line in (f"{key} = {value}", f'{key} = "{value}"'):
        try:
            if equals and "." in key:
                return tomllib.loads(line)
        except tomllib.TOMLDecodeError:
            continue
    raise UsageError(f"--set {text}: expected TABLE.KEY=VALUE, e.g. --set training.clip_gradients=1.0")


def _merge(merged: dict[str, Json], tables: Json, origin: str, kinds: Mapping[str, Any]) -> None:
    for table, values in tables.items():
        if table not in kinds or not isinstance(values, dict):
            raise UsageError(f"{origin}: '{table}' is no table of settings; there are {', '.join(kinds)}")
        for key, value in values.items():
            merged[table][key] = _checked(kinds[table], table, key, value, origin)


def _checked(kind: Any, table: str, key: str, value: object, origin: str) -> object:
    known = [f.name for f in fields(kind)]
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise UsageError(f"{origin}: '{table}.{key}' is no setting{hint} (there are {', '.join(known)})")
    hint = _hints(kind)[key]
    value = _tupled(value)
    if not _fits(value, hint):
        raise UsageError(f"{origin}: {table}.{key} = {value!r}: expected {_words(hint)}")
    return value


@cache
def _hints(kind: Any) -> dict[str, Any]:
    assert is_dataclass(kind)
    return get_type_hints(kind)


def _tupled(value: object) -> object:
    return tuple(map(_tupled, value)) if isinstance(value, list) else value


def _fits(value: object, hint: Any) -> bool:
    parts = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if get_origin(hint) is Literal:
        return value in parts
    if get_origin(hint) is tuple:
        if not isinstance(value, tuple):
            return False
        hints = parts[:1] * len(value) if parts[-1] is ... else parts
        return len(value) == len(hints) and all(map(_fits, value, hints))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is hint


def _words(hint: Any) -> str:
    parts = get_args(hint)
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, parts))
    if get_origin(hint) is tuple:
        return f"[{', '.join('...' if part is ... else _words(part) for part in parts)}]"
    if parts:
        return " or ".join(_words(part) for part in parts if part is not type(None))
    return str(hint.__name__)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """`key: old there, new now`, for each that differs."""
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            yield f"{key}: {old.get(key)!r} there, {new.get(key)!r} now"
