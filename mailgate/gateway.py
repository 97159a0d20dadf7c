"""The running process.  It only puts things in order: claim, load, check, serve, reload."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from typing import final

from mailgate import adapter as adapters
from mailgate import stdio
from mailgate.adapter import Adapter
from mailgate.chain import Chain, Loaded, Unmet, unmet
from mailgate.config import Config, load_all, shown
from mailgate.deadline import stay
from mailgate.eager import ShieldedStart
from mailgate.engine import Engine
from mailgate.errors import ConfigError
from mailgate.lint import Use, blind
from mailgate.logs import trouble
from mailgate.policy import ARGUMENTS, Handler
from mailgate.watchdog import Watchdog
from mailgate.workers import LIFELINE, Workers

log = logging.getLogger(__name__)

GRACE = 1.0
"""Seconds that the tasks of handlers have to end when the process does."""

_ENDING = (signal.SIGTERM, signal.SIGINT)


def _unmet(missing: Unmet, protocol: type[Adapter] | Adapter) -> ConfigError:
    """Return why a protocol cannot run a handler: where it stands, and what or who could."""
    handler = missing.handler
    found = [protocol.remedies[need] for need in missing.needs if need in protocol.remedies]
    remedy = f": {found[0]}" if found else f" ({adapters.able(missing)})"
    return ConfigError(
        f"{missing}; {protocol.name} cannot{remedy}", file=shown(handler.file), line=handler.line
    )


def _blinded(handler: Handler, use: Use, protocol: type[Adapter] | Adapter) -> ConfigError:
    """Return why a handler must not run that reads, undeclared, what a protocol never tells."""
    owner = "message" if ARGUMENTS[handler.stage].startswith("message") else "session"
    fact = repr(use.capability)
    return ConfigError(
        f"{handler.name} reads {use.said}; {protocol.name} cannot tell it "
        f"({adapters.telling(use.capability)}): declare "
        f"needs={{{fact}}} to run only where it is known, or wants={{{fact}}} and ask "
        f"{owner}.can({fact})",
        file=shown(handler.file),
        line=use.line,
    )


def refusals(
    policies: Sequence[Loaded], protocol: type[Adapter] | Adapter
) -> Iterator[ConfigError]:
    """Yield why a protocol cannot serve each handler that it cannot."""
    for missing in unmet(policies, protocol.capabilities):
        yield _unmet(missing, protocol)
    for loaded in policies:
        for handler in loaded.policy.handlers:
            for use in blind(handler, protocol.capabilities):
                yield _blinded(handler, use, protocol)


def check(policies: Sequence[Loaded], protocol: type[Adapter] | Adapter) -> None:
    """Raise ConfigError for the first handler that a protocol cannot serve."""
    for refusal in refusals(policies, protocol):
        raise refusal


class _Told(SystemExit):
    """A signal has told the process to end before anything was served."""


@final
class _Service:
    """One protocol being served: its adapter and its engine."""

    def __init__(self, name: str, config: Config) -> None:
        self.protocol = adapters.load(name)
        self.adapter: Adapter = self.protocol(config.options(name, self.protocol.Options))

    def begin(self, config: Config, policies: Sequence[Loaded]) -> None:
        """Make the engine."""
        capabilities = self.adapter.capabilities
        self.engine = Engine(
            policies, capabilities, defaults=config.defaults, limits=config.limits
        )

    def chain(self, config: Config, policies: Sequence[Loaded]) -> Chain:
        """Return other policies for this protocol; ConfigError where it cannot serve them now.

        Its own table has to be right too, for the next start.
        """
        config.options(self.protocol.name, self.protocol.Options)
        check(policies, self.adapter)
        chain = Chain(policies, self.adapter.capabilities, config.defaults)
        reason = self.adapter.accepts(chain.interest)
        if reason is not None:
            raise ConfigError(reason)
        self.adapter.refresh()
        return chain


@final
class Gateway:
    """Protocols, the policies that all of them serve, and the way to read them again."""

    def __init__(self, name: str | None, configure: Callable[[], Config]) -> None:
        """Choose a protocol, or with None every one that the configuration has a table for.

        ``configure`` reads the configuration, now and at SIGHUP.
        """
        self._name = name
        self._configure = configure
        self._resources = AsyncExitStack()
        self._reloading: asyncio.Task[None] | None = None
        self._draining: asyncio.Task[None] | None = None
        self._fixed = Config()  # as it was at start
        self._services: list[_Service] = []
        self._lifeline: int | None = None  # of a worker
        self._told = ""  # the signal that came before anything was served
        self._interruptible = False

    def run(self) -> bool:
        """Serve until the protocols end.  Raises ConfigError before it does, never later.

        False where a handler did not end when it was told to: the process has to be left then.
        """
        try:
            config, policies = self._begin()
        except _Told:
            log.warning("%s", self._told)
            return True
        stdio.occupy()  # a policy may have closed one
        runner = asyncio.Runner(loop_factory=_loop_factory())
        loop = runner.get_loop()
        try:
            _run(loop, loop.create_task(self._serve(config, policies)))
        except _Told:
            log.warning("%s", self._told)
        finally:
            ended = _end_tasks(loop)
            if ended:
                runner.close()
        return ended

    def _begin(self) -> tuple[Config, list[Loaded]]:
        """Claim what the protocols need, then load the policies."""
        if hasattr(sys.stdout, "reconfigure"):  # what policies print is seen at once, in the log
            sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a reload before there is anything to
        before = {number: signal.signal(number, self._tell) for number in _ENDING}
        lifeline = os.environ.pop(LIFELINE, "")  # not for policies, nor for what they start
        if lifeline:
            self._lifeline = int(lifeline)
            os.set_inheritable(self._lifeline, False)
        try:
            config = self._configure()
            self._fixed = config
            self._services = [_Service(name, config) for name in self._names(config)]
            for service in self._services:
                service.adapter.claim()  # before any policy code is imported
            policies = self._load(config)
        except BaseException:
            self._release()
            for number, handler in before.items():
                signal.signal(number, handler)
            raise
        return config, policies

    def _load(self, config: Config) -> list[Loaded]:
        """Load the policies; a signal ends that, whatever a policy makes of it."""
        self._interruptible = True
        try:
            self._leave_if_told()
            policies = load_all(config.policies)
            for service in self._services:
                check(policies, service.adapter)
        except ConfigError:
            self._leave_if_told()
            raise
        finally:
            self._interruptible = False
        self._leave_if_told()
        return policies

    def _tell(self, number: int, frame: object) -> None:
        """Hear a signal as long as no loop does."""
        self._told = signal.Signals(number).name
        if self._interruptible:
            raise _Told

    def _leave_if_told(self) -> None:
        if self._told:
            raise _Told

    def _release(self) -> None:
        for service in self._services:
            service.adapter.release()

    def run_workers(self, argv: Sequence[str], policies: Sequence[str], number: int) -> int:
        """Serve in worker processes, and return the exit status.  Raises as `run`.

        ``argv`` is the command line of a worker without its POLICY arguments and the sockets
        that it is to take over.
        The policies are loaded here too: what is wrong with them is told once.
        """
        try:
            self._begin()
            try:
                return self._keep_workers(argv, policies, number)
            finally:
                self._interruptible = False
                self._release()
        except _Told:
            log.warning("%s", self._told)
            return 0

    def _keep_workers(self, argv: Sequence[str], policies: Sequence[str], number: int) -> int:
        self._interruptible = True  # until the loop of the workers hears signals
        self._leave_if_told()
        (service,) = self._services
        descriptors = service.adapter.descriptors()
        if not descriptors:
            raise ConfigError(f"{service.protocol.name} has one process only: leave --workers out")
        listen = [word for address in descriptors.values() for word in ("--listen", address)]
        log.info("%d workers", number)
        workers = Workers(
            [*argv, *listen, "--", *policies], [*descriptors], number, service.adapter.release
        )
        return asyncio.run(workers.run())

    def _names(self, config: Config) -> list[str]:
        """Return the protocols to serve; those on stdin want to be named, and are alone there."""
        if self._name is not None:
            return [self._name]
        names = [name for name in config.adapters if not adapters.load(name).on_stdin]
        if not names:
            raise ConfigError(
                "no protocol to serve: name one with -p, or give it a table such as [milter]",
                file=config.file,
            )
        return names

    async def _serve(self, config: Config, policies: Sequence[Loaded]) -> None:
        for service in self._services:
            service.begin(config, policies)
        watchdog = Watchdog()
        watchdog.start()
        try:
            async with self._resources:
                await self._prepare(policies)
                loop = asyncio.get_running_loop()
                loop.add_signal_handler(signal.SIGHUP, self._hang_up)
                # The parent of a worker has it wait until now.
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
                for number in _ENDING:
                    loop.add_signal_handler(number, self._drain, number.name)
                self._watch_parent(loop)
                gc.collect()
                gc.freeze()  # what is there now stays: it need not be looked at again and again
                await self._serve_all()
        finally:
            watchdog.stop()
            for service in self._services:
                service.engine.threads.stop()

    async def _serve_all(self) -> None:
        """Serve every protocol; where one fails, that is the end of all."""
        serving = [ShieldedStart(s.adapter.serve(s.engine)) for s in self._services]
        waiting = set(serving)
        while waiting and not any(_failed(task) for task in serving):
            waiting = await _still_waiting(waiting)
        if waiting:
            await self._drain_all()
        while waiting:
            waiting = await _still_waiting(waiting)
        for task in serving:
            task.result()

    async def _prepare(self, policies: Sequence[Loaded]) -> None:
        """Enter the resources; where one fails or a signal comes, nothing is served."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def give_up(signal_name: str) -> None:
            self._told = signal_name
            if task is not None:
                task.cancel()

        for number in _ENDING:
            loop.add_signal_handler(number, give_up, number.name)
        try:
            self._leave_if_told()
            for service in self._services:
                service.adapter.confine()
            await self._enter(policies)
            self._leave_if_told()
        except BaseException:
            self._release()
            self._leave_if_told()
            raise

    async def _enter(self, policies: Sequence[Loaded]) -> None:
        for loaded in policies:
            for resource in loaded.policy.resources:
                try:
                    await self._resources.enter_async_context(resource)
                except BaseException as error:
                    kind = type(resource).__name__
                    raise ConfigError(
                        f"policy {loaded.name}: its resource {kind} cannot be entered: "
                        f"{type(error).__name__}: {error}"
                    ) from error

    def _drain(self, signal_name: str) -> None:
        """Have the adapters end at SIGTERM; they are asked once at a time."""
        log.warning("%s", signal_name)
        if self._draining is None or self._draining.done():
            self._draining = ShieldedStart(self._drain_all(), loop=asyncio.get_running_loop())

    async def _drain_all(self) -> None:
        draining = [ShieldedStart(service.adapter.drain()) for service in self._services]
        waiting = set(draining)
        while waiting:
            waiting = await _still_waiting(waiting)
        for task in draining:
            task.result()

    def _tell_unread(self, config: Config) -> None:
        """Say which tables are read at start only, and have changed."""
        tables = dict.fromkeys([*self._fixed.adapters, *config.adapters])
        changed = [t for t in tables if self._fixed.adapters.get(t) != config.adapters.get(t)]
        changed += [t for t in ("limits", "log") if getattr(config, t) != getattr(self._fixed, t)]
        if changed:
            names = ", ".join(f"[{table}]" for table in changed)
            log.warning("%s is read at start only: restart for what has changed in it", names)

    def _watch_parent(self, loop: asyncio.AbstractEventLoop) -> None:
        """End with the process that has started this worker."""
        lifeline = self._lifeline
        if lifeline is None:
            return

        def gone() -> None:
            loop.remove_reader(lifeline)
            self._drain("the process that started this worker is gone")

        loop.add_reader(lifeline, gone)

    def _hang_up(self) -> None:
        """Reload at SIGHUP, once at a time."""
        if self._reloading is None or self._reloading.done():
            self._reloading = ShieldedStart(self._reload(), loop=asyncio.get_running_loop())

    async def _reload(self) -> None:
        """Use the configuration as it is now; keep the old one where that is not possible."""
        try:
            config = self._configure()
            policies = load_all(config.policies)
            chains = [service.chain(config, policies) for service in self._services]
            await self._enter(policies)
        except ConfigError as error:
            log.error("reload refused, the old policies go on: %s", error)
        except BaseException as error:
            trouble(log, error, "reload", "reload", "-")
        else:
            for service, chain in zip(self._services, chains, strict=True):
                service.engine.use(chain)
            self._tell_unread(config)
            log.info("reloaded: %s", ", ".join(loaded.name for loaded in policies))


