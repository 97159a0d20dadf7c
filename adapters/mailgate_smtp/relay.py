"""A client's messages on their way to the next hop.

What the client said of the envelope is passed on as it is said; it is said again, as a whole,
where policies have changed it or the connection was lost before the next hop had the message.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import final

from mailgate_smtp.client import Client
from mailgate_smtp.extensions import carried
from mailgate_smtp.hop import LOST, HopError, NextHop
from mailgate_smtp.identity import Identity
from mailgate_smtp.maildir import Trace
from mailgate_smtp.route import Route
from mailgate_smtp.wire import Path, Reply, reply

log = logging.getLogger(__name__)


@final
class Relay:
    """Passes one message after the other on, for one client.

    Every method raises HopError where the next hop fails; the message is given up then.
    """

    def __init__(self, route: Route, client: Client) -> None:
        self._route = route
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._hop: NextHop | None = None
        self._pinned = False
        self._sender: Path | None = None  # as the client began the message with
        self._recipients: list[Path] = []  # that the next hop has accepted
        self._said = False  # whether this connection knows of the message
        self._used = 0.0
        self._working = False
        self._gone = False
        self._sending = False  # the next hop takes what is sent for content
        self.committed = False  # the end of data was sent: the next hop may have the message

    # -- Borrower --------------------------------------------------------------------------------

    @property
    def identity(self) -> Identity:
        return self._client.identity

    @property
    def trace(self) -> Trace:
        return self._client.trace

    @property
    def idle_since(self) -> float:
        return math.inf if self._working or self._pinned else self._used

    def interrupt(self) -> None:
        """Give the connection to another client; this one says everything again."""
        log.info("an idle client's connection to the upstream is taken for another client")
        self._drop(hang_up=True)

    # -- the connection --------------------------------------------------------------------------

    async def open(self) -> NextHop:
        """Return the next hop."""
        return self._hop or await self._take()

    def pin(self, pinned: bool) -> None:
        """Keep the connection for this client, or no longer: a login was made on it."""
        self._pinned = pinned

    async def _take(self, *, fresh: bool = False) -> NextHop:
        if self._hop is not None:
            self._drop(hang_up=True)
        if self._pinned:
            raise HopError("the connection that the login was made on is lost", LOGIN_LOST)
        self._working = True
        try:
            hop = await self._route.take(self, fresh=fresh)
        finally:
            self._rest()
        if self._gone:
            self._route.give_back(hop)
            raise HopError("its client is gone", LOST)
        self._hop = hop
        return hop

    def _take_at_hand(self) -> NextHop | None:
        """Take a next hop where this client has none; None where `ready` has to wait for one."""
        if self._hop is None and not self._pinned and not self._gone:
            self._hop = self._route.at_hand(self)
            return self._hop
        return None

    async def ready(self, *, fresh: bool = False) -> NextHop:
        """Return the next hop when it knows who the client is."""
        hop = None if fresh else self._hop
        if hop is None:
            hop = await self._take(fresh=fresh)
        self._working = True
        try:
            if await self._route.identify(self, hop) or self._pinned:
                return hop
        except BaseException:
            self._drop(hang_up=True)
            raise
        finally:
            self._rest()
        return await self.ready(fresh=True)  # this one knows another client

    def _rest(self) -> None:
        self._working = False
        self._used = self._loop.time()

    def _drop(self, *, hang_up: bool) -> None:
        hop, self._hop = self._hop, None
        self._said = self._sending = False
        if hop is not None:
            self._route.give_back(hop, hang_up=hang_up)

    def _forget(self) -> None:
        """Be ready for the next message."""
        self._sender, self._recipients = None, []
        self._said = self.committed = False
        if not self._pinned:
            self._drop(hang_up=False)

    def abort(self) -> None:
        """Give up the message, and its connection."""
        self._sender, self._recipients, self.committed = None, [], False
        self._drop(hang_up=True)

    def abandon(self) -> None:
        """Hear that the client is gone: what was not sent to its end is given up."""
        self._gone = True
        self._route.dismiss(self)
        if not self.committed:
            self.abort()

    def close(self) -> None:
        """End: no message is under way."""
        self._drop(hang_up=self._said)

    # -- the envelope ----------------------------------------------------------------------------

    async def mail(self, path: Path) -> Reply:
        """Begin a message."""
        try:
            answer = (await self._say(path, ()))[0]
        except HopError as error:
            raise self._failed(error) from None
        if answer.positive:
            self._sender = path
        else:
            self._forget()
        return answer

    async def rcpt(self, path: Path) -> Reply:
        """Add a recipient."""
        if not self._said:
            await self._say_again()
        self._working = True
        try:
            answer = await self._rcpt(path)
        except HopError as error:
            if not error.gone or self._recipients or self._pinned:
                raise self._failed(error) from None
            await self._say_again(fresh=True)
            answer = await self._rcpt(path)
        finally:
            self._rest()
        if answer.positive:
            self._recipients.append(path)
        return answer

    def _rcpt(self, path: Path) -> Awaitable[Reply]:
        hop = self._open_hop()
        return hop.rcpt(carried(path, hop.features))

    def _open_hop(self) -> NextHop:
        if self._hop is None:
            raise HopError("the connection was given up", LOST)
        return self._hop

    def _failed(self, error: HopError) -> HopError:
        self.abort()
        return error

    async def _say_again(self, *, fresh: bool = False) -> None:
        """Begin the message anew: what was accepted has to be accepted again."""
        if self._sender is None:
            raise HopError("the message was given up", LOST)
        replies = await self._say(self._sender, self._recipients, fresh=fresh)
        refused = [each for each in replies if not each.positive]
        if refused:
            raise self._failed(HopError(f"what it accepted before is now {refused[0]}", LOST))

    async def _say(
        self, sender: Path, recipients: Sequence[Path], *, fresh: bool = False
    ) -> Sequence[Reply]:
        """Say a whole envelope, and return the replies; one where MAIL was refused.

        Once more where the connection was lost: nothing of it counts before the end of data.
        """
        if self._hop is not None and self._said and not fresh:
            await self._take_back(self._hop)
        hop = (None if fresh else self._take_at_hand()) or await self.ready(fresh=fresh)
        features = hop.features
        said = carried(sender, features), [carried(path, features) for path in recipients]
        self._working = self._said = True  # it may have begun before it has answered
        try:
            replies = await hop.envelope(*said)
        except HopError as error:
            if fresh or not error.gone or self._pinned:
                raise
        else:
            self._said = replies[0].positive
            return replies
        finally:
            self._rest()
        return await self._say(sender, recipients, fresh=True)

    # -- the content -----------------------------------------------------------------------------

    async def begin(self, sender: Path, recipients: Sequence[Path]) -> Sequence[Reply]:
        """Have the next hop know this very envelope; return the replies to its recipients.

        A single reply that is not 2xx refuses the whole message.
        """
        if self._said and sender == self._sender and list(recipients) == self._recipients:
            return [ACCEPTED] * len(recipients)
        replies = await self._say(sender, recipients)
        if len(replies) == 1:
            return replies
        self._sender = sender
        self._recipients = [
            path for path, each in zip(recipients, replies[1:], strict=True) if each.positive
        ]
        return replies[1:]

    async def data(self) -> Reply:
        """Ask for leave to send the content, in pieces by `write`."""
        self._working = True
        try:
            answer = await self._open_hop().data()
            self._sending = answer.code == 354
        finally:
            if not self._sending:
                self._rest()
        return answer

    async def write(self, piece: bytes) -> None:
        """Send some of the content, dot-stuffed."""
        await self._open_hop().write(piece)

    async def end(self) -> Sequence[Reply]:
        """End the content; the message is the next hop's, or it is not."""
        hop = self._open_hop()
        self.committed, self._sending = True, False
        try:
            replies = await hop.end()
        except HopError as error:
            self.committed = not error.unsent
            if error.unsent:
                raise
            log.warning(
                "message %s: no answer to the end of data (%s): the upstream may have it, and "
                "the client will send it again",
                *(self.trace.id, error),
            )
            raise
        finally:
            self._rest()
        self._said = False
        self._forget()
        return replies

    async def send(self, pieces: Callable[[], Iterable[bytes]]) -> Sequence[Reply]:
        """Send the content as a whole; once more where the connection was lost on the way.

        ``pieces`` gives it anew each time.  The replies are those of `NextHop.end`, or the one
        that refused DATA.
        """
        try:
            return await self._send(pieces)
        except HopError as error:
            if not error.gone or self.committed or self._pinned:
                raise self._failed(error) from None
        try:
            self._said = False
            await self._say_again(fresh=True)
            return await self._send(pieces)
        except HopError as error:
            raise self._failed(error) from None

    async def _send(self, pieces: Callable[[], Iterable[bytes]]) -> Sequence[Reply]:
        self._working = True
        try:
            hop = self._open_hop()
            answer = await hop.data()  # as `data`, without its coroutine
            if answer.code != 354:
                await self.reset()
                return [answer]
            self._sending = True
            for piece in pieces():
                await hop.write(piece)
            return await self.end()
        finally:
            self._rest()

    async def _take_back(self, hop: NextHop) -> None:
        """Have the next hop forget the envelope, or hang up."""
        self._working = True
        try:
            await hop.reset()
        except HopError:
            self._drop(hang_up=True)
        finally:
            self._rest()
        self._said = False

    async def reset(self) -> None:
        """Give up the message; where that is not possible, with its connection."""
        if self._sending:
            self.abort()
        if self._said and self._hop is not None:
            await self._take_back(self._hop)
        self._said = False
        self._forget()


ACCEPTED = Reply(250, (b"2.1.5 Ok",))
LOGIN_LOST = reply(421, "4.4.2", "The connection to the mail server behind this one was lost")
