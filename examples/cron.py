"""Schedules: a report that is built every weekday at nine, and a ticker that fires each second."""

import time
from datetime import datetime

import actors
from actors import Context, VirtualObject, handler, shared, state


class Report(VirtualObject):
    """A report; its key says of what."""

    built: list[datetime] = state(default_factory=list, ttl="30d")

    @handler
    async def build(self, ctx: Context, pages: int = 1) -> None:
        """Build the report; the header says for when."""
        self.built.append(datetime.fromisoformat(ctx.headers.get("perdure-scheduled-at", "2000-01-01")))

    @shared
    async def times(self, ctx: Context) -> list[datetime]:
        """Return when it was built."""
        return self.built

    @handler
    async def forget(self, ctx: Context) -> None:
        """Begin anew."""
        ctx.clear_all()


if __name__ == "__main__":
    with actors.init():
        # Declared at each start: what is there already goes on as it is.
        daily = Report["sales"].build.schedule(10, cron="0 9 * * mon-fri", timezone="Europe/Berlin", missed="last")
        ticker = Report["clock"].build.schedule(every="1s", name="ticker")
        due = daily.status().result().next_due
        print(daily.name, "is due at", due and f"{due:%H:%M}")
        print("there are", [schedule.name for schedule in actors.schedules()])

        while len(times := Report["clock"].times.remote().result()) < 3:
            time.sleep(0.1)
        print("the ticker fired each", times[1] - times[0], "and", times[2] - times[1])

        ticker.delete()
        daily.trigger().result()
        daily.delete().result()
        Report["clock"].forget.send()
        print("there are", [schedule.name for schedule in actors.schedules()])

# It prints:
#
#   Report/sales.build is due at 09:00
#   there are ['Report/sales.build', 'ticker']
#   the ticker fired each 0:00:01 and 0:00:01
#   there are []
