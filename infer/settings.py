"""One value for every choice of a sampling request, and where each came from.

A value is taken from the first that has it: the flag, what somebody chose in the checkpoint's configuration, the model
folder's sampling.json (a model's native size, steps and guidance), the rest of that configuration, the release's
default. A key that nobody chose is the training's default: it says how the adapter was trained, and nothing about the
model that samples.
"""

import argparse
import difflib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from configs.checks import checked, no_interval, of_type
from configs.errors import UserError, shown
from configs.fields import CHOSEN, KEYS
from configs.plain import read_json
from configs.stored import value_of
from infer.choices import CONFIG_KEYS, GUIDE_CHECKS, LEAST, RELEASE, RELEASE_FREEU, check_of
from infer.guidance import SHARE, GuidanceSettings
from infer.sampler import check_solver
from models import backbones
from models.highway import HighwaySettings

RUN_REFERENCE = "the run's reference clip"
PREVIEW_PRIOR = 0.5  # of the release's training; its infer.py takes 0.2
UNCHOSEN = ("model", "training's default", "release's default", "previews' default")  # origins that nobody asked for


class Settings:
    """Choices by name (`settings.width` or `settings["width"]`) with the origin of each.

    The highway's three, `["highway"]` (its scope, or "off"), `["beta"]` and `["freeu"]`, are one in `highway()`.
    """

    def __init__(self):
        self.values: dict[str, Any] = {}
        self.origins: dict[str, str] = {}
        self.overridden: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def __getattr__(self, name: str) -> Any:
        if name in ("values", "origins", "overridden") or name not in self.values:
            raise AttributeError(name)
        return self.values[name]

    def choose(self, name: str, *candidates: tuple[str, Any]) -> None:
        """Keep the first (origin, value) whose value is not None, and what the checkpoint would have said."""
        present = [(origin, value) for origin, value in candidates if value is not None] or [("default", None)]
        self.origins[name], self.values[name] = present[0]
        trained = dict(present).get("checkpoint")
        if self.origins[name] == "flag" and trained is not None and trained != self.values[name]:
            self.overridden[name] = trained

    def replace(self, name: str, value: Any, origin: str) -> None:
        """Another value for a choice that is already made, and what made it so."""
        self.values[name], self.origins[name] = value, origin

    def highway(self) -> HighwaySettings | None:
        """The appearance highway to sample with; None for the model's own skip connections."""
        scope = self["highway"]
        return None if scope == "off" else HighwaySettings(scope, self["beta"], self["freeu"])

    def motion_guidance(self) -> GuidanceSettings | None:
        """How motion is guided; None without guidance."""
        if "guide" not in self.values:
            return None
        return GuidanceSettings(**{field.name: self[f"guide_{field.name}"] for field in fields(GuidanceSettings)})

    def lines(self) -> list[str]:
        """What will be used, a line for each origin, then a line for each trained value that a flag replaces."""
        found = []
        for origin in dict.fromkeys(self.origins.values()):
            named = [f"{name} {_shown(value)}" for name, value in self.values.items() if self.origins[name] == origin]
            found.append(f"from the {origin}: {', '.join(named)}")
        for name, trained in self.overridden.items():
            found.append(f"override: {name} is {_shown(self[name])} (flag), the checkpoint has {_shown(trained)}")
        return found


def resolve(
    args: argparse.Namespace,
    config: Mapping[str, Any],
    model: Path,
    *,
    published: bool = False,
    has_motion: bool = True,
) -> Settings:
    """Every choice, from the flags `args`, the first checkpoint's stored `config` and the folder `model`.

    `config` is plain data, {} without a checkpoint. `published` stands for a checkpoint of the authors' release, which
    brings the release's highway. Without motion there is no highway unless a flag asks for one. Raises UserError for
    values that contradict each other and for a damaged sampling.json.
    """
    chosen, native, settings = config.get(CHOSEN), read_native(model), Settings()
    for name, key in CONFIG_KEYS.items():
        trained = value_of(config, key)
        trained = None if name == "fps" and not trained else trained  # 0 is every frame of a clip, and no rate
        settings.choose(
            name,
            ("flag", getattr(args, name)),
            ("checkpoint", trained if chosen is None or key in chosen else None),
            ("model", native.get(name)),
            ("training's default", trained),
            ("release's default", RELEASE.get(name)),
        )
    check_solver(settings.solver, settings.num_steps)
    if settings.guidance_interval is not None and (reason := no_interval(settings.guidance_interval)):
        raise UserError(f"guidance_interval: {reason}")
    _choose_highway(args, config, settings, published, has_motion)
    _choose_guidance(args, native, settings)
    return settings


