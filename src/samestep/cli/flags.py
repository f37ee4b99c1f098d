"""Flags: strict values, the same names in a TOML file, and one line for every mistake."""

from __future__ import annotations

import difflib
import tomllib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from cyclopts import (
    App,
    Argument,
    ArgumentCollection,
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    RepeatArgumentError,
    Token,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
    ValidationError,
    convert,
)


class ConfigFileError(CycloptsError):
    """A mistake in the file given with --config; its msg is the whole text."""


def _fail(text: str, token: Token, cause: Exception | None = None) -> NoReturn:
    raise CoercionError(msg=text, token=token) from cause


def _members(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a hint, Optional and Annotated taken off."""
    if typing.get_origin(hint) is Annotated:
        return _members(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(m for a in typing.get_args(hint) for m in _members(a))
    return () if hint is type(None) else (hint,)


def _type_text(hint: Any) -> str:
    names: list[str] = []
    for member in _members(hint):
        if typing.get_origin(member) is Literal:
            names += [str(a) for a in typing.get_args(member)]
        elif typing.get_origin(member) is tuple:
            names.append("comma-separated " + _type_text(typing.get_args(member)[0]))
        else:
            names.append({Path: "path", bool: "true or false"}.get(member, getattr(member, "__name__", str(member))))
    return " or ".join(names) if len(names) < 3 else ", ".join(names[:-1]) + " or " + names[-1]


def _one(hint: Any, text: str) -> Any:
    """One scalar, strictly: cyclopts itself would turn --steps 1.7 into 2."""
    for member in _members(hint):
        if member is int:
            try:
                return int(text)
            except ValueError:
                continue
        if typing.get_origin(member) is Literal:
            if text in typing.get_args(member):
                return text
            continue
        try:
            return convert(member, [text])
        except (CycloptsError, ValueError):
            continue
    raise ValueError(text)


def convert_value(hint: Any, tokens: Sequence[Token]) -> Any:
    """The converter of every setting (scalar, or a comma-separated tuple)."""
    token = tokens[0]
    if len(tokens) > 1:  # cyclopts lets a tuple be repeated and would pass both
        _fail(f"{token.keyword}: given more than once", token)
    members = _members(hint)
    try:
        if members and typing.get_origin(members[0]) is tuple:
            item = typing.get_args(members[0])[0]
            return tuple(_one(item, part.strip()) for part in token.value.split(","))
        return _one(hint, token.value)
    except ValueError as error:
        where = token.source if token.source not in ("", "cli") else None
        name = token.keyword or "value"
        text = f'{name}: invalid value "{token.value}" for {_type_text(hint)}'
        _fail(f"{where}: {text}" if where else text, token, error)


def _fits(member: Any, item: object) -> bool:
    origin = typing.get_origin(member)
    if origin is Literal:
        return item in typing.get_args(member) and not isinstance(item, bool)
    if origin is tuple:
        inner = _members(typing.get_args(member)[0])
        return isinstance(item, list) and bool(item) and all(any(_fits(m, i) for m in inner) for i in item)
    if isinstance(item, bool):
        return member is bool
    if member is float:
        return isinstance(item, (int, float))
    if member is Path:
        return isinstance(item, str)
    return isinstance(member, type) and isinstance(item, member)


def _toml_text(item: object) -> str:
    if isinstance(item, list):
        return ",".join(_toml_text(i) for i in item)
    return str(item).lower() if isinstance(item, bool) else str(item)


def from_file(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Fill what the flags left open from the TOML file named by --config."""
    by_name: dict[str, Argument] = {a.name[2:]: a for a in arguments if a.parse and a.name.startswith("--")}
    chosen = by_name.pop("config", None)
    if chosen is None or not chosen.tokens:
        return
    path = chosen.tokens[-1].value
    try:
        with open(path, "rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise ConfigFileError(msg=f"--config: cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigFileError(msg=f"{path}: not valid TOML: {error}") from error
    seen: set[str] = set()
    for key, item in table.items():
        argument = by_name.get(key.replace("_", "-"))
        if argument is None:
            near = difflib.get_close_matches(key.replace("_", "-"), by_name, n=1)
            hint = f"; did you mean {near[0].replace('-', '_')}?" if near else ""
            raise ConfigFileError(msg=f"{path}: unknown key {key}{hint}")
        if argument.name in seen:  # run-name beside run_name
            raise ConfigFileError(msg=f"{path}: {key}: given more than once")
        seen.add(argument.name)
        if not any(_fits(member, item) for member in _members(argument.hint)):
            kind = type(item).__name__
            raise ConfigFileError(msg=f"{path}: {key}: expected {_type_text(argument.hint)}, got {kind} {item!r}")
        if not argument.tokens:  # a flag wins
            argument.append(Token(keyword=key, value=_toml_text(item), source=path))


def _near(word: str, words: Sequence[str]) -> str:
    close = [w for w in difflib.get_close_matches(word, words, n=1, cutoff=0.7) if w != word]
    return f"; did you mean {close[0]}?" if close else ""


def describe(error: CycloptsError, app: App) -> str:
    """A parse error in words, without program name and help hint."""
    argument = error.argument
    name = argument.name if argument is not None else ""
    if argument is not None and argument.field_info.is_positional:
        name = name.lstrip("-").upper()
    match error:
        case ConfigFileError():
            return str(error.msg)
        case UnknownOptionError():
            word = (error.token.keyword or error.token.value).split("=", 1)[0]
            names = [n for a in error.argument_collection if a.parse for n in a.names if n.startswith("--")]
            return f"unknown option {word}{_near(word, [*names, '--help'])}"
        case UnknownCommandError():
            word = (error.unused_tokens or [""])[0]
            if word.startswith("-"):
                return f"unknown option {word}{_near(word, ['--help', '--version'])}"
            return f'unknown command "{word}"{_near(word, [c for c in app if not c.startswith("-")])}'
        case UnusedCliTokensError():
            return f'unexpected argument "{(error.unused_tokens or [""])[0]}"'
        case RepeatArgumentError():
            return f"{error.token.keyword}: given more than once"
        case MissingArgumentError():
            return f"{name}: needs a value" if name.startswith("-") else f"missing {name}"
        case CoercionError() if error.msg is not None:
            return str(error.msg)
        case CoercionError() if error.token is not None:
            label = error.token.keyword or name
            hint = argument.hint if argument is not None else error.target_type
            return f'{label}: invalid value "{error.token.value}" for {_type_text(hint)}'
        case ValidationError():
            return f"{name}: {error.exception_message}"
        case _:
            return str(error)
