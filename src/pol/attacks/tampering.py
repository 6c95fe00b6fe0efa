"""A prover edits its own finished proof, with its own key: other weights, other buffers, fewer steps."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
from safetensors.torch import save_file

from pol.attacks.attack import Attack
from pol.attacks.forger import Forger
from pol.attacks.needs import DoesNotApply
from pol.attacks.workshop import Workshop
from pol.replay.state import State
from pol.store import checkpoint_path


def _plant(state: State) -> None:
    """A backdoor: in the last matrix of the model every output gets the weights of its neighbour."""
    matrices = [key for key, tensor in state.tensors.items() if key.startswith("parameter/") and tensor.dim() > 1]
    state.tensors[matrices[-1]] = state.tensors[matrices[-1]].roll(1, dims=0).clone()


def _middle(forger: Forger) -> int:
    """A kept checkpoint in the middle."""
    if len(forger.kept) < 4:
        raise DoesNotApply("this attack needs two kept checkpoints between the first and the last")
    return forger.kept[len(forger.kept) // 2 - 1]


def edited_checkpoint(workshop: Workshop, out: Path) -> None:
    """One weight in one checkpoint file changes; nothing is signed again."""
    shutil.copytree(workshop.target, out)
    forger = workshop.open()
    step = _middle(forger)
    _plant(forger.states[step])
    forger.states[step].save(out / checkpoint_path(step))


def edited_checkpoint_attested(workshop: Workshop, out: Path) -> None:
    """The same, and the attestation is made anew; the log stays."""
    forger = workshop.open()
    _plant(forger.states[_middle(forger)])
    forger.seal(out, workshop.key, roots=False)


def edited_checkpoint_sealed(workshop: Workshop, out: Path) -> None:
    """The same, with log and attestation made anew."""
    forger = workshop.open()
    _plant(forger.states[_middle(forger)])
    forger.seal(out, workshop.key)


def swapped_checkpoints(workshop: Workshop, out: Path) -> None:
    """Two checkpoints change places, in the log too."""
    forger = workshop.open()
    first = _middle(forger)
    second = forger.kept[forger.kept.index(first) + 1]
    forger.states[first], forger.states[second] = forger.states[second], forger.states[first]
    forger.seal(out, workshop.key)


def swapped_records(workshop: Workshop, out: Path) -> None:
    """Two records of the log change places."""
    forger = workshop.open()
    index = forger.first_interval(_middle(forger))
    forger.intervals[index - 1], forger.intervals[index] = forger.intervals[index], forger.intervals[index - 1]
    forger.seal(out, workshop.key)


def swapped_buffers(workshop: Workshop, out: Path) -> None:
    """The last checkpoint has other running statistics: they change what the model says, no gradient shows it."""
    forger = workshop.open()
    last = forger.states[forger.steps]
    buffers = [key for key, tensor in last.tensors.items() if key.startswith("buffer/") and tensor.is_floating_point()]
    if not buffers:
        raise DoesNotApply("this attack needs a model with buffers")
    for key in buffers:
        last.tensors[key] = last.tensors[key].flip(0).clone()
    forger.seal(out, workshop.key)


def swapped_final(workshop: Workshop, out: Path) -> None:
    """The last checkpoint holds other weights."""
    forger = workshop.open()
    _plant(forger.states[forger.steps])
    forger.seal(out, workshop.key)


def swapped_release(workshop: Workshop, out: Path) -> Path:
    """The proof is honest; the model file that is handed out with it is not."""
    shutil.copytree(workshop.target, out)
    forger = workshop.open()
    release = forger.genesis.spec.release
    if release is None:
        raise DoesNotApply("this attack needs a proof that names the released part")
    last = forger.states[forger.steps]
    _plant(last)
    tensors = {key.partition("/")[2]: tensor for key, tensor in last.tensors.items() if key.startswith(("p", "b"))}
    prefix = release.part + "."
    model = out.with_name(out.name + ".safetensors")
    save_file({name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}, model)
    return model


def unlogged_tail(workshop: Workshop, out: Path) -> None:
    """The log ends before the last interval; the last checkpoint, beyond its end, holds other weights."""
    forger = workshop.open()
    _plant(forger.states[forger.steps])
    del forger.intervals[-1]
    forger.seal(out, workshop.key)


def dropped_tail(workshop: Workshop, out: Path) -> None:
    """The last interval is cut off, with its checkpoint."""
    forger = workshop.open()
    stop = forger.intervals.pop().start
    forger.kept = [step for step in forger.kept if step <= stop]
    if stop not in forger.kept:
        raise DoesNotApply("this attack needs a kept checkpoint before the last interval")
    forger.seal(out, workshop.key)


def shortened_spec(workshop: Workshop, out: Path) -> None:
    """The same, and the spec in the genesis names so many steps fewer."""
    forger = workshop.open()
    stop = forger.intervals.pop().start
    forger.kept = [step for step in forger.kept if step <= stop]
    if stop not in forger.kept:
        raise DoesNotApply("this attack needs a kept checkpoint before the last interval")
    forger.genesis = msgspec.structs.replace(
        forger.genesis, spec=msgspec.structs.replace(forger.genesis.spec, steps=stop)
    )
    forger.seal(out, workshop.key)


_TAIL = (
    "four last steps that end in any model: accepted by verify_topq of the released code, not by "
    "verify_all (attack study, I5)"
)

ATTACKS = (
    Attack("edited-checkpoint", "a checkpoint edited", "prover", edited_checkpoint, study=("T5",)),
    Attack(
        "edited-checkpoint-attested",
        "a checkpoint edited, the attestation signed again",
        "prover",
        edited_checkpoint_attested,
        study=("T5",),
    ),
    Attack(
        "edited-checkpoint-sealed",
        "a checkpoint edited, log and attestation made again",
        "prover",
        edited_checkpoint_sealed,
        study=("T5",),
        reported="two forged intervals of N, met by s uniform draws with 1 - (1 - 2/N)^s (attack study, T5)",
    ),
    Attack(
        "swapped-checkpoints", "two checkpoints in each other's place", "prover", swapped_checkpoints, study=("T6",)
    ),
    Attack("swapped-records", "two log records in each other's place", "prover", swapped_records, study=("T6",)),
    Attack(
        "swapped-buffers",
        "other running statistics in the last checkpoint",
        "prover",
        swapped_buffers,
        study=("T17", "I4"),
        reported="running means plus 5: accuracy 0.956 to 0.104, accepted by the released code (attack study, I4)",
    ),
    Attack(
        "swapped-final",
        "other weights in the last checkpoint",
        "prover",
        swapped_final,
        study=("T4",),
        reported="met if the jump is among the largest; top-Q of the released code may skip the tail (attack study, "
        "T4)",
    ),
    Attack(
        "swapped-release", "another model file released with an honest proof", "prover", swapped_release, study=("T23",)
    ),
    Attack(
        "unlogged-tail",
        "other weights after the last logged step",
        "prover",
        unlogged_tail,
        study=("T20", "I5"),
        reported=_TAIL,
    ),
    Attack(
        "dropped-tail",
        "the last interval left out",
        "prover",
        dropped_tail,
        study=("T20", "I5"),
        reported=_TAIL,
    ),
    Attack(
        "shortened-spec",
        "the last interval left out, and the spec shortened",
        "prover",
        shortened_spec,
        study=("T20", "I5"),
        reported=_TAIL,
    ),
)
