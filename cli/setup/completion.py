"""`solostream completion`: a script for the shell, made from the commands' own options."""

from __future__ import annotations

import functools
import importlib
from typing import Annotated, Any, Literal

import tyro


def completion(shell: Annotated[Literal["bash", "zsh", "fish"], tyro.conf.Positional] = "bash", /) -> int:
    """Print a script that completes commands, options and files.

    In the shell's start file: eval "$(solostream completion bash)", likewise zsh; solostream completion fish | source.

    Args:
        shell: whose script.
    """
    print(_fish() if shell == "fish" else _bash(shell))
    return 0


def options(command: str) -> list[str]:
    """The long options of a command, as its parser knows them."""
    from solostream.cli.main import COMMANDS

    module, _, function = COMMANDS[command][0].partition(":")
    target = getattr(importlib.import_module(module), function)

    @functools.wraps(target)
    def call(*given: Any, **named: Any) -> None: ...

    parser = tyro.extras.get_parser(call)
    return sorted({name for action in parser._actions for name in action.option_strings if name.startswith("--")})


def _groups() -> dict[str, list[str]]:
    """First word -> the second words that it takes."""
    from solostream.cli.main import COMMANDS

    found: dict[str, list[str]] = {}
    for name in COMMANDS:
        first, _, second = name.partition(" ")
        found.setdefault(first, []).extend([second] if second else [])
    return found


def _bash(shell: str) -> str:
    from solostream.cli.main import COMMANDS

    groups = _groups()
    cases = "\n".join(f'        "{name}"*) words="{" ".join(options(name))}" ;;' for name in COMMANDS)
    seconds = "\n".join(f'        "{first} ") words="{" ".join(rest)}" ;;' for first, rest in groups.items() if rest)
    head = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    return f"""{head}_solostream() {{
    local cur="${{COMP_WORDS[COMP_CWORD]}}" words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{" ".join(groups)}" -- "$cur")); return
    fi
    case "${{COMP_WORDS[*]:1:COMP_CWORD-1}} " in
{seconds}
{cases}
    esac
    case "$cur" in -*) COMPREPLY=($(compgen -W "$words" -- "$cur")) ;;
        *) [ "${{words#-}}" = "$words" ] && COMPREPLY=($(compgen -W "$words" -- "$cur")) ;;
    esac
}}
complete -o default -F _solostream solostream"""


def _fish() -> str:
    from solostream.cli.main import COMMANDS

    lines = []
    for first, rest in _groups().items():
        what = "" if rest else COMMANDS[first][1]
        lines.append(f"complete -c solostream -n __fish_use_subcommand -f -a {first} -d {_quoted(what)}")
        seen = f"__fish_seen_subcommand_from {first}"
        for second in rest:
            told = _quoted(COMMANDS[f"{first} {second}"][1])
            lines.append(f"complete -c solostream -n '{seen}' -a {second} -d {told}")
        for name in [f"{first} {second}" for second in rest] or [first]:
            also = f"; and __fish_seen_subcommand_from {name.split()[1]}" if rest else ""
            lines += [f"complete -c solostream -n '{seen}{also}' -l {option[2:]}" for option in options(name)]
    return "\n".join(lines)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", r"\'") + "'"
