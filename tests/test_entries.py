"""What crosses the store comes back as it was, whatever its bytes and texts hold (invariants 1 and 2 of `entries`)."""

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from journal.errors import UsageError
from journal.ids import InvocationId, ObjectId, derived_id, invocation_id, new_id, shard_in, shard_of
from journal.records import (
    Delivered,
    Event,
    EventKind,
    Failure,
    Message,
    Record,
    ReplyKind,
    failure,
    order_of,
    outcome_of,
    pack,
    success,
    teller_of_driver,
    teller_of_entry,
    time_of,
    unpack,
)
from journal.store import INBOX_FULL

TEXT = st.text(st.characters())  # lone surrogates too: names of files may hold them
BYTES = st.binary() | st.sampled_from([b"\n", b"\0", b"[]\n[]", b"\xff\xfe"])
INT = st.integers(0, 2**53)
FIELDS = st.dictionaries(TEXT, st.none() | BYTES, max_size=5)
KIND = st.sampled_from(EventKind)

HEADERS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)

MESSAGES = st.builds(
    Message,
    id=TEXT,
    target=TEXT,
    handler=TEXT,
    arguments=BYTES,
    caller=TEXT,
    code=TEXT,
    due_ms=INT,
    keep_ms=INT,
    headers=st.none() | st.dictionaries(TEXT, TEXT, max_size=3),
)

RECORDS = st.builds(
    Record,
    events=st.lists(st.builds(Delivered, KIND, INT, INT, BYTES), max_size=4),
    first=INT,
    entries=st.lists(TEXT, min_size=1, max_size=4),
    olds=FIELDS,
    reads=FIELDS,
    steps=st.lists(st.tuples(INT, BYTES), max_size=4),
    answers=st.lists(st.tuples(INT, st.none() | BYTES), max_size=4),
    attempt=INT,
    error=TEXT,
    timers=st.dictionaries(TEXT, TEXT, max_size=3),
)

FAILURES = st.builds(
    Failure, code=INT, message=TEXT, metadata=st.dictionaries(TEXT, TEXT, max_size=3), type=TEXT, pickled=BYTES
)


@given(header=HEADERS, values=st.lists(BYTES, max_size=4))
@example(header="\ud800\n", values=[b"\n"])
def test_what_was_packed_is_unpacked(header: Any, values: list[bytes]) -> None:
    assert unpack(pack(header, values)) == (header, b"".join(values))


@given(header=HEADERS)
def test_the_header_is_one_line_that_a_person_can_read(header: Any) -> None:
    line, _, rest = pack(header, [b"value\n"]).partition(b"\n")

    assert line.decode("utf-8", "surrogatepass")
    assert rest == b"value\n"


@given(MESSAGES)
def test_a_message_comes_back_as_it_was(message: Message) -> None:
    assert Message.parse(message.encoded()) == message


@given(RECORDS)
def test_a_record_comes_back_as_it_was_in_its_order(record: Record) -> None:
    assert Record.parse(record.encoded()) == record


def test_what_a_record_does_not_hold_takes_no_space() -> None:
    assert Record().encoded() == b"{}\n"
    assert Record.parse(b"{}\n") == Record()


def test_a_field_that_was_absent_differs_from_one_that_was_empty() -> None:
    record = Record(olds={"absent": None, "empty": b"", "full": b"x"}, reads={"absent": None})

    assert Record.parse(record.encoded()) == record


def test_a_record_without_entries_forgets_their_index() -> None:
    assert Record.parse(Record(first=7).encoded()).first == 0


@given(BYTES)
def test_a_success_comes_back_as_it_was(value: bytes) -> None:
    assert outcome_of(success(value)) == value


@given(FAILURES)
def test_a_failure_comes_back_as_it_was(error: Failure) -> None:
    assert outcome_of(failure(error)) == error


@given(BYTES, FAILURES)
def test_the_first_byte_tells_a_reply_from_all_others(value: bytes, error: Failure) -> None:
    assert success(value)[:1].decode() == ReplyKind.VALUE
    assert failure(error)[:1].decode() == ReplyKind.ERROR
    assert len({kind.value for kind in ReplyKind}) == len(ReplyKind)


def test_a_call_that_finds_no_room_fails_as_overloaded() -> None:
    outcome = outcome_of(INBOX_FULL)

    assert isinstance(outcome, Failure)
    assert (outcome.code, outcome.type) == (503, "OverloadedError")


@given(INT, INT)
def test_stream_ids_sort_by_time_and_then_by_number(ms: int, sequence: int) -> None:
    id_ = f"{ms}-{sequence}"

    assert order_of(id_) == (ms, sequence)
    assert order_of(str(ms)) == (ms, 0)
    assert time_of(id_) == Event(id_, "", EventKind.TIMER, 0, b"").time_ms == ms
    assert order_of(f"{ms}-{sequence + 1}") > order_of(id_) < order_of(f"{ms + 1}-0")


@given(TEXT, INT)
def test_tellers_name_whom_to_tell(invocation: str, index: int) -> None:
    kind, _, rest = teller_of_entry(invocation, index).partition(":")

    assert kind == "i"
    assert rest.rpartition(":")[::2] == (invocation, str(index))
    assert teller_of_driver("abc") == "w:abc"


# --------------------------------------------------------------------------------------------------------------- names


@given(st.from_regex(r"[A-Za-z_]\w*", fullmatch=True), st.none() | TEXT)
def test_an_address_is_read_as_it_was_written(type_: str, key: str | None) -> None:
    assert ObjectId.parse(str(ObjectId(type_, key))) == ObjectId(type_, key)


@given(TEXT, st.integers(1, 99_999))
def test_an_id_of_an_invocation_names_its_shard(key: str, shards: int) -> None:
    address = f"Ticket/{key}"

    assert shard_in(invocation_id(new_id(), address, shards)) == shard_of(address, shards) < shards
    unique = derived_id("Mail", key)
    assert shard_in(invocation_id(unique, "Mail", shards)) == shard_of(unique, shards)


@pytest.mark.parametrize(
    "text", ["", "-", "x", "x-", "-3", "x-y", "x--", "x- 3", "x-3 ", "x-+3", "x-1_0", "x-٣", "x-123456"]
)
def test_what_is_no_id_of_an_invocation_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not the id of an invocation"):
        shard_in(InvocationId(text))


def test_where_an_object_lies_never_changes() -> None:
    # Invariant 2 of `names`: these lie in stores that exist.
    assert [shard_of(f"Ticket/A{n}", 16) for n in range(6)] == [6, 0, 10, 12, 15, 9]
    assert shard_of("Ticket/é", 16) == 15
    assert derived_id("Ticket", "A") == "6ca729ef43a5aa98b638d4e2"
