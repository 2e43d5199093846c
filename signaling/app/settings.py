"""Finds the value of an option: on the command line, in the environment, in the configuration file, or its default."""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from signaling.limits import Option, Unit

if TYPE_CHECKING:
    from signaling.app.config_file import ConfigFile

_PREFIX = "SIGNALING_"
# Of the fast path and of signaling-probe.
_OTHER_VARIABLES = ("SIGNALING_FAST_PATH", "SIGNALING_TOKEN")
# Kubernetes describes each service by such variables, in the environment of all its neighbours.
_SERVICE_LINK = re.compile(r".*_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
_SERVICE_URL = re.compile(r"(tcp|udp|sctp)://")
_MAX_SHOWN = 200
_UNPRINTABLE = r"[^ !#-\[\]-~]"
_NUMBER = re.compile(r"(0|[1-9]\d*+)(\.\d++)?", re.ASCII)
_FLAGS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_EXPECTED = {
    Unit.FLAG: "true or false, without quotes",
    Unit.COUNT: "a whole number",
    Unit.BYTES: "a whole number of bytes",
    Unit.SECONDS: "a number of seconds",
    Unit.PER_SECOND: "a number a second",
}
_ENDPOINT_PATHS = ("address", "privateKey", "certKey", "extraCertChain", "dhParameters")
_URL_PATHS = re.compile(r"([?&](?:(?:sentinel-)?password-file|ca|cert|key)=)(?!/|%2[fF])")
_OF_BACKPLANES = ("db", "prefix", "sentinel-user", "password-file", "sentinel-password-file", "ca", "cert", "key")


class Source(IntEnum):
    """Where a value comes from; a greater one takes precedence."""

    DEFAULT = 0
    FILE = 1
    PLATFORM = 2  # a variable without the prefix, which platforms set: PORT
    ENVIRONMENT = 3
    COMMAND_LINE = 4


@dataclass(frozen=True, slots=True)
class Setting:
    """The value of an option.

    Args:
        option: whose.
        source: where it comes from.
        texts: as on the command line: several of a repeatable option, ``true`` or ``false`` of a flag; none if nothing
            was said.
        place: the variable, or the file and the line; empty for the other sources.
    """

    option: Option
    source: Source = Source.DEFAULT
    texts: tuple[str, ...] = ()
    place: str = ""

    @property
    def value(self) -> Any:
        """A list for tables and for a repeatable option, a boolean for a flag, else a text or, by default, None."""
        if self.option.unit is Unit.TABLES:
            return json.loads(self.texts[0]) if self.texts else []
        if self.option.repeats:
            return list(self.texts)
        if self.option.unit is Unit.FLAG:
            return self.texts == ("true",)
        return self.texts[0] if self.texts else None

    @property
    def in_force(self) -> tuple[str, ...]:
        """The texts, or those of the default; for a comparison."""
        return self.texts or (self.option.default or ("false" if self.option.unit is Unit.FLAG else ""),)

    @property
    def label(self) -> str:
        """What an error about it begins with."""
        if self.source is Source.FILE:
            return f"{self.place}: {self.option.name}"
        return self.place or f"--{self.option.name}"

    @property
    def origin(self) -> str:
        """Where it comes from, for people."""
        return self.place or {Source.COMMAND_LINE: "command line"}.get(self.source, "default")

    @property
    def masked(self) -> str:
        """The value as TOML, without secrets."""
        if self.option.unit is Unit.FLAG:
            return self.texts[0]
        if self.option.unit is Unit.TABLES:
            return f"[{', '.join(map(_inline_table, self.value))}]"
        if self.option.unit not in (Unit.TEXT, Unit.FILE, Unit.ENDPOINT):
            return self.texts[0] if _NUMBER.fullmatch(self.texts[0]) else _quoted(self.texts[0])
        shown = [_quoted(_masked(self, text)) for text in self.texts]
        return f"[{', '.join(shown)}]" if self.option.repeats else shown[0]

    @property
    def shown(self) -> str:
        """The value for a line of the log, without secrets."""
        if not self.texts:
            return self.option.default_text.replace("`", "") or "not set"
        return self.masked if len(self.masked) <= _MAX_SHOWN else f"{self.masked[:_MAX_SHOWN]}..."


def variable_of(option: Option) -> str:
    """Return the environment variable of an option."""
    return _PREFIX + str(option.name).upper().replace("-", "_")


def find(option: Option, given: Sequence[str], environ: Mapping[str, str], file: ConfigFile | None) -> Setting:
    """Return the value that is in force.

    Args:
        given: the values on the command line.
        environ: the environment variables; an empty one counts as unset.
        file: the configuration file, if there is one.

    Raises:
        ValueError: a value has the wrong type; the text says where it stands.
    """
    if given:
        return Setting(option, Source.COMMAND_LINE, tuple(given))
    for variable, source in ((variable_of(option), Source.ENVIRONMENT), (option.variable, Source.PLATFORM)):
        text = environ.get(variable) if variable is not None else None
        if variable is not None and text and not _describes_service(variable, text):
            return Setting(option, source, _from_variable(option, variable, text), variable)
    name = str(option.name)
    if file is not None and name in file.values:
        return Setting(option, Source.FILE, _from_file(option, file), file.place(name))
    return Setting(option)


def _from_variable(option: Option, variable: str, text: str) -> tuple[str, ...]:
    if option.repeats:
        texts = tuple(part.strip() for part in text.split(","))
        if "" in texts:
            raise ValueError(f"{variable}: there is nothing between two commas, or before or behind one")
        return texts
    if option.unit is Unit.FLAG:
        is_on = _FLAGS.get(text.lower())
        if is_on is None:
            raise ValueError(f"{variable}: {text!r} is not true or false (also 1, 0, yes, no)")
        return ("true" if is_on else "false",)
    return (text,)


def _from_file(option: Option, file: ConfigFile) -> tuple[str, ...]:
    name = str(option.name)
    value = file.values[name]
    kind = _EXPECTED.get(option.unit, "a text in quotes")
    expected = f"an array, as in {name} = [...], of texts in quotes" if option.repeats else kind
    if isinstance(value, list) and not option.repeats:
        raise ValueError(f"{file.place(name)}: {name}: an array, and it takes one value: {expected}")
    texts = [_text(option, entry) for entry in (value if isinstance(value, list) else [value])]
    if None in texts:
        raise ValueError(f"{file.place(name)}: {name}: a wrong type of value; right is {expected}")
    found = tuple(_in_folder(option, text, file.folder) for text in texts if text is not None)
    if any("\0" in text for text in found):
        raise ValueError(f"{file.place(name)}: {name}: a null character in a text")
    return found


def _text(option: Option, value: Any) -> str | None:
    """Return a value of the file as the command line has it; None if its type is wrong."""
    if isinstance(value, bool) or option.unit is Unit.FLAG:
        return str(value).lower() if isinstance(value, bool) and option.unit is Unit.FLAG else None
    # Python writes no longer number in decimal digits.
    is_writable = isinstance(value, str | float) or (isinstance(value, int) and value.bit_length() < 10_000)
    return str(value) if is_writable else None


def _in_folder(option: Option, text: str, folder: Path) -> str:
    """Return a value of the file with its paths absolute."""
    if option.unit is Unit.FILE:
        return str(folder / text) if text else text
    if option.unit is Unit.ENDPOINT:
        return _endpoint_in_folder(text, folder)
    if option.name == "auth":
        return re.sub(r"^(jwt|file):(?=[^/])", lambda kind: f"{kind[0]}{folder}/", text)
    if option.name == "backplane":
        return _URL_PATHS.sub(lambda named: named[0] + quote(f"{folder}/"), text)
    return text


def _endpoint_in_folder(text: str, folder: Path) -> str:
    start = f"{folder}/".replace(":", r"\:")
    parts = re.split(r"(?<!\\):", text)
    for number, part in enumerate(parts[1:], 1):
        name, _, path = part.rpartition("=")
        is_path = name in _ENDPOINT_PATHS or (parts[number - 1] == "unix" and not name)
        if is_path and path and not path.startswith("/"):
            parts[number] = part.removesuffix(path) + start + path
    return ":".join(parts)


def find_tables(option: Option, file: ConfigFile | None) -> Setting:
    """Return an array of tables, which only the file can have; its text is JSON."""
    name = str(option.name)
    if file is None or name not in file.values:
        return Setting(option)
    return Setting(option, Source.FILE, (json.dumps(file.values[name], default=str),), file.place(name))


def in_tables(error: str, name: str, file: ConfigFile, options: Container[str]) -> str:
    """Return an error about an array of tables with its line.

    Args:
        error: begins with the table, as in ``[[topics]] 2: max-peers: ...``.
        options: names that may stand in the file, but not in a table.
    """
    keys = re.match(r"\[\[[\w-]+\]\] (\d+): (?:there is no key '([^']*)'|([\w-]+):)?", error)
    if keys is None:
        return f"{file.place(name)}: {error}"
    place = file.place(name, int(keys[1]) - 1, keys[2] or keys[3] or "")
    hint = f" (an option stands above the first [[{name}]])" if keys[2] in options else ""
    return f"{place}: {error}{hint}"


def _describes_service(variable: str, text: str) -> bool:
    return variable.endswith("_PORT") and _SERVICE_URL.match(text) is not None


def refuse_unknown(
    options: Iterable[Option], environ: Mapping[str, str], file: ConfigFile | None, tables: Sequence[str]
) -> None:
    """Check that there is an option for each variable with the prefix, and for each key of the file.

    Args:
        tables: the arrays of tables that the file may have.

    Raises:
        ValueError: with the nearest name.
    """
    names = {str(option.name): option for option in options}
    variables = [variable_of(option).removeprefix(_PREFIX) for option in names.values()]
    known = {*_OTHER_VARIABLES, *(_PREFIX + variable for variable in variables)}
    for variable, text in environ.items():
        if not variable.startswith(_PREFIX) or variable in known:
            continue
        if variable.removeprefix(_PREFIX).lower() in tables:
            table = variable.removeprefix(_PREFIX).lower()
            raise ValueError(f"{variable}: [[{table}]] stands in the configuration file only")
        if not (_SERVICE_LINK.fullmatch(variable) or _describes_service(variable, text)):
            nearest = _nearest(variable.removeprefix(_PREFIX), variables, _PREFIX)
            raise ValueError(f"{variable}: there is no such option{nearest}")
    keys = [*(name for name in names if name != "config"), *tables]
    for key, value in file.values.items() if file is not None else ():
        if key not in keys:
            assert file is not None
            kind = "table" if isinstance(value, dict) else "option"
            shown = repr(key)[1:-1][:_MAX_SHOWN]
            raise ValueError(f"{file.place(key)}: {shown}: there is no such {kind}{_nearest(key, keys)}")


def _nearest(name: str, names: Sequence[str], prefix: str = "") -> str:
    near = get_close_matches(name, names, n=1)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def _masked(setting: Setting, text: str) -> str:
    if setting.option.name == "turn-secret-file" and setting.source is Source.PLATFORM:
        return "***"
    if setting.option.name == "auth":
        kind, _, _ = text.partition(":")
        return text if kind in ("jwt", "file") else f"{kind}:***"
    if "://" not in text:
        return text
    text = re.sub(r"(?<=://).*@", "***@", text)
    if text.lower().startswith("http"):
        # Providers put secrets into the path, too.
        return re.sub(r"(?<=[^:/])[/?#].+", "/***", text)
    address, question, query = text.partition("?")
    pairs = [pair.partition("=") for pair in query.split("&")] if question else []
    shown = (f"{name}{equals}{value if name in _OF_BACKPLANES else '***'}" for name, equals, value in pairs)
    return address + question + "&".join(shown)


def _inline_table(table: Mapping[str, Any]) -> str:
    pairs = (f"{key} = {_quoted(value) if isinstance(value, str) else value}" for key, value in table.items())
    return f"{{{', '.join(pairs)}}}"


def _quoted(text: str) -> str:
    return f'"{re.sub(_UNPRINTABLE, _escaped, text)}"'


def _escaped(found: re.Match[str]) -> str:
    character = found[0]
    return f"\\{character}" if character in '\\"' else f"\\U{ord(character):08x}"


def encode_settings(settings: Iterable[Setting]) -> bytes:
    """Return settings in a form for another process."""
    return json.dumps([[s.option.name, s.source, s.texts, s.place] for s in settings]).encode()


def decode_settings(data: bytes, options: Mapping[str, Option]) -> dict[str, Setting]:
    """Return settings by the names of their options.

    Args:
        data: as ``encode_settings`` returned it.
        options: by their names.
    """
    return {
        name: Setting(options[name], Source(source), tuple(texts), place)
        for name, source, texts, place in json.loads(data)
    }


def describe(settings: Iterable[Setting]) -> str:
    """Return what is in force, as TOML: the defaults as comments, and each value with where it comes from."""
    lines = []
    for setting in settings:
        option = setting.option
        if setting.texts or (option.repeats and setting.source is not Source.DEFAULT):
            lines.append(f"{option.name} = {setting.masked}  # {setting.origin}")
        else:
            default = "off" if option.unit is Unit.FLAG else option.default_text.replace("`", "") or "not set"
            lines.append(f"# {option.name}: {default} (default)")
    return "\n".join(lines)
