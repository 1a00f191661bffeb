"""Writer: writes the staged progress of all shards of a host as grouped commits, strictly one after the other.

Owns the repetition of a commit whose answer was lost: it is sent again, unchanged, until the store answers (numbers
make that harmless). While a commit is under way the next is gathered: group commit without a timer.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence

from actors.activation.staging import CommitBudget, Unwritten
from actors.backoff import Patience
from actors.errors import DamagedError
from actors.shard.shard import OwnedShard
from journal.ids import Shard
from journal.store import Answer, Committed, Damaged, Fenced, Part, Store


class Writer:
    """Commits for a host until it is cancelled."""

    def __init__(
        self,
        store: Store,
        host: str,
        incarnation: str,
        shards: Callable[[], Iterable[OwnedShard]],
        lost: Callable[[OwnedShard, str], None],
        went_back: Callable[[OwnedShard, str], None],
    ) -> None:
        self._store, self._incarnation, self._shards, self._lost = store, incarnation, shards, lost
        self._went_back = went_back
        self._patience = Patience(f"host {host}, commits")
        self._wanted = asyncio.Event()
        self._first = Shard(0)

    def wake(self) -> None:
        """Note that progress was staged."""
        self._wanted.set()

    async def run(self) -> None:
        """Write staged progress, for ever."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            await self._flush()

    async def _answers(self, parts: list[Part]) -> Sequence[Answer | DamagedError]:
        """Commit, repeatedly until the store answers; a commit that it refuses for good is sent part by part."""
        try:
            return await self._patience.until_answered(lambda: self._store.commit(parts))
        except DamagedError as error:
            return [error] if len(parts) == 1 else [(await self._answers([part]))[0] for part in parts]

    def _in_turn(self) -> list[OwnedShard]:
        """Return the shards with progress to write; the shard after the one that filled the last commit comes first.

        So no shard waits for ever.
        """
        staged = [owned for owned in self._shards() if not owned.staging.is_empty]
        return sorted(staged, key=lambda owned: owned.shard < self._first)

    async def _flush(self) -> None:
        taken: list[tuple[OwnedShard, Unwritten]] = []
        room = CommitBudget()
        for shard in self._in_turn():
            if not shard.leased():
                self._lost(shard, "its lease has lapsed")
                continue
            unwritten = shard.take(self._incarnation, room)
            if unwritten is not None:
                taken.append((shard, unwritten))
            if not shard.staging.is_empty:
                self._wanted.set()
            if not room.is_left:
                self._first = Shard(shard.shard + 1)
                self._wanted.set()
                break
        if not taken:
            return
        parts = [unwritten.part for _, unwritten in taken]
        answers = await self._answers(parts)
        for (shard, unwritten), answer in zip(taken, answers, strict=True):
            if shard.is_lost:
                continue
            match answer:
                case DamagedError():
                    shard.failed(answer)
                case Committed():
                    shard.settled(unwritten, answer)
                    if answer.is_torn:
                        self._went_back(shard, "data that a commit needs")
                case Fenced(head) if _is_older(head, unwritten.part):
                    self._went_back(shard, f"commits: its head is {head!r}")
                case Fenced(head):
                    self._lost(shard, f"its commit was refused: another host owns it (head: {head})")
                case Damaged(reason):
                    self._lost(shard, f"the store failed half way through a commit: {reason}")


def _is_older(head: str, part: Part) -> bool:
    """Whether a head is older than this commit and of the same owner, not of a later owner."""
    epoch = head.partition(" ")[0]
    return not epoch or (epoch.isdecimal() and int(epoch) <= part.epoch)
