"""What newcomers do wrong with promises, schedules, sagas and their like, and what they are told, at the call at fault.

As `test_mistakes.py`: through the public API, with a host in this process.
"""

import re
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, cast

import pytest
from test_mistakes import refusal

import actors
from actors import Context, Policy, Retry, Service, TerminalError, UsageError, VirtualObject, Workflow, handler, shared

WITHIN_S = 5.0


def book(what: str) -> str:
    return what


def cancel_all() -> None: ...


class Parcel(VirtualObject):
    @handler
    async def send(self, ctx: Context) -> str:
        return ctx.key

    @handler
    async def misuse(self, ctx: Context, how: str) -> None:
        await MISUSED[how](ctx)


class Clearance(Workflow):
    @handler
    async def run(self, ctx: Context) -> str:
        return "approved"

    @shared
    async def misuse(self, ctx: Context, how: str) -> None:
        await MISUSED[how](ctx)


async def ask_an_object_for_a_promise(ctx: Context) -> None:
    ctx.promise("approved", bool)


async def ask_whether_a_promise_is_true(ctx: Context) -> None:
    if ctx.promise("approved", bool):
        raise TerminalError("approved")


async def ask_whether_an_awakeable_is_true(ctx: Context) -> None:
    if ctx.awakeable(bool):
        raise TerminalError("paid")


async def reject_without_a_message(ctx: Context) -> None:
    ctx.promise("approved", bool).reject(cast("Any", 409))


async def undo_with_the_wrong_arguments(ctx: Context) -> None:
    await ctx.run("book", book, "car", undo=cast("Any", cancel_all))


async def defer_with_the_wrong_arguments(ctx: Context) -> None:
    ctx.defer("cancel", cast("Any", book))


async def defer_the_result(ctx: Context) -> None:
    ctx.defer("cancel", cast("Any", book("car")))


async def send_with_a_timeout(ctx: Context) -> None:
    Parcel["a"].send.options(timeout="1s").send()


async def peek_in_a_handler(ctx: Context) -> None:
    Parcel["a"].send.remote().peek()


async def schedule_without_a_timing(ctx: Context) -> None:
    Parcel["a"].send.schedule()


async def attach_to_what_is_no_id(ctx: Context) -> None:
    await actors.attach("parcel a")


MISUSED: dict[str, Callable[[Context], Awaitable[None]]] = {
    misuse.__name__: misuse
    for misuse in (
        ask_an_object_for_a_promise,
        ask_whether_a_promise_is_true,
        ask_whether_an_awakeable_is_true,
        reject_without_a_message,
        undo_with_the_wrong_arguments,
        defer_with_the_wrong_arguments,
        defer_the_result,
        send_with_a_timeout,
        peek_in_a_handler,
        schedule_without_a_timing,
        attach_to_what_is_no_id,
    )
}

PARCEL, APPROVAL = cast("Any", Parcel), cast("Any", Clearance)
"""As a program without a type checker has them."""


@pytest.fixture(scope="module", autouse=True)
def connected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with actors.init(hosts="local", directory=tmp_path_factory.mktemp("perdure")):
        yield


