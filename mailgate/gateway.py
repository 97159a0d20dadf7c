"""The running process.  It only puts things in order: claim, load, check, serve, reload."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import final

from mailgate import adapter as adapters
from mailgate.adapter import Adapter
from mailgate.chain import Chain, Loaded, Unmet, unmet
from mailgate.config import Config, load_all, shown
from mailgate.engine import Engine
from mailgate.errors import ConfigError
from mailgate.logs import trouble
from mailgate.watchdog import Watchdog

log = logging.getLogger(__name__)

GRACE = 1.0
"""Seconds that the tasks of handlers have to end when the process does."""


def refusal(missing: Unmet, protocol: str) -> ConfigError:
    """Return why a protocol cannot run a handler: where it stands, and who could."""
    handler = missing.handler
    who = adapters.able(missing)
    return ConfigError(
        f"{missing}; {protocol} cannot ({who})", file=shown(handler.file), line=handler.line
    )


def check(policies: Sequence[Loaded], protocol: type[Adapter]) -> None:
    """Raise ConfigError for the first handler that a protocol cannot serve."""
    for missing in unmet(policies, protocol.capabilities):
        raise refusal(missing, protocol.name)


@final
class Gateway:
    """One protocol, its policies, and the way to read them again."""

    def __init__(self, name: str, configure: Callable[[], Config]) -> None:
        """Choose a protocol; ``configure`` reads the configuration, now and at SIGHUP."""
        self._protocol = adapters.load(name)
        self._configure = configure
        self._resources = AsyncExitStack()
        self._reloading: asyncio.Task[None] | None = None
        self._draining: asyncio.Task[None] | None = None
        self._fixed: tuple[object, ...] = ()

    def run(self) -> bool:
        """Serve until the protocol ends.  Raises ConfigError before it does, never later.

        False where a handler did not end when it was told to: the process has to be left then.
        """
        config = self._configure()
        serving = self._protocol(config.options(self._protocol.name, self._protocol.Options))
        self._fixed = (config.limits, config.log, config.adapters)
        serving.claim()  # before any policy code is imported
        policies = load_all(config.policies)
        check(policies, self._protocol)
        runner = asyncio.Runner(loop_factory=_loop_factory())
        loop = runner.get_loop()
        try:
            _run(loop, loop.create_task(self._serve(serving, config, policies)))
        finally:
            ended = _end_tasks(loop)
            if ended:
                runner.close()
        return ended

    async def _serve(self, serving: Adapter, config: Config, policies: Sequence[Loaded]) -> None:
        engine = Engine(
            policies, self._protocol.capabilities, defaults=config.defaults, limits=config.limits
        )
        watchdog = Watchdog()
        watchdog.start()
        try:
            async with self._resources:
                await self._enter(policies)
                loop = asyncio.get_running_loop()
                loop.add_signal_handler(signal.SIGHUP, self._hang_up, serving, engine)
                for number in (signal.SIGTERM, signal.SIGINT):
                    loop.add_signal_handler(number, self._drain, serving, number.name)
                await serving.serve(engine)
        finally:
            watchdog.stop()
            engine.threads.stop()

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

    def _drain(self, serving: Adapter, signal_name: str) -> None:
        """Have the adapter end at SIGTERM; it is asked once at a time."""
        log.warning("%s", signal_name)
        if self._draining is None or self._draining.done():
            self._draining = asyncio.get_running_loop().create_task(serving.drain())

    def _hang_up(self, serving: Adapter, engine: Engine) -> None:
        """Reload at SIGHUP, once at a time."""
        if self._reloading is None or self._reloading.done():
            task = asyncio.get_running_loop().create_task(self._reload(serving, engine))
            self._reloading = task

    async def _reload(self, serving: Adapter, engine: Engine) -> None:
        """Use the configuration as it is now; keep the old one where that is not possible."""
        try:
            config = self._configure()
            policies = load_all(config.policies)
            check(policies, self._protocol)
            chain = Chain(policies, self._protocol.capabilities, config.defaults)
            reason = serving.accepts(chain.interest)
            if reason is not None:
                raise ConfigError(reason)
            await self._enter(policies)
        except ConfigError as error:
            log.error("reload refused, the old policies go on: %s", error)
        except BaseException as error:
            trouble(log, error, "reload", "reload", "-")
        else:
            engine.use(chain)
            if (config.limits, config.log, config.adapters) != self._fixed:
                log.warning("limits, log and protocol tables are read at start: restart for them")
            log.info("reloaded: %s", ", ".join(loaded.name for loaded in policies))


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