def of_training(cfg) -> Settings:
    """The choices of the previews in a training with configuration `cfg`: its own values, whoever chose them."""
    settings = Settings()
    for name, key in CONFIG_KEYS.items():
        settings.choose(name, ("configuration", value_of(cfg, key)))
    settings.choose("noise_prior", ("configuration", settings.noise_prior), ("previews' default", PREVIEW_PRIOR))
    if not settings.fps:
        settings.replace("fps", RELEASE["fps"], "release's default")
    return settings


def _choose_highway(
    args: argparse.Namespace, config: Mapping[str, Any], settings: Settings, published: bool, has_motion: bool
) -> None:
    """Scope, beta and scales. MotionDirector's files and the base model have no highway, the release's have its own."""
    use, scope, beta = (value_of(config, f"appearance_highway.{name}") for name in ("use", "scope", "beta"))
    settings.choose(
        "highway",
        ("flag", args.highway or ("release" if args.freeu else None)),
        ("absence of motion", None if has_motion else "off"),
        ("checkpoint", "off" if use == "off" else scope),
        ("release's default", "release" if published else "off"),
    )
    settings.choose("beta", ("flag", args.beta), ("checkpoint", beta), ("release's default", RELEASE_FREEU[0]))
    settings.choose(
        "freeu", ("flag", args.freeu), ("release's default", RELEASE_FREEU if published and not args.beta else None)
    )
    if settings["freeu"] and settings["highway"] != "release":
        if settings.origins["freeu"] == "flag":
            raise UserError(
                f"--freeu: its four scales belong to the release's highway, and --highway is {settings['highway']}; "
                "use --beta"
            )
        settings.replace("freeu", None, "default")


def _choose_guidance(args: argparse.Namespace, native: Mapping[str, Any], settings: Settings) -> None:
    """Motion guidance and what belongs to it; without --guide there is none, and nothing of it is recorded."""
    if args.guide is None:
        return
    settings.choose("guide", ("flag", args.guide or RUN_REFERENCE))
    default = GuidanceSettings(steps=max(1, round(SHARE * settings.num_steps)))
    for name, value in vars(default).items():
        name = f"guide_{name}"
        settings.choose(name, ("flag", getattr(args, name)), ("model", native.get(name)), ("guidance's default", value))
    settings.values["guide_weights"] = list(settings.guide_weights)  # as JSON gives it back


def read_native(model: Path) -> dict[str, Any]:
    """How a model is sampled unless somebody says otherwise: the sampling.json of its folder over its kind's values.

    Its names are those of `CONFIG_KEYS`, with the limits of the configuration's keys, and of `GUIDE_CHECKS`. Raises
    UserError.
    """
    native, file = backbones.kind_of_model(model).NATIVE, model / "sampling.json"
    if not file.is_file():
        return native
    values, advice = read_json(file), "correct or delete it"
    schema = {name: of_type(KEYS[key].type, KEYS[key].metadata) for name, key in CONFIG_KEYS.items()} | GUIDE_CHECKS
    schema |= {name: check_of(name) for name in LEAST}
    if isinstance(values, dict) and (unknown := sorted(values.keys() - schema.keys())):
        near = difflib.get_close_matches(unknown[0], schema, 1)
        hint = f"did you mean {near[0]}?" if near else f"it may hold {', '.join(schema)}"
        raise UserError(f"{file}: {shown(unknown[0])} is no sampling value; {hint}")
    found = checked(values, schema, str(file), advice=advice)
    if (interval := found.get("guidance_interval")) is not None and (reason := no_interval(interval)):
        raise UserError(f"{file}: guidance_interval: {reason}")
    return native | {name: value for name, value in found.items() if value is not None}  # null: nobody's choice


def _shown(value: Any) -> str:
    return shown(value) if isinstance(value, str) and not value.isidentifier() else str(value)
