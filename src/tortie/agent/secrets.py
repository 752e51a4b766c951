"""Secrets, followed from the moment that a BGP session has its password in one; until then nobody asks for any."""

from __future__ import annotations

import asyncio

from tortie.agent.view import View
from tortie.model.secret import Secret

WAIT = 0.5
"""Seconds that routing waits for the first answer, as Calico does. Then sessions go without their passwords."""


async def follow_secrets(view: View) -> None:
    """For ever. Whoever may not read Secrets is told so by the view, again and again."""
    await view.secrets_wanted.wait()
    asyncio.get_running_loop().call_later(WAIT, view.without_secrets)
    await view.follow(Secret)