@pytest.mark.parametrize(
    ("call", "misuse", "words"),
    [
        (Parcel["a"].misuse, ask_an_object_for_a_promise, "is no Workflow, so it has no promises"),
        (
            Clearance["a"].misuse,
            ask_whether_a_promise_is_true,
            "the promise 'approved' is neither true nor false: await it",
        ),
        (Parcel["a"].misuse, ask_whether_an_awakeable_is_true, "is neither true nor false: await it"),
        (Clearance["a"].misuse, reject_without_a_message, "what is rejected has a message, a str, not 409"),
        (Parcel["a"].misuse, undo_with_the_wrong_arguments, "step 'undo book': <function cancel_all"),
        (Parcel["a"].misuse, undo_with_the_wrong_arguments, "does not take the result of its step: too many"),
        (Parcel["a"].misuse, defer_with_the_wrong_arguments, "does not take these arguments: missing a required argu"),
        (Parcel["a"].misuse, defer_the_result, "'car' cannot be called; pass the function and its arguments"),
        (Parcel["a"].misuse, send_with_a_timeout, "nobody waits for a send, so it has no timeout"),
        (Parcel["a"].misuse, peek_in_a_handler, "is not replayed, so it has no place in a handler"),
        (Parcel["a"].misuse, schedule_without_a_timing, "a schedule has cron='0 9 * * *' or every='10m'"),
        (Parcel["a"].misuse, attach_to_what_is_no_id, "'parcel a' is not the id of an invocation"),
    ],
)
def test_a_mistake_in_a_handler_ends_it_with_what_to_do(call: Any, misuse: Callable[..., Any], words: str) -> None:
    assert words in refusal(call.remote(misuse.__name__))


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (lambda: Parcel["a"].send.options(timeout="1s").send(), "nobody waits for a send, so it has no timeout"),
        (lambda: Parcel["a"].send.options(timeout="soon"), "'soon' is no duration"),
        (lambda: Parcel["a"].send.schedule(), "say one of them"),
        (lambda: Parcel["a"].send.schedule(cron="* * * * *", every="1m"), "say one of them"),
        (lambda: Parcel["a"].send.schedule(cron="every day"), "cron='every day' cannot be read"),
        (lambda: Parcel["a"].send.schedule(cron="0 9 * * *", timezone="Berlin"), "say a name such as 'Europe/Berlin'"),
        (lambda: Parcel["a"].send.schedule(every=0.1), "ticks are at least 1 s apart"),
        (lambda: Parcel["a"].send.options(delay="1m").schedule(every="1m"), "no delay, no timeout and no idempotency"),
        (lambda: Clearance["a"].run.schedule(every="1d"), "Clearance['a'].run happens once for each key: schedule a"),
        (lambda: actors.attach("parcel a"), "'parcel a' is not the id of an invocation"),
        (lambda: actors.attach(Parcel["a"].send), "may have many invocations"),
        (lambda: actors.attach(APPROVAL.run), "takes the id of an invocation, or a workflow's Type[key].run"),
        (lambda: actors.attach(cast("Any", None)), "takes the id of an invocation, or a workflow's Type[key].run"),
        (lambda: actors.resolve("parcel a", 1), "'parcel a' is not the id of an awakeable: take it from `.id`"),
        (lambda: actors.resolve(cast("Any", Parcel), 1), "is not the id of an awakeable: take it from `.id`"),
        (lambda: actors.reject("awakeable.a-1.0", cast("Any", 409)), "what is rejected has a message, a str, not 409"),
        (lambda: Policy(retry=cast("Any", 3)), "Policy(retry=3): it is a Retry"),
        (lambda: handler(policy=cast("Any", Retry())), "a handler: policy=Retry("),
        (lambda: Parcel["a"].send.remote().restart(-1), "it is the index of an entry, counted from 0"),
        (lambda: Parcel["a"].send.remote().signal("", 1), "a signal has a name"),
    ],
)
def test_a_mistake_of_a_program_raises_at_the_call(mistake: Callable[[], object], words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        mistake()


def test_a_retry_is_no_policy_of_a_class() -> None:
    with pytest.raises(UsageError, match=r"^Shelf: policy=Retry\(.*\) is no Policy; say policy=Policy\("):

        class Shelf(Service, policy=cast("Any", Retry())):  # pyright: ignore[reportUnusedClass]
            ...


@pytest.mark.parametrize("verb", ["resume", "restart", "cancel", "kill"])
def test_a_verb_that_comes_too_late_does_nothing(verb: str) -> None:
    ref = Parcel["late"].send.remote()
    ref.result(timeout=WITHIN_S)

    getattr(ref, verb)().result(timeout=WITHIN_S)

    assert (ref.status(), ref.peek()) == ("succeeded", "late")


def test_results_are_taken_from_a_generator_too() -> None:
    assert actors.get(cast("Any", (Parcel[key].send.remote() for key in "ab")), timeout=WITHIN_S) == ["a", "b"]


def test_a_workflow_without_run_says_so_and_does_not_take_its_name_away() -> None:
    class Review(Workflow): ...  # as in a notebook, whose last error may keep it alive

    with pytest.raises(AttributeError, match="'Review' object has no attribute 'run'"):
        cast("Any", Review)["a"].run.remote()

    class Mended(Workflow, name="Review"):
        @handler
        async def run(self, ctx: Context) -> str:
            return "reviewed"

    assert Mended["a"].run.remote().result(timeout=WITHIN_S) == "reviewed"
    assert issubclass(Review, Workflow)
