"""Shell completion."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from jobwire.cli.group import cli
from jobwire.cli.terminal import put


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a shell script that completes `jobwire` commands.

    \b
    bash:  eval "$(jobwire completion bash)"      in ~/.bashrc
    zsh:   eval "$(jobwire completion zsh)"       in ~/.zshrc
    fish:  jobwire completion fish > ~/.config/fish/completions/jobwire.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    put(kind(cli, {}, "jobwire", "_JOBWIRE_COMPLETE").source())
