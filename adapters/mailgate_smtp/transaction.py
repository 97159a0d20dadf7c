"""One mail transaction: from MAIL to what became of the message."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from email.utils import formatdate
from functools import lru_cache
from typing import Literal, final

from mailgate.address import Address
from mailgate.engine import Conversation
from mailgate.logs import fields
from mailgate.message import Message
from mailgate.stage import Stage
from mailgate.syntax import format_parameters, text_of
from mailgate.verdict import Disconnect, Quarantine, Refusal, Verdict, refuses
from mailgate_smtp.content import Content
from mailgate_smtp.extensions import check_mail, check_rcpt
from mailgate_smtp.hop import Features, HopError
from mailgate_smtp.house import House
from mailgate_smtp.relay import Relay
from mailgate_smtp.replies import (
    GO_AHEAD,
    LMTP_NO_RECIPIENTS,
    NO_MEMORY,
    NO_RECIPIENTS,
    NOT_ALL,
    OK,
    ONE_EACH,
    OUR_FAULT,
    RECIPIENT_OK,
    RELAY_DENIED,
    SENDER_OK,
    TOO_MANY,
    folded,
    refusal,
)
from mailgate_smtp.wire import CommandError, Path, Reply, parse_path

log = logging.getLogger(__name__)


@lru_cache(maxsize=1024)
def _parsed(argument: bytes, keyword: bytes) -> tuple[Path, Address]:
    """Return a path, and its address as policies see it.  CommandError."""
    path = parse_path(argument, keyword)
    parameters = {
        key.decode("ascii"): None if value is None else text_of(value)
        for key, value in path.parameters.items()
    }
    return path, Address.from_wire(path.mailbox, parameters)


def _path_of(address: Address) -> Path:
    """Return the path of an address that a policy has made."""
    words = format_parameters(address.params).encode("utf-8", "surrogateescape").split()
    pairs = (word.partition(b"=") for word in words)
    parameters = {key.upper(): value if equals else None for key, equals, value in pairs}
    return Path(address.encode("utf-8", "surrogateescape"), tuple(words), parameters)


def _is_local(address: Address, domains: Sequence[str]) -> bool:
    """Tell whether an address is of one of these domains, and not routed on by its local part.

    ``a%other.example@``, ``other.example!a@`` and ``"a@other.example"@`` are (RFC 5321 F.2).
    """
    routed = any(mark in address.local for mark in "@%!")
    return not routed and (not address.domain or address.domain in domains)


@final
class Transaction:
    """One message of a client.  What its methods return are replies; none of them raises.

    ``closes`` is true where the connection has to end with the last of them.
    """

    def __init__(
        self,
        house: House,
        conversation: Conversation,
        relay: Relay,
        *,
        lmtp: bool,
        offered: Features,
        user: str | None,
    ) -> None:
        """Begin before MAIL.

        ``offered`` is what the client was told at its greeting, ``user`` who is logged in.
        """
        self._house = house
        self._options = house.options
        self._conversation = conversation
        self._relay = relay
        self._lmtp = lmtp
        self._offered = offered
        self._user = user
        self._live = house.options.connect != "data"
        self._sender: tuple[Path, Address] | None = None
        self._recipients: list[tuple[Path, Address]] = []
        self._tried = 0
        self._said: Sequence[Reply] = ()  # to the recipients, where they were said at the end
        self._failed: Reply | None = None  # by the next hop, while the content comes
        self.content: Content | None = None
        self.begun = False
        self.closes = False

    def _refuse(self, verdict: Refusal) -> Reply:
        self.closes = self.closes or type(verdict) is Disconnect
        return refusal(verdict)

    def _log(self, answer: Reply, by: str, stage: Stage, recipient: str = "") -> None:
        """Log what no policy has refused, as the engine logs what one has."""
        session, message = self._conversation.session, self._conversation.message
        if log.isEnabledFor(logging.INFO):
            facts = {"from": message.sender if message else "", "to": recipient}
            refused = fields(
                verdict="reject" if answer.code >= 500 else "defer",
                code=answer.code,
                by=by,
                stage=stage,
                **{key: value for key, value in facts.items() if value},
                client=session.client or "local",
                id=self._conversation.id,
            )
            log.info("%s", refused)

    def _pass_on(self, answer: Reply) -> Reply:
        """Return a reply of the next hop: where that hangs up, so do we."""
        self.closes = self.closes or answer.code == 421
        return answer

    # -- the envelope ----------------------------------------------------------------------------

    async def mail(self, argument: bytes) -> Reply:
        try:
            path, address = _parsed(argument, b"FROM")
            check_mail(path, self._offered)
        except CommandError as error:
            return error.reply
        verdict = await self._conversation.mail(address)
        if refuses(verdict):
            await self._finish("refused")
            return self._refuse(verdict)
        self._sender = path, address
        answer = SENDER_OK
        if self._live:
            message = self._conversation.message
            if message is not None and message.edits and message.sender is not address:
                path = _path_of(message.sender)
            try:
                answer = self._pass_on(await self._relay.mail(path))
            except HopError as error:
                answer = self._pass_on(error.reply)
        self.begun = answer.positive
        if not self.begun:
            await self._finish("refused")
        return answer

    async def rcpt(self, argument: bytes) -> Reply:
        conversation, message = self._conversation, self._conversation.message
        if message is None or self._sender is None:
            return OUR_FAULT
        try:
            path, address = _parsed(argument, b"TO")
            check_rcpt(path, self._sender[0], self._offered)
        except CommandError as error:
            return error.reply
        refused = self._refused_recipient(address)
        if refused is not None:
            return refused
        known = message.original_recipient_count
        verdict = await conversation.rcpt(address)
        if refuses(verdict):
            return self._refuse(verdict)
        if (
            message.original_recipient_count == known
        ):  # the message is decided, and this is one too many
            return TOO_MANY
        accepted = message.recipients[-1]
        if accepted is not address:
            path = _path_of(accepted)
        answer = RECIPIENT_OK
        if self._live:
            try:
                answer = self._pass_on(await self._relay.rcpt(path))
            except HopError as error:
                answer = self._pass_on(error.reply)
        if answer.positive:
            self._recipients.append((path, accepted))
        else:
            self._log(answer, "upstream", Stage.RCPT, accepted)
            message.drop_recipient()
        return answer

    def _refused_recipient(self, address: Address) -> Reply | None:
        """Return why a recipient is refused before any policy is asked."""
        options = self._options
        if self._tried >= self._house.engine.limits.recipients:
            return TOO_MANY
        self._tried += 1
        if not self._lmtp and self._recipients and self._house.route.answers_each:
            return ONE_EACH  # one reply could not tell who has it
        open_to_it = not options.relay_domains or self._user is not None
        if not open_to_it and not _is_local(address, options.relay_domains):
            self._log(RELAY_DENIED, "smtp.relay_domains", Stage.RCPT, address)
            return RELAY_DENIED
        return None

    # -- the content -----------------------------------------------------------------------------

    async def data(self, *, chunks: bool = False) -> Reply:
        """Ask for leave to take the content: 354, and `content` is there, or a refusal."""
        if not self._recipients:
            return LMTP_NO_RECIPIENTS if self._lmtp else NO_RECIPIENTS
        if self._house.memory_is_spent:
            return NO_MEMORY
        verdict = await self._conversation.data()
        if refuses(verdict):
            return self._refuse(verdict)
        streams = self._options.body == "stream"
        if streams:
            refused = await self._begin_stream()
            if refused is not None:
                return refused
        self.content = Content(
            self._conversation,
            self._options,
            self._house.engine.limits,
            chunks=chunks,
            received=self._received(),
            outlet=self._relay if streams else None,
            size_limit=self._house.size_limit,
            spend=self._house.spend,
        )
        return GO_AHEAD

    def _received(self) -> bytes:
        """Return the trace field of the proxy, empty where none is wanted."""
        own = self._options.received and self._options.targets[0].kind != "maildir"
        if not own:  # a maildir has one of its own
            return b""
        field = self._relay.trace.received(self._options.name, formatdate(localtime=True))
        return field.replace(b"\n", b"\r\n") + b"\r\n"

    async def _begin_stream(self) -> Reply | None:
        """Have the next hop wait for the content; return why it does not."""
        try:
            refused = await self._begin()
            if refused is not None:
                return refused
            answer = await self._relay.data()
        except HopError as error:
            self._relay.abort()
            return error.reply
        return None if answer.code == 354 else self._pass_on(answer)

    def fail(self, error: HopError) -> None:
        """Hear that the next hop failed while the content came: the rest of it is dropped."""
        self._failed = error.reply
        self._relay.abort()
        if self.content is not None:
            self.content.drop()

    @property
    def replies(self) -> int:
        """How many replies the end of the content has (RFC 2033 4.2)."""
        return max(len(self._recipients), 1) if self._lmtp else 1

    # -- its end ---------------------------------------------------------------------------------

    async def end(self) -> Sequence[Reply]:
        """Say what became of the message: one reply, or with LMTP one for each recipient."""
        number = self.replies
        try:
            replies = await self._decide()
        except HopError as error:
            self._relay.abort()
            replies = [self._pass_on(error.reply)]
        except BaseException:
            self.close()
            raise
        accepted = any(answer.positive for answer in replies)
        if not accepted and self._conversation.verdict is None:
            self._log(replies[0], "upstream", Stage.MESSAGE)
        await self._finish("accepted" if accepted else "refused")
        return replies if len(replies) == number else [replies[0]] * number

    async def _decide(self) -> Sequence[Reply]:
        content, conversation = self.content, self._conversation
        if content is None:
            return [OUR_FAULT]
        await content.end()
        if self._failed is not None:
            return [self._failed]
        verdict = await conversation.end(content.body)
        if refuses(verdict):
            await self._relay.reset()
            return [self._refuse(verdict)]
        message = conversation.message
        if message is None:
            return [OUR_FAULT]
        if verdict is not None:
            return [await self._keep(verdict, message, content)]
        if self._options.body == "stream":
            return self._for_each([self._pass_on(each) for each in await self._relay.end()])
        return await self._deliver(message, content)

    async def _keep(self, verdict: Verdict, message: Message, content: Content) -> Reply:
        """Discard or quarantine a message: the client hears that it was taken."""
        answer = OK
        try:
            if type(verdict) is Quarantine:
                answer = await self._quarantine(message, content)
        finally:
            await self._relay.reset()
        return answer

    async def _quarantine(self, message: Message, content: Content) -> Reply:
        quarantine = self._house.quarantine
        if quarantine is None or self._options.body == "stream":
            return OUR_FAULT  # not granted to any policy then
        hop = quarantine.open(self._relay.trace)
        sender, recipients = self._envelope(message)
        await hop.envelope(sender, recipients)
        await hop.data()
        for piece in content.pieces():
            await hop.write(piece)
        answer = (await hop.end())[0]
        return OK if answer.positive else answer

    def _envelope(self, message: Message) -> tuple[Path, Sequence[Path]]:
        """Return the envelope as the policies have left it."""
        sender, address = self._sender or (Path(b""), Address(""))
        paths = [path for path, _ in self._recipients]
        if not message.edits:
            return sender, paths
        if message.sender is not address:
            sender = _path_of(message.sender)
        known = {id(kept): path for path, kept in self._recipients}
        return sender, [known.get(id(kept)) or _path_of(kept) for kept in message.recipients]

    async def _begin(self) -> Reply | None:
        """Have the next hop know the envelope as it is now; return why it does not take it."""
        message = self._conversation.message
        if message is None:
            return OUR_FAULT
        sender, recipients = self._envelope(message)
        replies = await self._relay.begin(sender, recipients)
        refused = [each for each in replies if not each.positive]
        if not refused or (self._lmtp and len(refused) < len(replies)):
            self._said = replies
            return None
        await self._relay.reset()
        if all(each.code // 100 == 5 for each in refused) and len(refused) == len(replies):
            return self._pass_on(refused[0])
        log.warning("message %s: upstream took not all recipients: %s", message.id, refused[0])
        return NOT_ALL

    async def _deliver(self, message: Message, content: Content) -> Sequence[Reply]:
        if not message.recipients:
            log.info("message %s: no recipient is left, it is dropped", message.id)
            await self._relay.reset()
            return [OK]
        refused = await self._begin()
        if refused is not None:
            return [refused]
        replies = await self._relay.send(content.pieces)
        return self._for_each([self._pass_on(each) for each in replies])

    def _for_each(self, ends: Sequence[Reply]) -> Sequence[Reply]:
        """Return one reply, or with LMTP one for each recipient that the client has named."""
        if not self._lmtp:
            return [folded(ends)]
        message = self._conversation.message
        if message is None:
            return [folded(ends)]
        recipients = message.recipients
        said = self._said if len(self._said) == len(recipients) else [OK] * len(recipients)
        ending = iter(ends if len(ends) > 1 else [ends[0]] * len(recipients))
        sent = [next(ending) if answer.positive else answer for answer in said]
        return self._by_name(sent, recipients) if message.edits else sent

    def _by_name(self, sent: Sequence[Reply], recipients: Sequence[Address]) -> Sequence[Reply]:
        """Return the replies in the order in which the client has named the recipients.

        One that a policy took away is taken; one that it changed, as those that it added.
        """
        replies: dict[int, deque[Reply]] = {}
        for address, answer in zip(recipients, sent, strict=True):
            replies.setdefault(id(address), deque()).append(answer)
        named = {id(address) for _, address in self._recipients}
        others = [answer for key, each in replies.items() if key not in named for answer in each]
        rest = folded(others) if others else OK
        return [
            replies[id(address)].popleft() if replies.get(id(address)) else rest
            for _, address in self._recipients
        ]

    async def abort(self) -> None:
        """Give the message up: RSET, a greeting, the end of the connection."""
        try:
            await self._relay.reset()
        finally:
            await self._finish("aborted")

    async def _finish(self, result: Literal["accepted", "refused", "aborted"]) -> None:
        self.begun = False
        try:
            await self._conversation.finish(result)
        finally:
            self.close()  # not before: `done` handlers may look into the content

    def close(self) -> None:
        """Give the content's space back."""
        if self.content is not None:
            self.content.close()
            self.content = None
