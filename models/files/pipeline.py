"""The settings in a model folder, checked before diffusers and transformers use them.

Their loaders take any value from a config.json; a wrong one ends as an error from deep inside a model, if at all. Here
every part's settings are read as plain data and the ones that shape what is computed must be of their type and within
limits. Other keys are passed on as they are.
"""

import inspect
from collections.abc import Collection
from pathlib import Path
from types import ModuleType
from typing import Any

from configs.checks import checked
from configs.errors import UserError
from configs.paths import download_of, is_hub_id
from configs.plain import read_json
from models import backbones
from models.files.parts import reason

ADVICE = "download the whole folder again"
MOST_JSON = 256 << 20  # bytes of one file: Wan's tokenizer.json has 17 MB


def check_pipeline(folder: Path, parts: Collection[str] | None = None) -> None:
    """Raise UserError for a setting that no model of its kind has, and for any JSON that is not plain.

    `parts` are those that are looked at, default all. A part without its file of settings is left to the loader, which
    reports it.
    """
    kind = backbones.kind_of_model(folder)
    for part, (name, schema) in kind.SETTINGS.items():
        if parts is not None and part not in parts:
            continue
        for file in sorted((folder / part).glob("*.json")):
            content = read_json(file, most=MOST_JSON)
            if file.name == name:
                found = checked(content, schema, str(file), advice=ADVICE)
                if part == kind.FOLDER:
                    _check_together(kind, found, str(file))


def check_folder(path: str) -> None:
    """Raise UserError unless `path` is a pipeline folder, or could be a hub id."""
    folder = Path(path)
    if folder.is_dir():
        missing = [part for part in backbones.kind_of_model(folder).PARTS if not (folder / part).is_dir()]
        if missing:
            found = sorted(p.name for p in folder.iterdir())[:8]
            raise UserError(
                f"model: {path} is not a text-to-video pipeline folder: {', '.join(missing)} missing "
                f"(found {', '.join(found) or 'nothing'}); download the whole folder again"
            )
    elif not is_hub_id(path):
        command = download_of(path)
        raise UserError(
            f"model: no folder {path}; point pretrained_model_path (or --model) at a ZeroScope, ModelScope or Wan "
            "folder, or use models/pocketscope, which is in this repository"
            + (f"; `{command}` downloads this one" if command else "")
        )


def settings_of(model: str, part: str) -> dict[str, Any]:
    """The checked settings of the network or the VAE of a pipeline folder (or of a network's own), or of a hub id.

    What the file leaves out has its class's default, as when the part is loaded: Wan's published VAE has no
    `scale_factor_temporal`, for one. Raises UserError where there are none or they are not usable.
    """
    kind = backbones.kind_of_model(model)
    if Path(model).is_dir():
        path = Path(model) / part / "config.json"
        if part == kind.FOLDER and not path.is_file():
            path = Path(model) / "config.json"
        if not path.is_file():
            raise UserError(f"{model}: no {part}/config.json there; give the folder of a text-to-video pipeline")
        config, origin = read_json(path), str(path)
    else:
        check_folder(model)
        try:
            config, origin = kind.PARTS[part].load_config(model, subfolder=part), f"{model}: its {part}/config.json"
        except (OSError, ValueError) as error:
            raise UserError(
                f"--model: {model} is no folder and cannot be read from the hub ({reason(error)}); point it at a"
                " ZeroScope or ModelScope folder"
            ) from error
    found = checked(config, kind.SETTINGS[part][1], origin, needed=kind.NEEDED.get(part, ()), advice=ADVICE)
    if part == kind.FOLDER:
        _check_together(kind, found, origin)
    arguments = inspect.signature(kind.PARTS[part]).parameters.values()
    defaults = {entry.name: entry.default for entry in arguments if entry.default is not entry.empty}
    return {**defaults, **config, **found}


def _check_together(kind: ModuleType, settings: dict[str, Any], origin: str) -> None:
    if wrong := kind.contradiction(settings):
        raise UserError(f"{origin}: {wrong}; {ADVICE}")
