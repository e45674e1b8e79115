"""The `solostream` command: finds the sub-command, imports only what that one needs, turns errors into one line."""

from __future__ import annotations

import codecs
import functools
import gc
import importlib
import io
import locale
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from itertools import pairwise
from typing import Any

import solostream
from solostream.agent.engine import EngineError
from solostream.disk import FULL
from solostream.errors import SandboxError, UserError
from solostream.registry import EXTRAS

# name -> (where, what it does). Nothing is imported before it is asked for: `solostream sandbox run` needs no torch.
COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("solostream.cli.setup.init:init", "write a commented configuration to edit"),
    "train": (
        "solostream.cli.train:train",
        "cold start, reinforcement learning and evaluation from one TOML file",
    ),
    "sft": ("solostream.cli.train:sft", "supervised cold start only, on generated problems or on your traces"),
    "distill": ("solostream.cli.distill:distill", "sample, keep what is right, write traces for sft"),
    "eval": (
        "solostream.cli.eval:evaluate",
        "avg@k, pass@k, maj@k and tool behaviour of a model, a server or a script",
    ),
    "compare": ("solostream.cli.eval:compare", "two evaluations side by side: curves, support flow, significance"),
    "chat": ("solostream.cli.chat:chat", "talk to an agent that has the interpreter"),
    "play": ("solostream.cli.play:play", "be the agent yourself in any registered environment"),
    "grade": ("solostream.cli.grade:grade", "is an answer right, and by which rule"),
    "report": ("solostream.cli.view:report", "one self-contained HTML file of a run"),
    "view": ("solostream.cli.view:view", "browse trajectories in a local web app"),
    "check": ("solostream.cli.check:check", "the contract of any component: loss, tool, engine, … of your own"),
    "sandbox check": ("solostream.cli.sandbox:check", "conformance and abuse suite against any backend"),
    "sandbox run": ("solostream.cli.sandbox:run", "run one file in a sandbox"),
    "sandbox serve": ("solostream.cli.sandbox:serve", "HTTP server: sessions API and SandboxFusion wire format"),
    "doctor": ("solostream.cli.setup.doctor:doctor", "what this machine has, and what to install for the rest"),
    "completion": (
        "solostream.cli.setup.completion:completion",
        "a script that completes commands and options in a shell",
    ),
}


# Options that may stand alone: `--resume` means `--resume auto`.
ALONE = {"--resume": "auto", "--cluster": "auto"}


# Options of `distill` and `eval` that a command has as a setting of its file: (settings, what each is of).
_TRACES, _PROBLEMS = ("cold_start.data", "traces"), ("data.path", "problems")
AS_SETTINGS = {
    ("sft", "--data"): (_TRACES, _PROBLEMS),
    ("sft", "--traces"): (_TRACES,),
    ("train", "--data"): (_PROBLEMS, _TRACES),
    ("train", "--traces"): (_TRACES,),
}


def _usage(group: str = "") -> str:
    """Of all commands, or of those that begin with the word `group`."""
    names = [name for name in COMMANDS if not group or name.split()[0] == group]
    width = max(map(len, names))
    rows = "\n".join(f"  {name:<{width}}  {COMMANDS[name][1]}" for name in names)
    head = " ".join(["usage: solostream", *group.split(), "COMMAND [OPTIONS]"])
    return f"{head}\n\n{rows}\n\nsolostream COMMAND --help shows its options, solostream --version the version."


def _asks_for_help(argv: list[str]) -> str | None:
    """What to print for `solostream`, `help`, `--help`, `help GROUP`, `GROUP --help`, `--version`; else None."""
    groups = {name.split()[0] for name in COMMANDS if " " in name}
    plain = [word for word in argv if word not in ("-h", "--help", "help")]
    if not argv or (not plain and len(argv) == 1):
        return _usage()
    if argv == ["--version"]:
        return f"solostream {solostream.__version__}"
    if len(plain) == 1 and plain[0] in groups and len(argv) <= 2:
        return _usage(plain[0])
    return None