async def _still_waiting(tasks: set[ShieldedStart]) -> set[ShieldedStart]:
    """Wait until one of them ends, and return the others; a policy may cancel every task."""
    try:
        _, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        await stay()
        return {task for task in tasks if not task.done()}
    return waiting


def _failed(task: asyncio.Task[None]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is not None


def _run(loop: asyncio.AbstractEventLoop, serving: asyncio.Task[None]) -> None:
    """Run the loop until serving has ended, whatever else would stop it.

    SystemExit in a task or a callback of a policy comes out of the loop, and `loop.stop()`
    ends it; behind OpenSMTPD either would end the mail server.
    """
    while not serving.done():
        try:
            loop.run_until_complete(serving)
        except BaseException as error:
            if loop.is_closed():
                raise
            if not serving.done():
                log.critical("a policy tried to end the process: %s", type(error).__name__)
    serving.result()


def _end_tasks(loop: asyncio.AbstractEventLoop) -> bool:
    """Cancel what handlers left behind; False where something goes on regardless."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        try:
            loop.run_until_complete(asyncio.wait(tasks, timeout=GRACE))
        except BaseException as error:
            log.error("a handler's task ended with %s", type(error).__name__)
    pending = [task for task in tasks if not task.done()]
    for task in pending:
        log.error("a handler did not end when it was cancelled: %r", task.get_coro())
    own = threading.main_thread()
    kept = [t for t in threading.enumerate() if t is not own and not t.daemon]
    return not pending and not kept  # closing the loop waits for the threads of its executor


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
