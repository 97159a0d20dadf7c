"""``mailgate new``."""

from __future__ import annotations

import keyword
import re
import shlex
import sys
from pathlib import Path

import click

from mailgate.errors import ConfigError

POLICY = '''\
"""What {name} does with mail."""

from mailgate import Address, Message, Policy, Reject


def policy(blocked: frozenset[str] = frozenset({{"spam.example"}})) -> Policy:
    """Refuse senders from blocked domains, and mark what passes.

    The parameters are the settings in mailgate.toml.
    """
    policy = Policy("{name}")

    @policy.rcpt
    async def not_from_there(message: Message, recipient: Address) -> Reject | None:
        if message.sender.domain in blocked:
            return Reject("we take no mail from there")
        return None

    @policy.headers
    async def mark(message: Message) -> None:
        message.headers["X-Checked-By"] = "{name}"

    return policy
'''

TEST = '''\
"""Run with: pytest"""

from mailgate.testing import send

from {module} import policy


def test_blocked_domain_is_refused(adapter: str) -> None:
    outcome = send(policy(), sender="x@spam.example", adapter=adapter)
    assert outcome.reply == "550 5.7.1 we take no mail from there"


def test_other_mail_is_marked(adapter: str) -> None:
    outcome = send(policy(), sender="friend@client.example", adapter=adapter)
    assert outcome.accepted
    assert outcome.headers["X-Checked-By"] == "{name}"
'''

CONFIG = """\
# In this folder: mailgate check; mailgate test; mailgate run -p milter

[[policy]]
use = "{module}.py"
settings = {{ blocked = ["spam.example"] }}

[defaults]
on_error = "defer"      # what a failing handler means: "defer", "reject" or "continue"
"""

CONFTEST = '''\
"""Lets the test import the policy beside it, whatever folder pytest is called in."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
'''


@click.command("new")
@click.argument("path", type=click.Path(path_type=Path))
def command(path: Path) -> None:
    """Make a policy, its test and a mailgate.toml in the folder PATH.

    Nothing that is there already is overwritten.
    """
    module = re.sub(r"\W+", "_", path.resolve().name).strip("_").lower() or "policy"
    taken = module in sys.stdlib_module_names or module in ("mailgate", "pytest", "conftest")
    if module[0].isdigit() or keyword.iskeyword(module) or taken:
        module = f"policy_{module}"
    words = {"name": module.replace("_", "-"), "module": module}
    files = {
        path / f"{module}.py": POLICY,
        path / f"test_{module}.py": TEST,
        path / "conftest.py": CONFTEST,
        path / "mailgate.toml": CONFIG,
    }
    for file in files:
        if file.exists():
            raise ConfigError("exists already; nothing was written", file=str(file))
    try:
        path.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            file.write_text(text if file.name == "conftest.py" else text.format(**words))
            click.echo(f"made {file}")
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", file=str(path)) from None
    click.echo(f"next: cd {shlex.quote(str(path))}; mailgate check; mailgate test; pytest")
