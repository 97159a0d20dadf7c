"""mailgate.toml becomes frozen dataclasses; policies are loaded from it."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import os
import sys
import tomllib
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, final

from mailgate import settings
from mailgate.chain import Defaults, Loaded
from mailgate.errors import ConfigError
from mailgate.limits import Limits
from mailgate.logs import Format, Level, To
from mailgate.policy import Policy
from mailgate.settings import Seconds
from mailgate.stage import OnError

PLACES = ("mailgate.toml", "/etc/mailgate/mailgate.toml")


@final
@dataclass(frozen=True, slots=True)
class Log:
    """The ``[log]`` table."""

    level: Level = "info"
    format: Format = "auto"
    to: To = "auto"


@final
@dataclass(frozen=True, slots=True)
class Use:
    """A ``[[policy]]`` table: ``use`` is ``file.py[:name]`` or ``package.module[:name]``."""

    use: str
    settings: dict[str, Any] = field(default_factory=dict)
    timeout: Seconds | None = None
    on_error: OnError | None = None

    def __post_init__(self) -> None:
        if self.timeout is not None and not self.timeout > 0:
            raise ValueError("'timeout' must be above 0")


@final
@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration; ``adapters`` has the tables of protocols, not yet converted."""

    file: str | None = None
    policies: tuple[Use, ...] = ()
    defaults: Defaults = field(default_factory=Defaults)
    limits: Limits = field(default_factory=Limits)
    log: Log = field(default_factory=Log)
    adapters: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    def options(self, name: str, options: type[Any]) -> Any:
        """Return an adapter's own options."""
        return _build(options, self.adapters.get(name, {}), self.file or name, f"[{name}]")


_TABLES = {"defaults": Defaults, "limits": Limits, "log": Log}


def find(given: str | None, *, here: bool = True) -> Path | None:
    """Return the configuration file: the one given, $MAILGATE_CONFIG, or one of `PLACES`.

    ``here``: one in the current folder counts.
    """
    named = given or os.environ.get("MAILGATE_CONFIG")
    if named:
        return Path(named)
    places = [Path(place) for place in PLACES]
    return next((path for path in places if (here or path.is_absolute()) and path.exists()), None)


def read(path: Path | None, protocols: Sequence[str]) -> Config:
    """Read a configuration file; ConfigError names the file and what is wrong in it."""
    if path is None:
        return Config()
    file = str(path)
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=file) from None
    except UnicodeDecodeError:
        raise ConfigError("is not UTF-8 text", file=file) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"is not TOML: {error}", file=file) from None
    config = Config(file=file)
    for name, value in table.items():
        if name == "policy":
            config = replace(config, policies=_policies(value, file))
        elif name in _TABLES:
            built = _build(_TABLES[name], value, file, f"[{name}]")
            config = replace(config, **{name: built})
        elif name in protocols:
            adapters = {**config.adapters, name: value}
            config = replace(config, adapters=MappingProxyType(adapters))
        else:
            known = ["policy", *_TABLES, *protocols]
            raise ConfigError(f"unknown table [{name}]; known: {', '.join(known)}", file=file)
    return config


def _policies(value: object, file: str) -> tuple[Use, ...]:
    if not isinstance(value, list):
        raise ConfigError("write [[policy]] with two brackets: there may be several", file=file)
    uses = tuple(_build(Use, table, file, "[[policy]]") for table in value)
    return tuple(replace(use, use=_beside(use.use, file)) for use in uses)


def _beside(spec: str, file: str) -> str:
    """Return a policy spec with a relative path taken from the configuration file's folder."""
    name = spec.partition(":")[0]
    if name.endswith(".py") and not os.path.isabs(name):
        return os.path.join(os.path.dirname(file), spec)
    return spec


def _build(kind: type[Any], table: object, file: str, where: str) -> Any:
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where} must be a table", file=file)
    try:
        return kind(**settings.arguments(kind, table, what="key"))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.message}", file=file) from None
    except ValueError as error:
        raise ConfigError(f"{where}: {error}", file=file) from None


# -- policies ----------------------------------------------------------------------------------

_serial = itertools.count(1)
_imported: set[str] = set()


