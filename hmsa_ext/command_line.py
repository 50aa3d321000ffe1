"""Command lines: settings from flags, exit statuses, and one line for an error.

Every command is a function ``main(arguments)`` that is called by :func:`run` and reads its settings by :func:`parse`.
The parser, its help and its suggestions for misspelt flags are tyro's; what the flags are is declared by the settings
(:mod:`hmsa_ext.settings`) alone.

Exit statuses: 0 done; 1 the command's own "no" (``data scan``: training would fail); 2 wrong use, or an error that the
user can mend; 130 after Ctrl-C; 143 after SIGTERM.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar

from hmsa_ext import settings as declared
from hmsa_ext.errors import HmsaError
from hmsa_ext.settings import Option

Settings = TypeVar("Settings")

WRONG_USE, INTERRUPTED, TERMINATED = 2, 130, 143
SECONDS_TO_SPEAK = 1.0
"""That a process waits for the first one to print an error which both have."""

_OLDER = Mapping[str, Sequence[str] | Callable[[str], Sequence[str] | None]]


class UsageError(HmsaError, ValueError):
    """A command line that cannot be meant."""


class Terminated(BaseException):
    """SIGTERM arrived. Like KeyboardInterrupt this is no Exception: nothing but the end of the command takes it."""


def run(command: Callable[[list[str]], int], arguments: Sequence[str] | None = None) -> int:
    """Calls a command and returns its exit status; an error that the user can mend becomes one line.

    Args:
        command: takes the arguments, returns the exit status.
        arguments: those of this process unless given.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # the name of a class or file must not end a training
    try:
        with _raising_on_sigterm():
            return command(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:
        return _end("interrupted", INTERRUPTED)
    except Terminated:
        return _end("terminated", TERMINATED)
    except BrokenPipeError:
        # The reader of our output is gone; closing the output would fail once more.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _end("error: the reader of the output has gone away", WRONG_USE)
    except HmsaError as error:
        return complain(error)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return complain(f"{where}{error.strerror or error}")
    except Exception as error:
        from hmsa_ext.engine.out_of_memory import is_out_of_memory, reason_of

        if not is_out_of_memory(error):
            raise
        return complain(
            "memory: there was not enough to hold images, labels or files; stop what else uses it, or give the command "
            f"smaller images ({reason_of(error)})"
        )


def complain(error: object) -> int:
    """Prints what the user has to know and returns the exit status.

    Most errors come in all processes alike, and the first one prints them. One that only its own process knows
    (``error.local``) is printed by that process.
    """
    rank = os.environ.get("RANK", "0")
    local = getattr(error, "local", False)
    if rank == "0":
        _end(f"error: {error}", WRONG_USE)
    elif local:
        _end(f"error in process {rank}: {error}", WRONG_USE)
    else:
        time.sleep(SECONDS_TO_SPEAK)  # torchrun ends all processes as soon as one ends
    return WRONG_USE


def parse(
    settings: Settings,
    arguments: Sequence[str],
    *,
    prog: str,
    description: str,
    older: _OLDER | None = None,
    elsewhere: Mapping[str, str] | None = None,
    shown: Callable[[Option], bool] = lambda option: True,
) -> Settings:
    """The settings with the flags applied; ``--help`` and ``--version`` print and exit, as does a wrong flag.

    Args:
        settings: an instance with the values that apply where no flag is given.
        arguments: the command line.
        prog: name of the command.
        description: the text above the flags.
        older: what older flags are now, without dashes: a list of words, or a function of the flag's value that gives
            them (None where the flag means what it says). Each is said once, on standard error.
        elsewhere: options that are no flags here, and why, by name without dashes.
        shown: whether an option of the settings is a flag of this command.

    Raises :class:`hmsa_ext.settings.SettingError` for values that the settings refuse.
    """
    import tyro

    options = [option for option in declared.options(settings) if shown(option)]
    if any(argument == "--version" for argument in arguments) and "version" not in {o.flag for o in options}:
        arguments = _rewritten(arguments, options, older or {})
        if "--version" in arguments:
            import hmsa_ext

            print(f"hmsa_ext {hmsa_ext.__version__}")
            raise SystemExit(0)
    arguments = _joined(_rewritten(arguments, options, older or {}), options)
    if any(option.positional is not None and option.positional.many for option in options):
        arguments = _positional_first(arguments, {o.flag for o in options if o.kind is bool} | {"help", "version"})
    _refuse(arguments, {option.flag for option in options}, elsewhere or {})
    # An unknown flag may have swallowed the positional argument: then the flag is the error to report.
    known = {"help", *(option.flag for option in options), *(f"no-{option.flag}" for option in options)}
    misspelt = any(word.startswith("--") and _flag_name(word) not in {*known, ""} for word in arguments)
    mirror = _mirror(settings, prog, shown, required=not misspelt)
    given: dict[str, Any] = {}
    kind: Any = tyro.conf.OmitArgPrefixes[mirror]
    first = os.environ.get("RANK", "0") == "0"  # of several processes one shows help and errors
    result: Any = tyro.cli(kind, prog=prog, description=description, args=arguments, console_outputs=first)
    for group in dataclasses.fields(result):
        part = getattr(result, group.name)
        given |= {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    changes = {option.name: given[option.name] for option in options if given[option.name] != option.value}
    return declared.replace(settings, changes)


def progress_line() -> Callable[[str], object]:
    """A function that shows a text on one line of the terminal, in place of the one before; silent elsewhere."""
    if not sys.stderr.isatty():
        return lambda text: None
    return lambda text: print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def peek(arguments: Sequence[str], flag: str) -> str | None:
    """The value of a flag, before the command line is parsed; the last one where it is given again."""
    found = None
    for place, argument in enumerate(arguments):
        if not argument.startswith("--") or _flag_name(argument) != flag:
            continue
        if "=" in argument:
            found = argument.partition("=")[2]
        elif place + 1 < len(arguments):
            found = arguments[place + 1]
    return found


def peek_positional(arguments: Sequence[str], switches: Collection[str]) -> str | None:
    """The first argument that is neither a flag nor the value of one. ``switches``: flags without a value."""
    return next((word for word, is_positional in _sorted_words(arguments, switches) if is_positional), None)


def _sorted_words(arguments: Sequence[str], switches: Collection[str]) -> Iterator[tuple[str, bool]]:
    """The arguments, each with whether it is neither a flag nor the value of one."""
    takes_value = False
    for argument in arguments:
        if takes_value:
            takes_value = False
            yield argument, False
        elif argument.startswith("--"):
            name = _flag_name(argument)
            takes_value = "=" not in argument and name not in switches and name.removeprefix("no-") not in switches
            yield argument, False
        else:
            yield argument, not argument.startswith("-") or argument == "-"


def _positional_first(arguments: Sequence[str], switches: Collection[str]) -> list[str]:
    """The arguments with all positional ones in front: the parser takes several only where they stand together."""
    words = list(_sorted_words(arguments, switches))
    return [word for word, first in words if first] + [word for word, first in words if not first]


def _flag_name(argument: str) -> str:
    """The flag of ``--flag`` or ``--flag=value``, without dashes in front; underscores are as good as dashes."""
    return argument.removeprefix("--").partition("=")[0].replace("_", "-")


@contextlib.contextmanager
def _raising_on_sigterm() -> Iterator[None]:
    """SIGTERM ends the command by an exception, so that what it holds open is closed and its workers end."""
    if threading.current_thread() is not threading.main_thread():  # there signals are the caller's business
        yield
        return

    def terminate(number: int, frame: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(text: str, status: int) -> int:
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)
    return status


# ---- older spellings --------------------------------------------------------------------------------------------


def _rewritten(arguments: Sequence[str], options: Sequence[Option], older: _OLDER) -> list[str]:
    """The arguments in today's spelling."""
    flags = {option.flag for option in options}
    renamed: dict[str, Any] = {
        name.replace("_", "-"): [f"--{option.flag}"] for option in options for name in option.was
    }
    renamed = {name: new for name, new in {**renamed, **older}.items() if name not in flags or callable(new)}
    words: list[str] = []
    said: set[str] = set()
    place = 0
    while place < len(arguments):
        argument = arguments[place]
        name, equals, value = argument.removeprefix("--").partition("=")
        rule: Any = renamed.get(name) if argument.startswith("--") else None
        used = 1
        if callable(rule):
            apart = not equals and place + 1 < len(arguments)
            new: Any = rule(arguments[place + 1] if apart else value)
            used = 2 if apart and new is not None else 1
            equals = ""
        else:
            new = rule
        if new is None:
            words.append(argument)
        else:
            first, *rest = new
            words += [f"{first}={value}" if equals else first, *rest]
            if name not in said:
                said.add(name)
                _end(f"--{name} is now {' '.join(new)}; the old spelling goes with the next version", 0)
        place += used
    return words


def _joined(arguments: Sequence[str], options: Sequence[Option]) -> list[str]:
    """The arguments with lists of names that were given piece by piece (``--split train --split val``) as one."""
    lists = {f"--{o.flag}" for o in options if o.spelling is not None and o.spelling.metavar == "NAME,..."}
    words: list[str] = []
    value_at: dict[str, int] = {}
    place = 0
    while place < len(arguments):
        argument = arguments[place]
        if argument in lists and place + 1 < len(arguments):
            value = arguments[place + 1]
            if argument in value_at:
                words[value_at[argument]] += f",{value}"
            else:
                words += [argument, value]
                value_at[argument] = len(words) - 1
            place += 2
        else:
            words.append(argument)
            place += 1
    return words


def _refuse(arguments: Sequence[str], flags: Collection[str], elsewhere: Mapping[str, str]) -> None:
    for argument in arguments:
        name = argument.removeprefix("--").partition("=")[0]
        for spelling in (name, name.removeprefix("no-")):
            if argument.startswith("--") and spelling not in flags and spelling in elsewhere:
                raise UsageError(f"--{spelling}: {elsewhere[spelling]}")


# ---- tyro -------------------------------------------------------------------------------------------------------


def _mirror(settings: Any, prog: str, shown: Callable[[Option], bool], *, required: bool) -> type:
    """A dataclass of dataclasses, one for each group of options, as tyro reads them.

    ``required``: whether positional arguments without a value have to be given.
    """
    import tyro

    fields: list[tuple[str, Any]] = []
    for number, (title, text, options) in enumerate(declared.groups(settings)):
        title = title or prog.rpartition(" ")[2].rpartition(".")[2]
        options = [option for option in options if shown(option)]
        if not options:
            continue
        members = [(option.name, _annotated(option), _default(option, required)) for option in options]
        group = dataclasses.make_dataclass(title, members, frozen=True)
        about = tyro.conf.arg(name=title.replace("_", "-"), help=text or title, prefix_name=False)
        fields.append((f"{title}_{number}", Annotated[group, about]))
    return dataclasses.make_dataclass("Settings", fields)


def _default(option: Option, required: bool) -> Any:
    missing = required and option.positional is not None and option.value in (None, ())
    return dataclasses.field() if missing else dataclasses.field(default_factory=lambda: option.value)


def _annotated(option: Option) -> Any:
    import tyro

    text = option.help
    if option.positional is not None:
        spec = _spec(option, option.positional.metavar, many=option.positional.many)
        about = tyro.conf.arg(name=option.name, help=text, help_behavior_hint=_hint(option))
        return Annotated[Any, spec, tyro.conf.Positional, about]
    about = tyro.conf.arg(name=option.flag, help=text, help_behavior_hint=_hint(option))
    if option.kind is bool and not option.optional:
        return Annotated[bool, about]
    metavar = "|".join(option.choices) if option.choices else _metavar(option)
    return Annotated[Any, _spec(option, metavar), about]


def _hint(option: Option) -> str:
    if option.value is None or option.value in ((), {}):
        return ""
    return f"(default: {option.show(option.value)})"


def _metavar(option: Option) -> str:
    if option.spelling is not None:
        return option.spelling.metavar
    return {int: "N", float: "X"}.get(option.kind, option.metavar or "TEXT")


def _spec(option: Option, metavar: str, *, many: bool = False) -> Any:
    import tyro

    def read(words: list[str]) -> Any:
        if many:
            return tuple(words)
        value = words[0]
        if option.optional and value.lower() == "none" and option.kind in (int, float, tuple):
            return None
        try:
            found = option.read(value)
        except declared.SettingError as error:
            raise ValueError(f"got {value!r}, expected {error.expected}") from None
        if option.choices and found not in option.choices:
            raise ValueError(f"got {value!r}, expected {option.expected}")
        return found

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs="*" if many else 1,
        metavar=metavar,
        instance_from_str=read,
        is_instance=lambda value: True,
        str_from_instance=lambda value: list(value) if many else [option.show(value)],
    )
