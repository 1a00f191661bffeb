"""Pickles that nobody signed with our secret are never unpickled: issue 15.27, PERDURE_SECRET."""

import logging
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import ask

import actors
from actors import Context, TerminalError, UsageError, VirtualObject, handler, state
from actors.client.uploads import put
from actors.code.bundles import bundle_of
from actors.code.code import UNSENT, _loaded
from actors.errors import DecodeError
from actors.values import outcomes, seal, values
from journal.ids import invocation_id, new_id, shard_of
from journal.keys import Keys
from journal.memory.store import MemoryStore
from journal.records import Failure, Message, failure
from journal.redis.store import RedisStore
from journal.store import SHARDS, Outgoing, Settled

ONE, TWO = b"a-secret-of-enough-length", b"another-secret-of-some-length"


class SealedError(TerminalError):
    pass


class Sealed(VirtualObject):
    tags: set[str] = state(default_factory=set)
    stored: Any = state(None)

    @handler
    async def put(self, ctx: Context, tags: set[str]) -> frozenset[str]:
        self.stored = {1: tags}  # no JSON holds it
        return frozenset(tags)

    @handler
    async def get(self, ctx: Context) -> Any:
        return self.stored

    @handler
    async def fail(self, ctx: Context) -> None:
        raise SealedError("as said")


class Evil:
    """What runs code as it is unpickled: it makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._path),)


@pytest.fixture(autouse=True)
def unsealed() -> Iterator[None]:
    yield
    seal.use((), "")


def test_values_are_read_with_the_secret_and_at_the_place_they_were_written_for() -> None:
    """With several, all read and the first signs; another place or namespace, a changed byte, none: refused."""
    seal.use((ONE,), "n")
    where = ("state", "T/a", "f")
    data = values.encode({1}, where=where)
    assert data == values.encode({1}, where=where)
    assert values.decode(data, where=where) == {1}
    assert values.encode([1], where=where) == b"J[1]"

    def is_refused(data: bytes, where: tuple[str, ...] = where) -> bool:
        try:
            return values.decode(data, where=where) != {1}
        except DecodeError as error:
            return "is refused" in str(error) and ONE.decode() not in str(error)

    assert is_refused(data, ("state", "T/b", "f"))
    assert is_refused(data, ("state", "T/a", "g"))
    assert is_refused(data, ())
    assert is_refused(b"P" + data[2 + seal.MAC_BYTES :])  # without its HMAC
    for at in range(2, len(data)):
        assert is_refused(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    seal.use((ONE,), "m")
    assert is_refused(data)
    seal.use((TWO,), "n")
    assert is_refused(data)
    seal.use((TWO, ONE), "n")
    assert not is_refused(data)
    renewed = values.encode({1}, where=where)
    assert renewed != data
    assert seal.unverified(renewed) == seal.unverified(data)
    seal.use((TWO,), "n")
    assert not is_refused(renewed)
    seal.use((), "n")
    assert is_refused(renewed)  # a program that was not given the secret says so


def test_an_error_whose_pickle_is_forged_comes_without_its_class(tmp_path: Path) -> None:
    seal.use((ONE,), "n")
    with pytest.raises(SealedError, match="as said"):
        outcomes.decoded(outcomes.encoded_error(SealedError("as said")))
    forged = failure(Failure(409, "as said", {}, "x:Y", pickle.dumps(Evil(tmp_path / "made"))))
    for outcome in (forged, outcomes.checked(forged)):
        with pytest.raises(TerminalError, match="as said") as caught:
            outcomes.decoded(outcome)
        assert type(caught.value) is TerminalError
    assert not (tmp_path / "made").exists()


def test_who_has_no_secret_reads_what_was_checked_for_it() -> None:
    seal.use((ONE,), "n")
    outcome, error = outcomes.encoded_value({1}), outcomes.encoded_error(SealedError("e"))
    checked = outcomes.checked(outcome), outcomes.checked(error)
    with seal.trusting():  # as in the program, whose other values are sealed
        assert outcomes.decoded(checked[0]) == {1}
    seal.use((), "")  # as in a task of Ray's
    assert outcomes.decoded(checked[0]) == {1}
    with pytest.raises(SealedError):
        outcomes.decoded(checked[1])


async def test_a_program_runs_nothing_that_was_written_behind_its_back(
    valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Message, state and code are forged; each is refused and said once, holds its own key, and all others go on."""
    monkeypatch.setenv("PERDURE_SECRET", ONE.decode())
    namespace = new_id()
    keys = Keys(namespace)
    evil = b"P" + pickle.dumps(Evil(tmp_path / "made"))
    with actors.init(valkey_url, hosts="local", namespace=namespace):
        assert await Sealed["good"].put.remote({"a"}) == {"a"}
        assert await Sealed["good"].get.remote() == {1: {"a"}}
        with pytest.raises(SealedError):
            await Sealed["good"].fail.remote()

        store = RedisStore(valkey_url, namespace)
        stored = "Sealed/state"
        key = keys.state(shard_of(stored, SHARDS), stored)
        await store._do("HSET", key, "stored", evil)
        waiting = Sealed["state"].get.remote()

        forged: list[Outgoing] = []
        copied = values.encode_arguments(({"a"},), {}, ("arguments", "Sealed/other", "put"))
        for target, arguments, code in (
            ("Sealed/message", evil, UNSENT),
            ("Sealed/copied", copied, UNSENT),
        ):
            id_ = invocation_id(new_id(), target, SHARDS)
            message = Message(id_, target, "put", arguments, "", code)
            forged.append(Outgoing(shard_of(target, SHARDS), id_, "", message.encoded()))
        writer = await store.open_writer()
        assert await store.submit(writer, 1, forged, "0-0") is Settled.APPLIED

        refused = ("'state' 'Sealed/state' 'stored'", "'arguments' 'Sealed/message'", "'arguments' 'Sealed/copied'")
        while not all(each in caplog.text for each in refused):
            assert await Sealed["good"].put.remote({"b"}) == {"b"}
        for _ in range(20):
            assert await Sealed["good"].put.remote({"b"}) == {"b"}
        said = [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]
        assert [sum(each in line for line in said) for each in refused] == [1, 1, 1]
        assert waiting.status().startswith("open")
        for id_ in [waiting.id, *(each.invocation for each in forged)]:
            actors.attach(id_).kill()
        await store.aclose()
    assert not (tmp_path / "made").exists()
    assert ONE.decode() not in caplog.text
    good = keys.state(shard_of("Sealed/good", SHARDS), "Sealed/good")
    assert ask(valkey_url, f"HGET {good} stored")[0].startswith(b"PS")


