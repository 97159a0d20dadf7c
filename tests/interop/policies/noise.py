"""Write to standard output while the file is loaded, and when the process ends."""

from __future__ import annotations

import atexit
import os
import subprocess

from mailgate import Address, Message, Policy, Reject

print("register|filter|smtp-in|odd", flush=True)
os.write(1, b"250 not for you\n")
subprocess.run(["/bin/echo", "register|ready"], check=True)
atexit.register(print, "the end")

policy = Policy("noise")


@policy.rcpt
async def quiet(message: Message, recipient: Address) -> Reject | None:
    """Say nothing at last."""
    return None
