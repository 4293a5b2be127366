"""The group of all commands, what each of them may be told, and how it talks."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import click

from alembic_partitions.talk import explain, mask

if TYPE_CHECKING:
    from alembic.config import Config

#: Done; a horizon that is merely short is a warning.
EXIT_OK = 0
#: It could not be done, or a table lacks the partition for rows that are written now.
EXIT_FAILED = 1
#: The command line itself is wrong.
EXIT_USAGE = 2
#: Ctrl-C, as shells count it.
EXIT_INTERRUPTED = 130

#: `check`, as monitoring plugins count: healthy, worth a look, inserts fail now or tomorrow.
CHECK_OK = 0
CHECK_WARNING = 1
CHECK_CRITICAL = 2
#: It could not be told. Whatever goes wrong in `check` itself ends with this one.
CHECK_UNKNOWN = 3

PROGRAM = "alembic-partitions"

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass
class Call:
    """What this call was told: Alembic's own options (before the command or after it), and what to hide."""

    config: list[str] = field(default_factory=list)
    name: str | None = None
    x: list[str] = field(default_factory=list)
    verbose: bool = False
    urls: list[str] = field(default_factory=list)
    #: What every failure of this command exits with, if not as usual.
    failed_as: int | None = None

    def alembic(self, *arguments: str) -> None:
        """Run an Alembic command as the ``alembic`` script would, except that errors are raised."""
        from alembic.config import CommandLine

        options = [word for path in self.config for word in ("-c", path)]
        options += ["-n", self.name] if self.name else []
        options += [f"-x{value}" for value in self.x]
        CommandLine(prog=PROGRAM).main(["--raiseerr", *options, *arguments])

    def learn(self, config: Config) -> None:
        """Learn a project's URLs, so as not to print their passwords."""
        parser = config.file_config
        for section in parser.sections():
            self.urls += [value for _, value in parser.items(section, raw=True) if value and "://" in value]


class Door(click.Group):
    """The group of all commands: it turns whatever goes wrong into one line."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run a command; unlike click's own, a failure leaves one line and never a traceback."""
        call = Call()
        standalone = options.pop("standalone_mode", True)
        options |= {"prog_name": PROGRAM, "obj": call, "standalone_mode": False}
        try:
            code = super().main(*args, **options) or EXIT_OK
        except click.UsageError as error:
            where = error.ctx.command_path if error.ctx else PROGRAM
            code = complain(f"{error.format_message()} See {where} --help.", call.failed_as or EXIT_USAGE)
        except click.ClickException as error:
            code = complain(error.format_message(), call.failed_as or EXIT_FAILED)
        except click.Abort:
            code = complain("interrupted", EXIT_INTERRUPTED)
        except Exception as error:  # noqa: BLE001  # the last stop before the user
            if call.verbose:
                say(mask("".join(traceback.format_exception(error)), call.urls))
            code = complain(explain(error, call.urls), call.failed_as or EXIT_FAILED)
        if standalone:
            sys.exit(code)
        return code


class Probe(click.Command):
    """A command for monitoring: its exit codes are answers, so whatever goes wrong with it is UNKNOWN."""

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        """Parse the command's own options."""
        call = options["parent"].find_object(Call)
        call.failed_as = CHECK_UNKNOWN
        return super().make_context(*args, **options)

    def invoke(self, context: click.Context) -> Any:
        """Run the command; a reader that has closed its end of the pipe got no answer."""
        try:
            return super().invoke(context)
        except SystemExit:
            return CHECK_UNKNOWN


def remember(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    call = context.find_object(Call)
    if call is None or not value or parameter.name is None:
        return
    if isinstance(value, tuple):
        getattr(call, parameter.name).extend(value)
    else:
        setattr(call, parameter.name, value)


def alembic_options(command: Command) -> Command:
    """Add what ``alembic`` itself takes. There it stands before the command; here it may follow it, too."""
    quiet: dict[str, Any] = {"expose_value": False, "callback": remember}
    for option in (
        click.option(
            "-c",
            "--config",
            multiple=True,
            help="alembic.ini or pyproject.toml (env: ALEMBIC_CONFIG).",
            **quiet,
        ),
        click.option("-n", "--name", help="Section of alembic.ini.", **quiet),
        click.option("-x", multiple=True, help="Argument for the project's env.py.", **quiet),
        click.option("-v", "--verbose", is_flag=True, help="Show the traceback of a failure.", **quiet),
    ):
        command = option(command)
    return command


@click.group(cls=Door, no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]})
@alembic_options
@click.version_option(package_name="alembic-partitions", prog_name=PROGRAM)
def main() -> None:
    """Time-partitioned PostgreSQL tables: migrate under a lock, and keep their partitions ready."""


def say(line: str) -> None:
    click.echo(line, err=True)


def complain(line: str, code: int = EXIT_FAILED) -> int:
    say(f"{PROGRAM}: {line}")
    return code


@contextmanager
def busy(what: str) -> Iterator[Callable[[str], None]]:
    """Show that work is under way, in a terminal; yield what tells of a step that is done, anywhere."""
    if not sys.stderr.isatty():
        yield say
        return
    from rich.console import Console

    console = Console(stderr=True)

    def tell(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    with console.status(what):
        yield tell
