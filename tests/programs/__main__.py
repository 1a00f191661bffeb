"""The command line: `python -m tests.programs --count 10000 --seed 1` plays so many programs, from that seed on.

A share of them has pests among its nodes and as guests beside it (`pests`).
`--real 200` plays so many on a real Valkey and real host processes that are killed.

What goes wrong is printed with its seed and the smallest program that shows it; `--seed N --count 1` repeats it.
"""

import argparse
import logging
import pprint
import sys
from collections.abc import Sequence

from .grammar import Root, program, smallest
from .world import play


def main(arguments: Sequence[str] | None = None) -> int:
    """Play programs; return 0 if nothing is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.programs", description="Random programs against a model.")
    parser.add_argument("--count", type=int, default=1_000, help="so many, each with the next seed")
    parser.add_argument("--seed", type=int, default=1, help="of the first; it decides the program and the faults")
    parser.add_argument("--real", type=int, default=0, help="so many on real hosts and a real store instead")
    said = parser.parse_args(arguments)
    if said.real:
        from .real import play_real  # here alone: pytest imports what it stands on by another name

        wrong = play_real(said.real, said.seed)
        _say("\n".join([*wrong, f"{said.real} programs from seed {said.seed} on real hosts: {len(wrong)} wrong"]))
        return 1 if wrong else 0
    acts = deaths = failed = 0
    for seed in range(said.seed, said.seed + said.count):
        outcome = play(program(seed), seed)
        acts, deaths = acts + outcome.acts, deaths + outcome.deaths
        if outcome.wrong:
            failed += 1
            _report(seed, outcome.wrong)
    _say(f"{said.count} programs from seed {said.seed}: {failed} wrong; {acts} actions of steps, {deaths} hosts died")
    return 1 if failed else 0


def _report(seed: int, wrong: list[str]) -> None:
    def is_wrong(roots: list[Root]) -> bool:
        return bool(play(roots, seed).wrong)

    _say(f"WRONG: seed {seed}")
    _say("\n".join(f"  {what}" for what in wrong))
    found = smallest(program(seed), is_wrong)
    _say("the smallest program found:")
    _say(pprint.pformat([(root.path, root.key, root.parts) for root in found], width=120))
    _say("\n".join(f"  {what}" for what in play(found, seed).wrong))


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)  # hosts that die and are cut off have much to say
    sys.exit(main())