def test_code_is_sealed_for_its_hash(caplog: pytest.LogCaptureFixture) -> None:
    seal.use((ONE,), "n")
    bundle = bundle_of(Sealed)
    data = seal.sealed(bundle.data, ("code", bundle.digest))
    assert "Sealed" in _loaded(bundle.digest, data)
    for digest, forged in (
        ("another", data),
        (bundle.digest, bundle.data),
        (bundle.digest, data + b"."),
    ):
        with pytest.raises(DecodeError, match=r"'code' .* is refused"):
            _loaded(digest, forged)


async def test_code_is_sealed_anew_by_who_has_its_secret_alone() -> None:
    """With secrets that rotate, the code of a class that does not change is signed by the new one in time."""
    store = MemoryStore(lambda: 0)

    async def sent_with(*secrets: bytes) -> bytes | None:
        seal.use(secrets, "n")
        bundle = bundle_of(Sealed)
        await put(store, bundle)
        return await store.code(bundle.digest)

    first = await sent_with(ONE)
    assert await sent_with(TWO) == first  # of a program with a wrong one: who has the right one loads it as before
    assert await sent_with() == first
    renewed = await sent_with(TWO, ONE)
    assert renewed is not None
    assert renewed != first
    seal.use((TWO,), "n")
    assert "Sealed" in _loaded(bundle_of(Sealed).digest, renewed)
    assert await store.current_code("Sealed") == bundle_of(Sealed).digest


def test_secrets_come_from_the_environment_and_are_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERDURE_SECRET", f"{ONE.decode()} {TWO.decode()}")
    assert seal.secrets_in_environment() == (ONE, TWO)
    assert ONE.decode() not in repr(seal.secrets_in_environment()) + str(seal.secrets_in_environment())
    monkeypatch.delenv("PERDURE_SECRET")
    file = tmp_path / "secrets"
    file.write_bytes(TWO + b"\n" + ONE + b"\n")
    file.chmod(0o600)
    monkeypatch.setenv("PERDURE_SECRET_FILE", str(file))
    assert seal.secrets_in_environment() == (TWO, ONE)
    file.chmod(0o666)
    with pytest.raises(UsageError, match="other users may write: chmod 600"):
        seal.secrets_in_environment()
    for name, value in (("PERDURE_SECRET_FILE", str(tmp_path / "none")), ("PERDURE_SECRET", "short-one")):
        monkeypatch.delenv("PERDURE_SECRET_FILE", raising=False)
        monkeypatch.setenv(name, value)
        with pytest.raises(UsageError) as caught:
            actors.init(hosts="local", directory=tmp_path / "data")
        assert "short-one" not in str(caught.value)
    assert not (tmp_path / "data").exists()
