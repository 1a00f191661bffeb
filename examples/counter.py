"""The first object: a counter for each key, which remembers what it counted."""

import actors
from actors import Context, VirtualObject, handler, shared, state


class Counter(VirtualObject):
    """Counts, for each key on its own."""

    count: int = state(0)

    @handler
    async def add(self, ctx: Context, amount: int) -> int:
        """Add to the count, and return it."""
        self.count += amount
        return self.count

    @shared
    async def value(self, ctx: Context) -> int:
        """Return the count."""
        return self.count


if __name__ == "__main__":
    with actors.init():
        print("apples:", Counter["apples"].add.remote(2).result())
        print("apples:", actors.get([Counter["apples"].add.remote(1) for _ in range(3)]))
        print("pears: ", Counter["pears"].value.remote().result())

# It prints, the first time; the counts lie in ./.perdure, so the next run goes on from them:
#
#   apples: 2
#   apples: [3, 4, 5]
#   pears:  0
