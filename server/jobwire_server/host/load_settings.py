"""Where settings come from: flags, the environment and a file; and what to say of wrong ones."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    TomlConfigSettingsSource,
)

from jobwire_server.domain.errors import ConfigurationError
from jobwire_server.host.settings import PREFIX, Settings

CONFIG_VARIABLE = "JOBWIRE_CONFIG"
DEFAULT_CONFIG = Path("jobwire.toml")

OTHER_VARIABLES = (
    *("JOBWIRE_TARGET", "JOBWIRE_TLS", "JOBWIRE_CA", "JOBWIRE_CLIENT_CERT", "JOBWIRE_CLIENT_KEY"),
    *("JOBWIRE_DEBUG",),
)
"""Of clients and of the command line, which may stand in the same environment."""
NEAR = 0.88
"""A name so near to a setting's, of 1, is a slip; the prefix that both have counts."""
_SERVICE = re.compile(
    r"JOBWIRE(_\w+)?_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_[A-Z]+(_(PROTO|PORT|ADDR))?)"
    r"=.*|JOBWIRE(_\w+)?_PORT=[a-z]+://.*"
)
"""What Kubernetes sets for services that are called jobwire, or jobwire- and something."""


def load_settings(
    flags: Mapping[str, object] | None = None, config: Path | None = None
) -> Settings:
    """Gather the settings from flags, environment, file and defaults.

    Args:
        flags: What was given on the command line, by field name.
        config: The TOML file. Unset: `JOBWIRE_CONFIG`, else `./jobwire.toml` if there is one.

    Raises:
        ConfigurationError: One line for each wrong value: the setting, its source, the remedy.
    """
    flags = flags or {}
    mistyped, _ = unknown_variables()
    if mistyped:
        raise ConfigurationError(
            "\n".join(
                f"environment variable {name} is not a setting: did you mean {near}?"
                for name, near in mistyped.items()
            )
        )
    file = _find_config(config)

    class FromFile(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, file)

    try:
        given: dict[str, Any] = dict(flags)
        return FromFile(**given)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{file} is not valid TOML: {error}") from error
    except OSError as error:
        raise ConfigurationError(f"{file} can't be read: {error.strerror}") from error
    except ValidationError as error:
        lines = [_explain(problem, flags, file) for problem in error.errors()]
        raise ConfigurationError("\n".join(lines)) from error


def unknown_variables() -> tuple[dict[str, str], list[str]]:
    """Return variables of the environment that look like settings and are none.

    Returns:
        Those that are nearly one, with the one that they may be meant to be; and all others.
    """
    settings = [f"{PREFIX}{name.upper()}" for name in Settings.model_fields] + [CONFIG_VARIABLE]
    known = {*settings, *OTHER_VARIABLES}
    mistyped, others = {}, []
    for name, value in sorted(os.environ.items()):
        if not name.upper().startswith(PREFIX) or name.upper() in known:
            continue
        if _SERVICE.fullmatch(f"{name}={value}"):
            continue
        near = difflib.get_close_matches(name.upper(), settings, n=1, cutoff=NEAR)
        if near:
            mistyped[name] = near[0]
        else:
            others.append(name)
    return mistyped, others


def _find_config(given: Path | None) -> Path | None:
    path = given or Path(os.environ.get(CONFIG_VARIABLE) or DEFAULT_CONFIG)
    try:
        if path.is_file():
            return path
    except (OSError, ValueError):  # in a directory that this user can't look into, for example
        pass
    if path == DEFAULT_CONFIG and given is None:
        return None
    source = "--config" if given else f"environment variable {CONFIG_VARIABLE}"
    raise ConfigurationError(f"config: there is no file {path}, named by {source}; mend the path")


def _explain(problem: ErrorDetails, flags: Mapping[str, object], file: Path | None) -> str:
    context = problem.get("ctx", {})
    name = str(context["setting"] if problem["type"] == "together" else problem["loc"][0])
    field = Settings.model_fields.get(name)
    if field is None:
        near = difflib.get_close_matches(name, Settings.model_fields, n=1)
        remedy = f"did you mean {near[0]}?" if near else "see `jobwire serve --help`"
        return f"{name} in {file} is not a setting: {remedy}"
    if name in flags:
        origin = f"flag --{name.replace('_', '-')}"
    elif f"{PREFIX}{name}".upper() in {variable.upper() for variable in os.environ}:
        origin = f"environment variable {PREFIX}{name.upper()}"
    elif problem["type"] == "together" and not (file and name in _keys(file)):
        origin = "default"
    else:
        origin = str(file)
    text = problem["msg"].removeprefix("Value error, ")
    text = text[0].lower() + text[1:] if problem["type"] != "value_error" else text
    remedy = "" if problem["type"] == "together" else f" ({field.description})"
    return f"{name}, from {origin}: {text}{remedy}"


def _keys(file: Path) -> set[str]:
    return set(tomllib.loads(file.read_text()))
