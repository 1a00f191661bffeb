"""Plays: handlers that do what a program says, and note in their object's state what they did and saw.

A program is data: a node is a dict with what to `do`, a number (`n`) that no other node of the program has, and what
that needs. An invocation gets its path (its caller's, and the node that started it), the nodes to play, and an
environment: ids that were not known when the program was made.

What a node returns, and whether it raises, never depends on how long anything takes: what is waited for with a short
time-out never comes before it, what is waited for with a long one always does. What does depend on it (who of a race is
first, what an object shared with others held) is noted in the log of the object, where the audit finds it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol, TypeAlias

from actors import (
    Cancelled,
    Context,
    Invocation,
    Policy,
    Retry,
    Service,
    TerminalError,
    VirtualObject,
    Workflow,
    handler,
    resolve,
    shared,
    state,
)
from actors import reject as reject_awakeable
from tests.chaos import hostile

Node: TypeAlias = dict[str, Any]
Environment: TypeAlias = dict[str, Any]

SHORT_S: Final = 0.4
"""What is waited for so long never comes meanwhile."""
LONG_S: Final = 864_000.0
"""What is waited for so long always comes meanwhile."""
QUICK: Final = Retry(initial=0.1, max_interval=0.5)
REFUSED: Final = ["error", 500, ""]
"""What comes of a promise or an awakeable that was rejected."""
FIELDS: Final = ("one", "two", "three")


class Outside(Protocol):
    """What lies outside of the durable world."""

    async def act(self, step_id: str, fails: int) -> str:
        """Note that an action of a step takes place, fail so many times, then return what names this very action."""
        ...

    async def undo(self, step_id: str, path: str, thread: str, n: int) -> None:
        """Note that what a node of a thread of an invocation did is undone."""
        ...

    async def complete(self, id_: str, value: Any, refuses: bool) -> None:
        """Have somebody outside complete an awakeable."""
        ...


class _Place:
    """Where the outside is."""

    def __init__(self) -> None:
        self.outside: Outside | None = None

    def __call__(self) -> Outside:
        assert self.outside is not None
        return self.outside


outside = _Place()


class Again(Exception):
    """What is worth another attempt."""


async def act(ctx: Context, fails: int, pause_s: float) -> str:
    """Do what a step does."""
    if pause_s:
        await asyncio.sleep(pause_s)
    return await outside().act(ctx.step_id, fails)


async def undo(ctx: Context, path: str, thread: str, n: int) -> None:
    """Undo what a node did."""
    await outside().undo(ctx.step_id, path, thread, n)


async def refuse(ctx: Context, message: str, *, at_once: bool) -> None:
    """Do what a step does that cannot be done."""
    await outside().act(ctx.step_id, 0)
    if at_once:
        raise TerminalError(message, 422)
    raise ConnectionError(message)


async def complete(ctx: Context, id_: str, value: Any, refuses: bool) -> None:
    """Have an awakeable completed from outside."""
    await outside().act(ctx.step_id, 0)
    await outside().complete(id_, value, refuses)


class Book(VirtualObject):
    """An object of a program."""

    log: list[list[Any]] = state(default_factory=list)
    one: int = state(0)
    two: int = state(0)

    @handler(policy=Policy(retry=QUICK))
    async def play(self, ctx: Context, path: str, parts: list[Node], environment: Environment) -> list[Any]:
        return await Player(self, ctx, path, environment).play_all(parts)

    @handler
    def post(self, ctx: Context, path: str, forward: list[str]) -> None:
        """Note that it came, and send it on."""
        self.log.append([path, "", "begin", 0])
        if forward:
            Book[forward[0]].post.send(f"{path}.0", forward[1:])

    @handler
    async def echo(self, ctx: Context, path: str, values: list[Any]) -> list[Any]:
        self.log.append([path, "", "begin", 0])
        return values

    @shared
    async def held(self, ctx: Context) -> dict[str, Any]:
        """Return all that it holds."""
        return {name: ctx.get(name) for name in ctx.keys()}  # noqa: SIM118  # a context is no dict

    @shared
    async def view(self, ctx: Context, pause_s: float) -> bool:
        """Look before a wait and after it: what is committed then has all that was there before."""
        before = [list(entry) for entry in self.log]
        await asyncio.sleep(pause_s)
        return before == self.log[: len(before)]


class Chore(Service):
    """A handler of no object."""

    @handler(policy=Policy(retry=QUICK))
    async def play(self, ctx: Context, path: str, parts: list[Node], environment: Environment) -> list[Any]:
        return await Player(None, ctx, path, environment).play_all(parts)

    @handler
    async def join(self, ctx: Context, ref: Invocation[Any], pause_s: float) -> Any:
        """Wait for what somebody else has started."""
        await asyncio.sleep(pause_s)
        return await _settled(ref)


class Course(Workflow):
    """A workflow that waits for a promise; others complete it."""

    @handler
    async def run(self, ctx: Context, path: str, parts: list[Node], reminds: bool) -> list[Any]:
        await Player(None, ctx, path, {}).play_all(parts)
        out: list[Any] = []
        if reminds:
            try:
                out.append(await asyncio.wait_for(ctx.promise("approved", int), SHORT_S))
            except TimeoutError:
                pass
        found = [await ctx.promise("approved", int) for _ in range(2)]
        assert found[0] == found[1] == ctx.promise("approved", int).peek()
        return ["approved", found[0]]

    @shared
    async def approve(self, ctx: Context, number: int) -> str:
        ctx.promise("approved", int).resolve(number)
        assert await ctx.promise("approved", int) == number
        return "done"

    @shared
    async def refuse(self, ctx: Context, number: int) -> str:
        ctx.promise("approved", int).reject(f"{number}")
        return "done"


class Player:
    """Plays the nodes of one invocation. Nodes that run at once are threads, each with a name that says where."""

    def __init__(self, book: Book | None, ctx: Context, path: str, environment: Environment) -> None:
        self._book, self._ctx, self._path, self._environment = book, ctx, path, environment

    async def play_all(self, parts: list[Node]) -> list[Any]:
        self._note("", "begin", 0)
        results = await self._all(parts, "")
        self._note("", "end", 0)
        return results

    def _note(self, thread: str, what: str, n: int, *more: Any) -> None:
        if self._book is not None:
            self._book.log.append([self._path, thread, what, n, *more])

    async def _all(self, parts: list[Node], thread: str) -> list[Any]:
        return [await self._play(part, thread) for part in parts]

    async def _play(self, node: Node, thread: str) -> Any:
        return await getattr(self, f"_{node['do']}")(node, thread)

    async def _attempt(self, node: Node, thread: str) -> Any:
        """Play the parts; return what they return, or what they raise."""
        try:
            return await self._all(node["parts"], thread)
        except TerminalError as error:
            return told(error)

    # State

    async def _noted(self, node: Node, thread: str) -> int:
        self._note(thread, "noted", node["n"])
        return node["n"]

    async def _write(self, node: Node, thread: str) -> None:
        self._ctx.set(node["field"], node["n"])
        self._note(thread, "write", node["n"], node["field"])

    async def _add(self, node: Node, thread: str) -> None:
        value = self._ctx.get(node["field"], 0) + node["n"]
        self._ctx.set(node["field"], value)
        self._note(thread, "add", node["n"], node["field"], value)

    async def _clear(self, node: Node, thread: str) -> None:
        self._ctx.clear(node["field"])
        self._note(thread, "clear", node["n"], node["field"])

    async def _read(self, node: Node, thread: str) -> None:
        names = self._ctx.keys()
        names.remove("log")
        self._note(thread, "read", node["n"], {name: self._ctx.get(name) for name in names})

    # Steps and time

    async def _step(self, node: Node, thread: str) -> int:
        ctx = self._ctx
        if node["undoes"]:

            def undone(run: str) -> Awaitable[None]:
                return undo(ctx, self._path, thread, node["n"])

            run = await ctx.run(f"step {node['n']}", act, ctx, node["fails"], node["pause"], retry=QUICK, undo=undone)
        else:
            run = await ctx.run(f"step {node['n']}", act, ctx, node["fails"], node["pause"], retry=QUICK)
        self._note(thread, "ran", node["n"], self._ctx.id, run)
        return node["n"]

    async def _defer(self, node: Node, thread: str) -> None:
        self._ctx.defer(f"defer {node['n']}", undo, self._ctx, self._path, thread, node["n"])

    async def _refused(self, node: Node, thread: str) -> None:
        at_once = node["at_once"]
        retry = QUICK if at_once else Retry(initial=0.1, max_attempts=2)
        await self._ctx.run(f"refused {node['n']}", _partial(refuse, at_once), self._ctx, f"{node['n']}", retry=retry)

    async def _sleep(self, node: Node, thread: str) -> int:
        if node["ours"]:
            await self._ctx.sleep(node["pause"], name="pause")
        else:
            await asyncio.sleep(node["pause"])
        return node["n"]

    async def _fail(self, node: Node, thread: str) -> None:
        raise TerminalError(f"fail {node['n']}", 418)

    async def _stumble(self, node: Node, thread: str) -> int:
        if self._ctx.attempt <= node["times"]:
            raise Again(f"attempt {self._ctx.attempt} of {node['times']} that fail")
        return node["n"]

    async def _drawn(self, node: Node, thread: str) -> bool:
        """What is drawn is the same in every attempt: what another object was told is what is still here."""
        ctx = self._ctx
        drawn = [ctx.random.random(), str(ctx.uuid4()), ctx.now().isoformat()]
        return await Book[node["key"]].echo.remote(self._child(node), drawn) == drawn

    async def _pest(self, node: Node, thread: str) -> str:
        """Ask for a hostility; return what is wrong with how it ended."""
        return await hostile.wrong_with(node["name"], node["key"])

    # Calls

    def _child(self, node: Node) -> str:
        return f"{self._path}.{node['n']}"

    def _target(self, node: Node) -> Any:
        return (Chore if node["key"] is None else Book[node["key"]]).play

    async def _call(self, node: Node, thread: str) -> Any:
        if node["timed"]:
            return await self._target(node).options(timeout=LONG_S).remote(self._child(node), node["parts"], {})
        if node["twice"]:
            target = self._target(node).options(idempotency_key=self._child(node))
            refs = [target.remote(self._child(node), node["parts"], {}) for _ in range(2)]
            first, second = await asyncio.gather(*(_settled(ref) for ref in refs))
            assert first == second
            return first
        ref = self._target(node).remote(self._child(node), node["parts"], {})
        if node["pause"]:
            await asyncio.sleep(node["pause"])
        return await ref

    async def _send(self, node: Node, thread: str) -> None:
        target = self._target(node)
        if node["pause"]:
            target = target.options(delay=node["pause"])
        target.send(self._child(node), node["parts"], {})

    async def _post(self, node: Node, thread: str) -> None:
        Book[node["key"]].post.send(self._child(node), node["forward"])

    async def _look(self, node: Node, thread: str) -> bool:
        return await Book[node["key"]].view.remote(node["pause"])

    # What others complete

    async def _awake(self, node: Node, thread: str) -> list[Any]:
        gate = self._ctx.awakeable()
        out: list[Any] = []
        if node["reminds"]:
            out.append(await _times_out(gate))
        environment = {f"gate{node['n']}": gate.id}
        if node["by"] == "outside":
            await self._ctx.run("complete", complete, self._ctx, gate.id, node["n"], node["refuses"], retry=QUICK)
        elif node["by"] == "call":
            out.append(await self._target(node).remote(self._child(node), node["parts"], environment))
        else:
            self._target(node).send(self._child(node), node["parts"], environment)
        return out + [await _settled(gate) for _ in range(node["times"])]

    async def _complete(self, node: Node, thread: str) -> None:
        """Complete an awakeable, again with something else: the first one counts."""
        id_ = self._environment[f"gate{node['gate']}"]
        if node["refuses"]:
            reject_awakeable(id_, f"{node['gate']}")
        else:
            resolve(id_, node["gate"])
        if node["again"]:
            resolve(id_, "too late")

    async def _tell(self, node: Node, thread: str) -> list[Any]:
        ref: Invocation[Any] = self._target(node).remote(self._child(node), node["parts"], {})
        out: list[Any] = []
        if node["reminds"]:
            out.append(await _times_out(ref))
        for number in range(node["count"]):
            ref.signal(f"s{node['n']}", [node["n"], number])
            if node["pause"] and number % 2:
                await asyncio.sleep(node["pause"])
        return [*out, await _settled(ref)]

    async def _listen(self, node: Node, thread: str) -> list[Any]:
        out: list[Any] = []
        for _ in range(node["count"]):
            if node["reminds"]:
                out.append(await _times_out(self._ctx.signal("never")))
            out.append(await self._ctx.signal(f"s{node['tell']}", list[int]))
            self._note(thread, "noted", node["n"])
        return out

    async def _never(self, node: Node, thread: str) -> None:
        """Wait for what never comes, after what takes no time."""
        await self._all(node["parts"], thread)
        if node["how"] == "signal":
            await self._ctx.signal("never")
        elif node["how"] == "sleep":
            await asyncio.sleep(LONG_S)
        else:
            await self._ctx.awakeable()
        raise AssertionError("what never comes has come")

    # Ended from outside

    async def _cancel(self, node: Node, thread: str) -> Any:
        """Cancel or kill a call when it has come to where it waits for ever."""
        reached = self._ctx.awakeable()
        ref = self._target(node).remote(self._child(node), node["parts"], {f"gate{node['n']}": reached.id})
        await reached
        if node["kills"]:
            ref.kill()
        else:
            ref.cancel()
        return await _settled(ref)

    async def _held(self, node: Node, thread: str) -> str:
        """Say that it is here, wait for what ends it, and compensate; a call that it waits for may say so for it."""
        self._note(thread, "noted", node["n"])
        ends: type[BaseException] = asyncio.CancelledError if node["how"] == "lock" else Cancelled
        try:
            await self._hold(node)
        except ends:
            await self._all(node["parts"], thread)
            if not node["survives"]:
                raise
            return "survived"
        raise AssertionError("it was not ended")

    async def _hold(self, node: Node) -> None:
        gate = self._environment[f"gate{node['gate']}"] if node["gate"] else None
        if node["how"] == "call":
            deeper = node["deeper"]
            await self._target(deeper).remote(self._child(deeper), deeper["parts"], self._environment)
        if gate is not None:
            resolve(gate, node["n"])
        match node["how"]:
            case "sleep":
                await self._ctx.sleep(LONG_S)
            case "signal":
                await self._ctx.signal("never")
            case "step":
                await self._ctx.run("for ever", act, self._ctx, 0, LONG_S)
            case "both":
                await asyncio.gather(asyncio.sleep(LONG_S), self._ctx.awakeable())
            case _:
                await asyncio.Event().wait()

    async def _recall(self, node: Node, thread: str) -> Any:
        """Cancel or kill what is not due for long: it never begins."""
        ref = self._target(node).options(delay=LONG_S).remote(self._child(node), node["parts"], {})
        await asyncio.sleep(node["pause"])
        if node["kills"]:
            ref.kill()
        else:
            ref.cancel()
        return await _settled(ref)

    async def _hasty(self, node: Node, thread: str) -> Any:
        """Call for a short time only: what is called is cancelled, perhaps before it begins."""
        return await _settled(self._target(node).options(timeout=SHORT_S).remote(self._child(node), node["parts"], {}))

    async def _share(self, node: Node, thread: str) -> bool:
        """Have somebody else wait for a call of ours too."""
        ref = self._target(node).remote(self._child(node), node["parts"], {})
        told_other = await Chore.join.remote(ref, node["pause"])
        return told_other == await _settled(ref)

    # Workflows

    async def _workflow(self, node: Node, thread: str) -> list[Any]:
        """Start a workflow, twice; two complete its promise at once, and the first counts, for everybody."""
        path = self._child(node)
        other = Course[path]
        ref = other.run.remote(path, node["parts"], node["reminds"])
        again = await _settled(other.run.remote(path, [], False))
        await asyncio.sleep(node["pause"])
        if node["refuses"]:
            who = [await _settled(other.refuse.remote(1))]
        else:
            who = await asyncio.gather(*(_settled(other.approve.remote(number)) for number in range(2)))
        won = [number for number, outcome in enumerate(who) if outcome == "done"]
        return [again, len(won), await _settled(ref) == (REFUSED if node["refuses"] else ["approved", won[0]])]

    # At once

    def _threads(self, node: Node, thread: str) -> list[Awaitable[Any]]:
        return [self._attempt(part, f"{thread}/{part['n']}") for part in node["parts"]]

    async def _gather(self, node: Node, thread: str) -> list[Any]:
        return await asyncio.gather(*self._threads(node, thread))

    async def _group(self, node: Node, thread: str) -> list[Any]:
        """A group; where one of it fails, the others wait for what never comes, and are cancelled."""
        work = [self._all(part["parts"], f"{thread}/{part['n']}") for part in node["parts"]]
        tasks: list[asyncio.Task[Any]] = []
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(each) for each in work]
        except* TerminalError as found:
            failed = [told(error) for error in found.exceptions if isinstance(error, TerminalError)]
            result = [failed, [task.cancelled() for task in tasks]]
        else:
            result = [task.result() for task in tasks]
        return result

    async def _race(self, node: Node, thread: str) -> list[Any]:
        """Wait for one after the other; in which order they came is noted here, and sent to a witness."""
        names = {asyncio.ensure_future(each): number for number, each in enumerate(self._threads(node, thread))}
        pending, order = set(names), list[list[int]]()
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            order.append(sorted(names[task] for task in done))
            for task in done:
                task.result()  # an attempt that is to fail fails before it makes other entries than the next
        self._note(thread, "race", node["n"], order)
        told_order = await Book[node["key"]].echo.remote(self._child(node), order)
        return [told_order == order, [task.result() for task in names]]

    async def _first(self, node: Node, thread: str) -> list[Any]:
        """Of these one comes; the others never do, and are cancelled."""
        tasks = [asyncio.ensure_future(each) for each in self._threads(node, thread)]
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        return [[tasks.index(task), task.result()] for task in done] + [task.cancelled() for task in tasks]

    async def _within(self, node: Node, thread: str) -> Any:
        """What is in time returns what it returns; what never comes is too late."""
        work = self._all(node["parts"], thread)
        limit_s = SHORT_S if node["short"] else LONG_S
        try:
            if node["waits_for"]:
                return await asyncio.wait_for(work, limit_s)
            async with asyncio.timeout(limit_s):
                return await work
        except TimeoutError:
            return "too late"

    async def _shield(self, node: Node, thread: str) -> Any:
        """A wait that is given up leaves what it waited for."""
        inner = asyncio.ensure_future(self._attempt(node, thread))
        try:
            return await asyncio.wait_for(asyncio.shield(inner), SHORT_S)
        except TimeoutError:
            return await inner

    async def _lock(self, node: Node, thread: str) -> int:
        """Threads that read, wait and write one after the other."""
        lock, kept = asyncio.Lock(), [0]

        async def add(part: Node) -> None:
            async with lock:
                before = kept[0]
                await self._attempt(part, f"{thread}/{part['n']}")
                kept[0] = before + part["n"]

        await asyncio.gather(*(add(part) for part in node["parts"]))
        return kept[0]

    async def _queue(self, node: Node, thread: str) -> list[Any]:
        """What threads put into a queue, somebody takes out."""
        queue: asyncio.Queue[Any] = asyncio.Queue(1)

        async def put(part: Node) -> None:
            await queue.put([part["n"], await self._attempt(part, f"{thread}/{part['n']}")])

        async def take() -> list[Any]:
            return [await queue.get() for _ in node["parts"]]

        found, *_ = await asyncio.gather(take(), *(put(part) for part in node["parts"]))
        return sorted(found or [], key=lambda pair: pair[0])


def _partial(fn: Callable[..., Awaitable[None]], at_once: bool) -> Callable[..., Awaitable[None]]:
    async def called(*args: Any) -> None:
        await fn(*args, at_once=at_once)

    return called


def told(error: TerminalError) -> list[Any]:
    """Return what of an error is the same in every run."""
    return ["error", error.code, str(error) if error.code == 418 else ""]


async def _settled(awaited: Awaitable[Any]) -> Any:
    """Return what it returns, or what it raises."""
    try:
        return await awaited
    except TerminalError as error:
        return told(error)


async def _times_out(awaited: Awaitable[Any]) -> str:
    try:
        return f"came too early: {await asyncio.wait_for(awaited, SHORT_S)}"
    except TimeoutError:
        return "later"
