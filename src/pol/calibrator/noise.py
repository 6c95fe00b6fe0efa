"""Honest noise: intervals of one run, each taken again from its recorded state on platforms that differ from it.

The other platforms are what this machine can give by flags: another number of threads, and libraries that are told to
use older instructions. The recipe is not told. An interval is compared as rule ``tolerance`` compares it.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from pol import canonical, seeds
from pol.auditor import LocalAuditor
from pol.calibrator.deviation import SKIP, Error, capped, error_of
from pol.calibrator.trainer import Run, leading
from pol.checkpoint import Checkpoint, compare
from pol.digest import Digest
from pol.distance import ratio
from pol.errors import FormatError, IntegrityError, ReplayError
from pol.executors.local import Executor
from pol.messages import Failed, Opened, Recorded, Segment, Stepped
from pol.profile import Profile
from pol.proof.attestation import MAX_JOURNAL, Journal
from pol.proof.genesis import Secret, genesis_digest, registered
from pol.proof.log import Log, counts_after, parse_log
from pol.proof.noise import WORST, Noise, Perturbed, changed, following, refusals
from pol.proof.policy import Limits
from pol.prover import Progress
from pol.statetree import FLOATING, Entry
from pol.store import JOURNAL, LOG, MAX_LOG_FILE, SECRET, ProofDirectory, checkpoint_path, write_atomically
from pol.verifier.reproduction import norm
from pol.verifier.tolerance import HALF_ULP, largest


def perturbations(profile: Profile) -> list[Profile]:
    """Profiles that differ from one in a single flag each: more or fewer threads, and older instructions."""
    changes: list[dict[str, Any]] = [{"threads": 2 if profile.threads == 1 else 1}]
    for name, old in (("aten", "default"), ("onednn", "sse41"), ("mkl", "compatible")):
        changes.append({name: old if getattr(profile, name) != old else "native"})
    return [msgspec.structs.replace(profile, **change) for change in changes]


class _Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an interrupted measurement has found, for the next call; in the folder of the runs, and not signed."""

    genesis: str
    """Of the run that is replayed."""
    found: dict[int, list[Error]]