def _find(argv: list[str]) -> tuple[str, list[str]]:
    """The command's name and its arguments. Raises UserError."""
    from difflib import get_close_matches

    for words in (2, 1):
        name = " ".join(argv[:words])
        if len(argv) >= words and name in COMMANDS:
            return name, argv[words:]
    asked = " ".join(argv[:2]) if argv[0] == "sandbox" else argv[0]
    near = get_close_matches(asked, COMMANDS, 1, 0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"one of: {', '.join(COMMANDS)}"
    raise UserError(f"unknown command '{asked}'; {hint}")


def _complete(args: list[str]) -> list[str]:
    """Give every option of `ALONE` that stands alone its value."""
    done: list[str] = []
    for i, arg in enumerate(args):
        done.append(arg)
        if arg in ALONE and (i + 1 == len(args) or args[i + 1].startswith("--") or args[i + 1].endswith(".toml")):
            done.append(ALONE[arg])
    return done


class _Once(logging.Filter):
    """Lets no message through twice: the two halves of one file are read alike."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        known = len(self._said)
        self._said.add(record.getMessage())
        return len(self._said) > known


def _quiet() -> None:
    """One-line warnings, and libraries that keep to themselves: the terminal belongs to the command."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # or it says for half a minute that it tries again
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    remarks = logging.getLogger("solostream.envs.data")  # which layout was recognised, which rows were dropped
    remarks.setLevel(logging.INFO)
    remarks.handlers = [logging.StreamHandler(sys.stdout)]
    remarks.handlers[0].addFilter(_Once())
    warnings.showwarning = lambda message, *_, **__: print(f"solostream: warning: {message}", file=sys.stderr)


def _parse(command: Callable[..., Any], name: str, args: list[str]) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """What `args` call `command` with. Raises UserError for what tyro says in a box of many lines."""
    import tyro

    @functools.wraps(command)
    def call(*given: Any, **named: Any) -> Any:
        return given, named

    box = io.StringIO()
    try:
        with redirect_stderr(box):
            parsed: tuple[Sequence[Any], Mapping[str, Any]] = tyro.cli(call, prog=f"solostream {name}", args=args)
    except SystemExit as exit_:
        if not exit_.code:  # --help
            raise
        drawn = box.getvalue().partition("\n")[2]  # without the title; the frame is blank where stdout is not UTF-8
        text = " ".join(re.sub(r"[│╭╮╰╯]", " ", drawn).split())
        fault, *more = [part for part in re.split(r"\s*[─-]{3,}\s*", text) if part]
        guesses = [part for part in more if part.startswith("Perhaps you meant")]
        found = [*_as_settings(name, args), *guesses]
        raise UserError("; ".join([fault.rstrip("."), *found, f"see solostream {name} --help"])) from None
    return parsed


def _as_settings(name: str, args: Sequence[str]) -> list[str]:
    """How to say what somebody gave as an option of another command."""
    found = []
    for arg, after in pairwise([*args, ""]):
        option, equals, value = arg.partition("=")
        value = value if equals else after if not after.startswith("-") else ""
        said = [f"--set {key}={value or 'FILE'} ({what})" for key, what in AS_SETTINGS.get((name, option), ())]
        if said:
            found.append(f"{option} is a setting here: {' or '.join(said)}")
    return found


def _print_anywhere() -> None:
    """A terminal that has no arrow gets a question mark, not a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _one_line(error: Exception) -> str:
    """What an error says, in one line that moves no cursor: it may quote a file that somebody took for another."""
    text = re.sub(r"\s*\n\s*", " ", str(error)).strip()
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _of_file(error: OSError) -> str:
    place = f"{error.filename}: " if error.filename else ""
    if error.errno in FULL:
        remedy = "make room; what is whole was kept: train goes on with --resume, eval with the same command"
    else:
        remedy = "give another path, or make it usable"
    return f"{place}{error.strerror}; {remedy}"


def _given() -> list[str]:
    """The command line of a process that is the command's own, which is set up for it.

    Our files are UTF-8, whatever the terminal is: where it differs, Python starts once more.
    """
    if not sys.flags.utf8_mode and codecs.lookup(locale.getpreferredencoding(False)).name != "utf-8":
        terminal = os.environ.get("PYTHONIOENCODING") or getattr(sys.stdout, "encoding", None) or "utf-8"
        env = {**os.environ, "PYTHONIOENCODING": terminal, "PYTHONUTF8": "1"}
        os.execve(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]], env)
    gc.set_threshold(20_000)  # torch and transformers make 400,000 containers that stay: an eighth of their import
    return sys.argv[1:]


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0 done, 1 failed, 2 bad input, 130 interrupted. argv: None: what the program was given."""
    argv = _given() if argv is None else argv
    _print_anywhere()
    try:
        if (text := _asks_for_help(argv)) is not None:
            print(text)
            return 0
        name, rest = _find([*argv[1:], "--help"] if argv[0] == "help" else argv)
        _quiet()
        module, _, function = COMMANDS[name][0].partition(":")
        command = getattr(importlib.import_module(module), function)
        given, named = _parse(command, name, _complete(rest))
        return int(command(*given, **named) or 0)
    except UserError as error:
        print(f"solostream: {_one_line(error)}", file=sys.stderr)
        return 2
    except (SandboxError, EngineError) as error:
        part = "sandbox" if isinstance(error, SandboxError) else "engine"
        print(f"solostream: {part} failed: {_one_line(error)}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        print(f"solostream: {error.name} is missing: pip install 'solostream[{extra}]'", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader (head, less) has gone; Python would complain once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # a file where a folder should be, a folder that may not be written, a full disk, …
        if error.filename is None and error.errno not in FULL:
            raise
        print(f"solostream: {_of_file(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("solostream: interrupted", file=sys.stderr)
        return 130
