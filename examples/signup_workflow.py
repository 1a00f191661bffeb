"""A sign-up: a mail asks for a confirmation, reminders follow every hour, and after the last one it is too late."""

import asyncio
from uuid import uuid4

import actors
from actors import Context, TerminalError, Workflow, handler, shared, state

HOUR = 1.0  # in seconds: made quick, to be watched
TEXTS = ("please confirm", "please confirm (reminder)")


def mail(to: str, text: str) -> None:
    print(f"to {to}: {text}")


class Signup(Workflow):
    mails: int = state(0)

    @handler
    async def run(self, ctx: Context, address: str) -> str:
        confirmed = ctx.promise("confirmed", str)
        for text in TEXTS:
            await ctx.run("mail", mail, address, text)
            self.mails += 1
            try:
                return f"welcome, {await asyncio.wait_for(confirmed, HOUR)}"
            except TimeoutError:
                continue  # the promise is as it was
        confirmed.reject("too late")
        return f"{address} did not answer"

    @shared
    async def confirm(self, ctx: Context, name: str) -> int:
        """Do what the link in the mail does; return how many mails it took."""
        if self.mails > 1 or name != "Ann":  # Ann reads the first reminder only
            ctx.promise("confirmed", str).resolve(name)
        return self.mails


if __name__ == "__main__":
    with actors.init(hosts="local"):  # in this process, so that one sees what its steps print
        ann, bob = Signup[uuid4().hex], Signup[uuid4().hex]
        ann.run.send("ann@example.org")
        while ann.confirm.remote("Ann").result() < 2:
            pass
        print(actors.attach(ann.run).result(), "-", bob.run.remote("bob@example.org").result())
        try:
            bob.confirm.remote("Bob").result()
        except TerminalError as error:
            print(f"too late for Bob: {error.code}")

# It prints:
#
#   to ann@example.org: please confirm
#   to ann@example.org: please confirm (reminder)
#   to bob@example.org: please confirm
#   to bob@example.org: please confirm (reminder)
#   welcome, Ann - bob@example.org did not answer
#   too late for Bob: 409