class NoiseMeter:
    """Measures the honest noise of one run, or goes on with measuring it."""

    def __init__(
        self, reference: str, settings: dict[str, Any] | None, run: Run, executor: Executor | None, tell: Progress
    ) -> None:
        self._reference, self._settings, self._executor, self._tell = reference, settings, executor, tell
        self._run, self._store = run, ProofDirectory(run.folder)
        self._log: Log = parse_log(self._store.read(LOG, MAX_LOG_FILE))
        self._file = run.folder.parent / "noise.json"
        self._found = self._earlier()

    def measure(self, reference: float) -> Noise:
        """Take the intervals again on every platform, as far as that is not done.

        Args:
            reference: d_ref, Euclidean, over all parameters.

        Raises:
            ReplayError: the steps cannot be taken on one of the platforms.
            UsageError: what is not floating point depends on the platform.
        """
        genesis = self._run.genesis
        profiles = perturbations(genesis.profile)
        with LocalAuditor(self._reference, self._settings, self._executor) as auditor:
            for number, profile in enumerate(profiles):
                self._perturb(auditor, number, profile, len(profiles))
        perturbed = [self._summary(profile, self._found[number]) for number, profile in enumerate(profiles)]
        moves, drift = self._moves(perturbed)
        noise = Noise(
            every=genesis.spec.every,
            total=len(self._log.intervals),
            intervals=self._run.chosen,
            move=repr(math.fsum(moves) / len(moves)),
            drift=repr(min(drift, WORST)),
            coarse=self._coarse(),
            perturbed=perturbed,
            limits=None,
        )
        if refusals(noise, reference):
            return noise
        return msgspec.structs.replace(noise, limits=_following(perturbed))

    # -- replaying ------------------------------------------------------------------------------------------------

    def _perturb(self, auditor: LocalAuditor, number: int, profile: Profile, count: int) -> None:
        genesis = self._run.genesis
        name = changed(genesis.profile, profile)
        have = {one.interval for one in self._found.setdefault(number, [])}
        todo = [index for index in self._run.chosen if index not in have]
        if not todo:
            return
        secret = bytes.fromhex(canonical.decode(self._store.read(SECRET, 1024), Secret, what=SECRET, limit=1024).r)
        journal = canonical.decode(self._store.read(JOURNAL, MAX_JOURNAL), Journal, what=JOURNAL, limit=MAX_JOURNAL)
        seed = seeds.derive_seed(genesis_digest(genesis), bytes.fromhex(journal.beacon.value), secret)
        steps = sum(map(self._steps, self._run.chosen))
        before = number * steps + sum(map(self._steps, have))
        self._tell("measuring noise", before, count * steps)
        with tempfile.TemporaryDirectory(prefix="pol-noise-") as made:
            folder = Path(made)
            segments = list(map(self._segment, todo))
            for event in auditor.replay(
                profile, genesis.recipe.configuration, seed, registered(genesis, secret), segments,
                seeds.salt_key(secret), save=folder,
            ):  # fmt: skip
                match event:
                    case Opened(step=step, root=root):
                        if root != self._root_after(step):
                            raise IntegrityError(
                                f"{self._run.folder / checkpoint_path(step)} loads as another state than was recorded: "
                                f"remove {self._run.folder} to train it anew"
                            )
                    case Recorded(interval=interval):
                        end = folder / f"{interval.stop:012d}.safetensors"
                        recorded = self._log.intervals[interval.start // genesis.spec.every]
                        self._found[number].append(error_of(self._run, recorded, interval, Checkpoint.at(end), name))
                        end.unlink()
                        self._keep()
                    case Stepped(step=step):
                        self._tell("measuring noise", before + step, count * steps)
                    case Failed(message=message):
                        raise ReplayError(f"taking steps again with {name}: {message}. {SKIP}")
        if len(self._found[number]) < len(self._run.chosen):
            raise ReplayError(f"taking steps again with {name}: the training process ended early")
        self._tell("measuring noise", (number + 1) * steps, count * steps)

    def _segment(self, index: int) -> Segment:
        interval = self._log.intervals[index]
        return Segment(
            start=interval.start,
            stop=interval.stop,
            checkpoint=str(self._run.folder / checkpoint_path(interval.start)),  # not built again: other kernels may
            counts=counts_after(self._log, self._run.genesis.spec, interval.start),  # draw other first weights
        )

    def _steps(self, index: int) -> int:
        return self._log.intervals[index].stop - self._log.intervals[index].start

    def _root_after(self, step: int) -> object:
        if not step:
            return self._log.origin.root
        return self._log.intervals[-(-step // self._run.genesis.spec.every) - 1].root

    # -- judging --------------------------------------------------------------------------------------------------

    def _summary(self, profile: Profile, found: list[Error]) -> Perturbed:
        relative = max((one.relative, one.relative_of) for one in found)
        absolute = max((one.absolute, one.absolute_of) for one in found)
        return Perturbed(
            profile=profile,
            equal=sum(one.equal for one in found),
            worst=repr(max(one.share for one in found)),
            median=repr(statistics.median(one.share for one in found)),
            error=repr(max(one.error for one in found)),
            relative=repr(relative[0]),
            relative_of=relative[1],
            absolute=repr(absolute[0]),
            absolute_of=absolute[1],
            loss=repr(max(one.loss for one in found)),
        )

    def _moves(self, perturbed: list[Perturbed]) -> tuple[list[float], float]:
        """How far each interval moved all parameters, and what the limits that follow leave over the whole run."""
        advised = _following(perturbed)
        limits = Limits(relative=float(advised.relative), absolute=float(advised.absolute), floor=float(advised.floor))
        moves, bounds = [], []
        for index in self._run.chosen:
            interval = self._log.intervals[index]
            start, end = self._run.state(interval.start), self._run.state(interval.stop)
            found = compare(end, start, _trained)
            moves.append(capped(found.total.l2))
            each = (
                largest(limits, start.entries[key].entry, one.l2, norm(start, key))
                for key, one in found.tensors.items()
            )
            bounds.append(math.hypot(*each))  # as the verifier adds limits up
        way = compare(self._run.last, self._run.state(0), _trained).total.l2
        first = leading(len(bounds))
        rest = (len(self._log.intervals) - first) / max(1, len(bounds) - first)
        whole = math.fsum([*bounds[:first], *(bound * rest for bound in bounds[first:])])
        return moves, capped(ratio(whole, way))

    def _coarse(self) -> str | None:
        for key, slot in sorted(self._run.last.entries.items()):
            if slot.entry.kind in ("parameter", "optimizer") and _is_coarse(slot.entry):
                return key
        return None

    # -- interrupted ----------------------------------------------------------------------------------------------

    def _earlier(self) -> dict[int, list[Error]]:
        try:
            kept = msgspec.json.decode(self._file.read_bytes(), type=_Kept)
        except FileNotFoundError:
            return {}
        except msgspec.DecodeError as error:
            raise FormatError(f"{self._file}: {error}; remove it to measure anew") from None
        if kept.genesis != self._name():  # that run was removed, and trained anew
            return {}
        return {
            number: [one for one in found if one.interval in self._run.chosen] for number, found in kept.found.items()
        }

    def _keep(self) -> None:
        write_atomically(self._file, msgspec.json.encode(_Kept(self._name(), self._found)))

    def _name(self) -> Digest:
        return genesis_digest(self._run.genesis)


def _following(perturbed: list[Perturbed]) -> Any:
    return following(
        *(max(float(getattr(one, name)) for one in perturbed) for name in ("relative", "absolute", "loss"))
    )


def _trained(entry: Entry) -> bool:
    return entry.kind == "parameter"


def _is_coarse(entry: Entry) -> bool:
    return entry.dtype in FLOATING and entry.dtype not in HALF_ULP
