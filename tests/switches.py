"""Checks of the verifier, each with the way to switch it off; and why, after some, nothing else can catch a lie."""

import re

from pol.proof.genesis import Genesis, Spec
from pol.verifier import auditing, authenticate, bases, bind, clauses, eight, origins, shape
from pol.verifier.case import passed


class LenientSpec(Spec, frozen=True, forbid_unknown_fields=True, kw_only=True):
    steps: int


class LenientGenesis(Genesis, frozen=True, forbid_unknown_fields=True, kw_only=True):
    spec: LenientSpec


def dropped(group, function):
    def switch(patch):
        kept = tuple(f for f in getattr(eight, group) if f.__name__ != function.__name__)
        assert len(kept) == len(getattr(eight, group)) - 1
        patch.setattr(eight, group, kept)

    return switch


def passing(function, module=origins):
    """A check of steps 5 to 7 that always passes."""

    def switch(patch):
        name = function.__name__
        patch.setattr(module, name, lambda *_: iter([passed(name, "switched off")]))

    return switch


def unaudited(*indices):
    """The replay gives other values for these intervals, and nobody looks."""

    def switch(patch):
        compare = auditing._Replay._compare

        def blind(self, found, samples):
            index = found.start // self._case.genesis.spec.every
            if index in indices:
                self._case.intervals.append(auditing._result(self._case, index, "passed", "switched off"))
            else:
                compare(self, found, samples)

        patch.setattr(auditing._Replay, "_compare", blind)

    return switch


OFF = {
    "steps is positive": lambda patch: patch.setattr(authenticate, "Genesis", LenientGenesis),
    "signatures": dropped("AUTHENTICATE", authenticate.signatures),
    "files": dropped("BIND", bind.files),
    "chain": dropped("BIND", bind.chain),
    "states": dropped("BIND", bind.states),
    "released model": dropped("BIND", bind.released_model),
    "arithmetic": dropped("SHAPE", shape.arithmetic),
    "cover": dropped("SHAPE", shape.cover),
    "order": dropped("SHAPE", shape.order),
    "assured": dropped("SHAPE", clauses.assured),
    "inputs": dropped("SHAPE", clauses.inputs),
    "recipe": passing(shape.recipe, shape),
    "kept states": dropped("SHAPE", shape.kept_states),
    "finite": lambda patch: patch.setattr(shape, "_scan", lambda *_: set()),
    "origin": passing(origins.origin, origins),
    "independence": passing(origins.independence, origins),
    "bases": passing(bases.bases, bases),
    "audit": passing(auditing.audit, auditing),
    "samples": lambda patch: patch.setattr(auditing._Replay, "_wrong_sample", lambda *_: None),
    "measured": dropped("SHAPE", shape.measured),
}


def switch_off(name, patch):
    """Switch off the check of this name, or of ``audit of 1, 2`` what the replay of intervals 1 and 2 gives."""
    found = re.fullmatch(r"audit of ([0-9, ]+)", name)
    (unaudited(*map(int, found[1].split(","))) if found else OFF[name])(patch)


REPLAY_ONLY = "all bytes agree with one another: only taking the steps again shows that nobody took them"
HONEST_PROOF = "the proof itself is honest"
HONEST_TRAINING = "every step was taken as the genesis says: only where it began is a lie"
TRUE_TO_ORDER = "every step was taken in the order that the proof names: the order is all that is wrong"
BROKEN = None  # what is left of the verifier relies on the checks that are off
