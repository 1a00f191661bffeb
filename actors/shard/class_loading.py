"""Class loading: loads the classes of a shard's invocations; retries while no program has uploaded a class.

A missing class or handler existed when the invocation was accepted, except if the invocation was called by name alone
and has not begun: then it is refused. Otherwise it waits until a program comes that has the class.

Does not own the code itself (`code`), nor the invocation once its class is there (`shard`).
"""

import asyncio
import logging
from collections.abc import Callable

from actors.activation.activation import Activation
from actors.activation.endings import named
from actors.activation.open_invocation import OpenInvocation, Renewal
from actors.activation.services import Services
from actors.activation.staging import Staging
from actors.backoff import Patience
from actors.blocks.cancel import ending_in, while_paused
from actors.code.code import MISSING_FOR, UNSENT, MissingCodeError, is_unsent
from actors.errors import TerminalError
from actors.objects.objects import Declaration
from actors.processes import this_program
from actors.requests.schedule import SCHEDULED_AT
from actors.tracebacks import traced
from journal.records import EventKind
from journal.texts import error_text

from .attempts import Attempts

logger = logging.getLogger("actors")


class ClassLoader:
    """The class loader of one shard."""

    def __init__(
        self,
        services: Services,
        staging: Staging,
        attempts: Attempts,
        sort: Callable[[Activation], None],
        load_again: Callable[[OpenInvocation, Activation], None],
    ) -> None:
        self._services, self._staging, self._attempts = services, staging, attempts
        self._sort, self._load_again = sort, load_again
        self._patience = Patience("code")
        self._unfound: set[str] = set()
        """Classes looked for in vain, whose waiting callers were told."""

    def of(self, run: OpenInvocation, activation: Activation) -> Declaration | None:
        """Return the class of an invocation; None if it must be fetched, as it is not here or lacks the handler."""
        if run.renewal is not None and not self.renew(run, activation):
            return None
        found = self._services.code.find(run.type_name, run.message.code)
        if found is None or run.message.handler in found.handlers:
            return found
        return None if _lacks(found, run) else found

    def renew(self, run: OpenInvocation, activation: Activation) -> bool:
        """Let an invocation go on with the newest code of its class; return whether that code is here."""
        newest = self._services.code.newest(run.type_name)
        if newest is None:
            return False
        declared, code = newest
        if _fits(declared, run):
            # The same class may have no hash here: this program has not uploaded it.
            mine = run.declared or self._services.code.find(run.type_name, run.message.code)
            is_other = declared is not mine and code != run.message.code
            if run.renewal is Renewal.RESUMED or (is_other and run.message.code):
                code = code if is_other else run.message.code
                activation.staged = max(activation.staged, self._staging.renewed(run, code))
            if run.declared is not None:
                run.declared, run.handler = declared, declared.handler(run.message.handler)
                run.policy = self._services.policy_of(run.handler, declared.options.policy)
        elif run.renewal is Renewal.RESUMED:
            logger.warning("%s goes on with the code it has: the newest has no such handler", named(run))
        run.renewal = None
        return True

    async def fetch_newest(self, run: OpenInvocation, activation: Activation) -> None:
        """Fetch the newest code of an invocation's class, then begin its next attempt."""
        try:
            await self._fetched(run, "")
        except Exception as error:  # noqa: BLE001  # the user's code may raise anything as it is loaded
            self._stay(run, error)
        if run.ended or run.execution is not None:
            return
        if run.renewal is not None and not self.renew(run, activation):
            self._stay(run, None)
        self._attempts.begin(run, activation)

    def _stay(self, run: OpenInvocation, error: Exception | None) -> None:
        run.renewal = None
        if error is not None and not isinstance(error, MissingCodeError):
            logger.warning(
                "%s goes on with the code it has: the newest cannot be loaded\n%s", named(run), traced(error)
            )

    async def fetch(self, run: OpenInvocation, activation: Activation) -> None:
        """Fetch the class of the first invocation in `arrivals`; a class that cannot be loaded fails the attempt."""
        error: Exception | None = None
        missing = ""
        try:
            digest = "" if run.renewal is not None else run.message.code
            found = await self._fetched(run, digest)
            if run.renewal is None and _lacks(found, run):
                missing = found.without(run.message.handler)
        except Exception as raised:  # noqa: BLE001  # the user's code may raise anything as it is loaded
            error = raised
        if run.renewal is not None and error is not None:
            self._stay(run, error)
            error = None
        if isinstance(error, MissingCodeError) and (run.message.code or run.records):
            error, missing = None, self._where(run)
        if missing and not run.ended:
            await self._wait(run, activation, missing)
            if activation.key is None:
                return
        activation.loading = False
        if error is not None and not run.ended:
            assert activation.arrivals is not None
            activation.arrivals.remove(run)
            activation.sharing.add(run)
            if isinstance(error, TerminalError):
                self._attempts.reject(run, activation, error)
            else:
                self._attempts.fail(run, activation, error)
        self._sort(activation)

    async def _fetched(self, run: OpenInvocation, digest: str) -> Declaration:
        try:
            return await self._patience.until_answered(lambda: self._services.code.fetch(run.type_name, digest))
        except (SystemExit, KeyboardInterrupt) as error:  # raised by a user's module, they would end the host
            raise RuntimeError(f"the code of {run.type_name} cannot be loaded: {error_text(error)}") from error

    def _where(self, run: OpenInvocation) -> str:
        if is_unsent(run.message.code):
            sender = run.message.code.removeprefix(UNSENT)
            return (
                f'its class lives in a program that has not sent it (hosts="local"{sender and f", the {sender}"}), and '
                f"the {this_program()}, which has the shard, is another: end this one, or start the one with the class"
            )
        return f"no class {run.type_name!r} with its code is known: start a program that has it, and use it there once"

    async def _wait(self, run: OpenInvocation, activation: Activation, why: str) -> None:
        """Wait before the next look for a class that only another program has; tell a waiting caller.

        An object serves nothing meanwhile, because the waiting invocation may hold it; a service goes on.
        """
        what = f"{run.type_name} {run.message.handler} {run.message.code}"
        if what not in self._unfound:
            self._unfound.add(what)
            text = f"{named(run)} waits: {why}"
            if what not in self._services.unfound:
                self._services.unfound.add(what)
                logger.warning("%s", text)
            self._staging.notice(run.id, text.encode(errors="backslashreplace"), [])
        if activation.key is None:
            assert activation.arrivals is not None
            activation.arrivals.remove(run)
            activation.sharing.add(run)
            activation.loading = False
            self._sort(activation)
        run.renewal = Renewal.MISSING
        self._end_if_asked(run, activation, why)
        await asyncio.sleep(MISSING_FOR)
        run.renewal = None
        resume = next((event for event in run.pending if event.kind is EventKind.RESUME), None)
        if resume is not None:
            run.pending.remove(resume)
            run.spent.append(resume.id)
            run.renewal = Renewal.RESUMED
        if activation.key is None and not run.ended:
            self._load_again(run, activation)

    def _end_if_asked(self, run: OpenInvocation, activation: Activation, why: str) -> None:
        kind = ending_in(run.pending)
        if kind is not None:
            for queue in (activation.arrivals, activation.mailbox):
                if queue and run in queue:
                    queue.remove(run)
            self._attempts.end_at_once(run, activation, while_paused(kind, why), kind)


def _lacks(found: Declaration, run: OpenInvocation) -> bool:
    """Whether the class lacks the handler, although the class that accepted the invocation had it.

    A schedule's invocation is for the newest class: it is refused, and the schedule's status says so.
    """
    is_fired = SCHEDULED_AT in (run.message.headers or ())
    was_there = bool(run.records) or (bool(run.message.code) and not is_fired)
    is_here = run.message.handler in found.handlers or found.built_in(run.message.handler) is not None
    return not is_here and was_there


def _fits(found: Declaration, run: OpenInvocation) -> bool:
    """Whether an invocation can go on with another version of its class."""
    name, before = run.message.handler, run.declared
    handler = found.handlers.get(name) or found.built_in(name)
    if handler is None or found.is_service != ("/" not in run.message.target):
        return False
    return before is None or (found.is_workflow == before.is_workflow and handler.exclusive == run.handler.exclusive)