def load(use: Use) -> Loaded:
    """Load one policy.  ConfigError is one line: the file, the line, the remedy."""
    source, colon, name = use.use.partition(":")
    name = name if colon else "policy"
    module = _module(source)
    file = module.__file__ or source
    place = (shown(file) or file) if source.endswith(".py") else source
    try:
        found = getattr(module, name)
    except AttributeError:
        others = [n for n, v in vars(module).items() if isinstance(v, Policy)]
        remedy = f"; it has {source}:{others[0]}" if others else f"; write {name} = Policy()"
        raise ConfigError(f"has no {name!r}{remedy}", file=place) from None
    policy = _policy(found, use.settings, name, place)
    if not policy.handlers:
        raise ConfigError(
            f"{name!r} has no handler: write @{name}.message above a function", file=place
        )
    stem = Path(source).stem if source.endswith(".py") else source.rpartition(".")[2]
    return Loaded(policy, policy.name or stem, use.timeout, use.on_error)


def load_all(uses: Sequence[Use]) -> list[Loaded]:
    """Load policies in order."""
    if not uses:
        raise ConfigError(
            "no policy: name a POLICY on the command line, or [[policy]] in mailgate.toml"
        )
    return [load(use) for use in uses]


def _policy(found: object, values: Mapping[str, object], name: str, file: str) -> Policy:
    if isinstance(found, Policy):
        if values:
            raise ConfigError(
                f"{name!r} is a Policy and takes no settings; make it a function that returns one",
                file=file,
            )
        return found
    if not callable(found):
        kind = type(found).__name__
        raise ConfigError(f"{name!r} is a {kind}, not a Policy or a function", file=file)
    line = getattr(getattr(found, "__code__", None), "co_firstlineno", None)
    try:
        given = settings.arguments(found, values)
    except ConfigError as error:
        raise ConfigError(error.message, file=file, line=line) from None
    try:
        policy = found(**given)
    except ConfigError as error:
        raise ConfigError(error.message, file=shown(error.file), line=error.line) from error
    except BaseException as error:
        raise _failed(error, file, f"{name}() failed") from error
    if not isinstance(policy, Policy):
        kind = type(policy).__name__
        raise ConfigError(f"{name}() returned {kind}, not a Policy", file=file, line=line)
    return policy


def _module(source: str) -> ModuleType:
    try:
        return _from_file(Path(source)) if source.endswith(".py") else _from_name(source)
    except ConfigError as error:
        raise ConfigError(error.message, file=shown(error.file), line=error.line) from error
    except BaseException as error:  # SystemExit, too: a module must not end the filter
        raise _failed(error, source, "cannot be imported") from error


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError("no such file" if not path.exists() else "not a file", file=str(path))
    # A name of its own each time: one file may serve twice, with other settings.
    name = f"mailgate_policy_{next(_serial)}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise ConfigError("is not a Python module", file=str(path))
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # for what the policy imports from beside it
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _from_name(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(f"{name!r} is no policy: write file.py, file.py:name or package.module")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        if name in _imported:  # a reload: the module as it is now
            return importlib.reload(sys.modules[name])
        module = importlib.import_module(name)
        _imported.add(name)
        return module
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise ConfigError(f"no module named {name!r}; for a file write its .py") from None
        raise


def _failed(error: BaseException, source: str, what: str) -> ConfigError:
    """Return the one line for an exception of policy code: the innermost line of its file."""
    line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else None
    file = getattr(error, "filename", None) if isinstance(error, SyntaxError) else None
    if line is None:
        frames = traceback.extract_tb(error.__traceback__)
        theirs = [frame for frame in frames if not _is_ours(frame.filename)]
        if theirs:
            file = theirs[0].filename  # the policy's own; what it calls may be anyone's
            line = [frame for frame in theirs if frame.filename == file][-1].lineno
    try:
        text = str(error.msg if isinstance(error, SyntaxError) else error)
    except Exception:
        text = ""
    kind = type(error).__name__
    said = " ".join(f"{kind}: {text}".split())[:200] if text else kind
    return ConfigError(f"{what}: {said}", file=shown(file or source), line=line)


def _is_ours(file: str) -> bool:
    """Tell whether a frame is of mailgate or of the import system, not of a policy."""
    return (
        file.startswith("<")
        or os.path.dirname(__file__) == os.path.dirname(file)
        or (file == importlib.__file__)
    )


def shown(file: str | None) -> str | None:
    """Return a path as a person would type it from here; smtpd starts its filters in /."""
    if file is None or os.getcwd() == "/":
        return file
    try:
        relative = os.path.relpath(file)
    except ValueError:
        return file
    return file if relative.startswith("..") else relative
