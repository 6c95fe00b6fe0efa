"""Record and verify one training for each feature: ``python -m benchmarks.features --write docs/replayable.md``.

Every row is a recipe of ``tests/zoo`` that is really recorded with a state after each step, and verified by replaying
every interval: *exact* if all of them end in the recorded bits, *refused* if the recording stops with a message. To
add a row, add a ``Feature`` to ``FEATURES``, and run the command.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks import page
from pol.auditor import LocalAuditor
from pol.errors import PolError
from pol.keys import SigningKey
from pol.profile import Profile
from pol.proof.genesis import read_genesis
from pol.proof.policy import EXACT, Policy
from pol.prover import record
from pol.replay.inprocess import InProcess
from pol.verifier import verify

ROOT = Path(__file__).resolve().parents[1]
ZOO = ROOT / "tests" / "zoo"
BLOCK = "features"
LONGEST = 200
"""Characters of a message that are shown."""


@dataclass(frozen=True)
class Feature:
    """A row: what a user would call it, and the recipe that has it."""

    group: str
    name: str
    recipe: str
    """File and class in ``tests/zoo``."""
    refused: bool = False
    """Whether it is to be refused."""
    compiles: bool = False
    """Whether a C++ compiler is called."""


STATE, OPTIMIZERS, SCHEDULES = "Model state", "Optimizers", "Learning rates and other hyperparameters"
PRECISION, COMPUTING, LOOPS = "Mixed precision", "How it is computed", "Loops"
AVERAGES, RANDOMNESS, DATA = "Averages and counters", "Randomness", "Data"
EVALUATION, HIDDEN = "Evaluation", "What evolves unseen"
LOADERS, OWN, BASES = "Loaders of one's own", "Randomness of one's own", "Frozen bases"

FEATURES = (
    Feature(STATE, "BatchNorm statistics, dropout", "zoo_states.py:Momentum"),
    Feature(STATE, "spectral normalisation", "zoo_evolving.py:SpectralNorm"),
    Feature(STATE, "buffers left out of `state_dict`, that move", "zoo_states.py:EvolvingTransient"),
    Feature(STATE, "integer, boolean and assigned buffers", "zoo_states.py:IntegerBuffers"),
    Feature(STATE, "causal mask of minus infinities", "zoo_states.py:CausalMask"),
    Feature(STATE, "tied weights", "zoo_states.py:Tied"),
    Feature(STATE, "views that share memory", "zoo_states.py:SharedMemory"),
    Feature(STATE, "`get_extra_state` (history of an FP8 layer)", "zoo_evolving.py:ExtraState"),
    Feature(STATE, "`get_extra_state` without `set_extra_state`", "zoo_refused.py:ToldButNotTaken", refused=True),
    Feature(STATE, "frozen layers", "zoo_states.py:Frozen"),
    Feature(STATE, "a layer that is first used in the middle", "zoo_states.py:LateGradient"),
    Feature(STATE, "freezing a layer in the middle", "zoo_refused.py:Unfreezes", refused=True),
    Feature(STATE, "bfloat16 weights", "zoo_states.py:Bfloat16"),
    Feature(STATE, "float64 weights", "zoo_states.py:Float64"),
    Feature(STATE, "complex weights", "zoo_refused.py:Complex", refused=True),
    Feature(OPTIMIZERS, "SGD, Nesterov, weight decay", "zoo_states.py:Nesterov"),
    Feature(OPTIMIZERS, "Adam with amsgrad", "zoo_states.py:Adam"),
    Feature(OPTIMIZERS, "AdamW with decay groups", "zoo_states.py:AdamW"),
    Feature(OPTIMIZERS, "Adafactor", "zoo_states.py:Adafactor"),
    Feature(OPTIMIZERS, "L-BFGS with a closure", "zoo_states.py:Lbfgs"),
    Feature(OPTIMIZERS, "`foreach=True`", "zoo_evolving.py:Foreach"),
    Feature(OPTIMIZERS, "`fused=True`", "zoo_evolving.py:Fused"),
    Feature(OPTIMIZERS, "`capturable=True` (CUDA only)", "zoo_refused.py:Capturable", refused=True),
    Feature(OPTIMIZERS, "state of its own under a name", "zoo_evolving.py:StateOfItsOwn"),
    Feature(OPTIMIZERS, "state under anything else", "zoo_refused.py:StateOfItsOwn", refused=True),
    Feature(OPTIMIZERS, "several optimizers (a GAN)", "zoo_states.py:Gan"),
    Feature(OPTIMIZERS, "clipping, label smoothing", "zoo_evolving.py:Clipped"),
    Feature(OPTIMIZERS, "an optimizer that is not attached", "zoo_refused.py:Forgotten", refused=True),
    Feature(SCHEDULES, "warm-up and cosine", "zoo_schedules.py:WarmUp"),
    Feature(SCHEDULES, "one cycle, with betas", "zoo_schedules.py:OneCycleAdam"),
    Feature(SCHEDULES, "one schedule after another", "zoo_schedules.py:Sequential"),
    Feature(SCHEDULES, "per epoch", "zoo_schedules.py:PerEpoch"),
    Feature(SCHEDULES, "`ReduceLROnPlateau`", "zoo_schedules.py:Patient"),
    Feature(SCHEDULES, "two schedules of one optimizer", "zoo_schedules.py:PlateauAndDecay"),
    Feature(SCHEDULES, "a rate per group, two optimizers", "zoo_schedules.py:ManyGroups"),
    Feature(SCHEDULES, "rate in a tensor, with a schedule", "zoo_evolving.py:TensorRate"),
    Feature(SCHEDULES, "rate in a tensor, by hand", "zoo_evolving.py:TensorRateByHand"),
    Feature(SCHEDULES, "rate and decay by hand, named in `dynamic`", "zoo_schedules.py:ByHand"),
    Feature(SCHEDULES, "rate by hand, not named", "zoo_refused.py:RateByHand", refused=True),
    Feature(SCHEDULES, "a schedule that is not attached", "zoo_refused.py:Unscheduled", refused=True),
    Feature(SCHEDULES, "rate by hand beside a schedule", "zoo_refused.py:RateBesideSchedule", refused=True),
    Feature(SCHEDULES, "`step()` of a schedule with arguments", "zoo_refused.py:StepsWithArguments", refused=True),
    Feature(PRECISION, "autocast to bfloat16", "zoo_precision.py:AutocastBfloat16"),
    Feature(PRECISION, "autocast to float16, `GradScaler`, skipped steps", "zoo_precision.py:AutocastFloat16"),
    Feature(PRECISION, "scaler updated after the commit", "zoo_precision.py:ScalerAfterCommit"),
    Feature(PRECISION, "a scaler of one's own", "zoo_states.py:Skipping"),
    Feature(COMPUTING, "activation checkpointing with dropout", "zoo_precision.py:Checkpointed"),
    Feature(COMPUTING, "the same, `use_reentrant=True`", "zoo_precision.py:CheckpointedReentrant"),
    Feature(COMPUTING, "routed experts (top-k)", "zoo_precision.py:Routed"),
    Feature(COMPUTING, "`channels_last`", "zoo_precision.py:ChannelsLast"),
    Feature(COMPUTING, "threads or precision set by the program", "zoo_refused.py:SetsThreads", refused=True),
    Feature(COMPUTING, "flash attention", "zoo_precision.py:Flash"),
    Feature(COMPUTING, "attention by plain kernels", "zoo_precision.py:Math"),
    Feature(COMPUTING, "`torch.compile` of the model, with dropout", "zoo_compile.py:Compiled", compiles=True),
    Feature(COMPUTING, "the same, `dynamic=True`", "zoo_compile.py:CompiledDynamic", compiles=True),
    Feature(COMPUTING, "`torch.compile` of a function", "zoo_compile.py:CompiledFunction", compiles=True),
    Feature(COMPUTING, "`torch.compile` of step and update", "zoo_compile.py:CompiledStep", compiles=True),
    Feature(COMPUTING, "`torch.compile` for ever new shapes", "zoo_compile.py:Shapes", refused=True, compiles=True),
    Feature(LOOPS, "gradient accumulation, odd rest of an epoch", "zoo_loops.py:Accumulating"),
    Feature(LOOPS, "one update an epoch", "zoo_loops.py:AccumulatingAll"),
    Feature(LOOPS, "two batches at once", "zoo_loops.py:TwoBatchesAStep"),
    Feature(LOOPS, "gradients zeroed in place", "zoo_loops.py:ZeroedInPlace"),
    Feature(LOOPS, "a gradient kept over a commit", "zoo_refused.py:Accumulates", refused=True),
    Feature(LOOPS, "changes at the top of an epoch", "zoo_loops.py:TopOfEpoch"),
    Feature(LOOPS, "a last partial batch dropped", "zoo_loops.py:DropLast"),
    Feature(LOOPS, "early stopping", "zoo_refused.py:Stopping", refused=True),
    Feature(LOOPS, "epochs that end early", "zoo_refused.py:ShortEpochs", refused=True),
    Feature(AVERAGES, "EMA (`AveragedModel`), moved after the commit", "zoo_states.py:Ema"),
    Feature(AVERAGES, "EMA by hand, its counter a plain int", "zoo_evolving.py:EmaByHand"),
    Feature(AVERAGES, "SWA: `SWALR`, `update_bn` after the last epoch", "zoo_evolving.py:Swa"),
    Feature(AVERAGES, "SWA: `update_bn` inside `aside`", "zoo_evolving.py:SwaAside"),
    Feature(AVERAGES, "token counts, best loss, curriculum: attached", "zoo_evolving.py:Counting"),
    Feature(AVERAGES, "the same in attributes", "zoo_refused.py:CountsSteps", refused=True),
    Feature(RANDOMNESS, "torch, numpy and Python, all global", "zoo_loops.py:GlobalRandomness"),
    Feature(RANDOMNESS, "attached `torch.Generator`s", "zoo_states.py:Generators"),
    Feature(RANDOMNESS, "attached generators of numpy and Python", "zoo_evolving.py:AttachedGenerators"),
    Feature(RANDOMNESS, "a generator that is not attached", "zoo_refused.py:OwnGenerator", refused=True),
    Feature(RANDOMNESS, "the system's randomness", "zoo_refused.py:SystemRandomness", refused=True),
    Feature(DATA, "augmentation", "zoo_loops.py:Augmented"),
    Feature(DATA, "collation of one's own that pads and draws", "zoo_loops.py:CustomCollate"),
    Feature(DATA, "tuples, `TensorDataset`", "zoo_loops.py:TensorData"),
    Feature(DATA, "text, bytes, nested fields", "zoo_loops.py:Texts"),
    Feature(DATA, "sequences: GRU over packed lengths, weights, flags", "zoo_evolving.py:Sequences"),
    Feature(DATA, "transformer with padding mask", "zoo_evolving.py:Transformed"),
    Feature(DATA, "a dataset that augments while it is read", "zoo_loaders.py:AugmentingBatches"),
    Feature(DATA, "a dataset that differs each time", "zoo_refused.py:UnstableData", refused=True),
    Feature(DATA, "a dataset with a generator of its own", "zoo_unloadable.py:OwnDataGenerator", refused=True),
    Feature(DATA, "a transform that changes the sample", "zoo_refused.py:InPlace", refused=True),
    Feature(EVALUATION, "evaluation in `aside`, anywhere", "zoo_loops.py:Evaluating"),
    Feature(EVALUATION, "its result drives a schedule", "zoo_schedules.py:Plateau"),
    Feature(EVALUATION, "evaluation that leaves `eval()` on", "zoo_refused.py:StaysInEval", refused=True),
    Feature(LOADERS, "`DataLoader(shuffle=True)`", "zoo_loaders.py:Shuffled"),
    Feature(LOADERS, "`DataLoader(shuffle=False)`", "zoo_loaders.py:Sequential"),
    Feature(LOADERS, "`WeightedRandomSampler`, with replacement", "zoo_loaders.py:Weighted"),
    Feature(LOADERS, "a batch sampler with buckets of many sizes", "zoo_loaders.py:Bucketed"),
    Feature(LOADERS, "a list of batches", "zoo_loaders.py:Batched"),
    Feature(LOADERS, "hidden state carried from batch to batch", "zoo_loaders.py:Carrying"),
    Feature(LOADERS, "an `IterableDataset` that shuffles and augments", "zoo_loaders.py:Streaming"),
    Feature(LOADERS, "an endless generator of batches", "zoo_loaders.py:Generated"),
    Feature(LOADERS, "an iterator that cannot be begun anew", "zoo_unloadable.py:Iterator", refused=True),
    Feature(LOADERS, "an iterable of unknown length", "zoo_unloadable.py:NoLength", refused=True),
    Feature(LOADERS, "a sampler of names", "zoo_unloadable.py:OddSampler", refused=True),
    Feature(LOADERS, "a loader iterated beside the run", "zoo_silent.py:OwnLoader", refused=True),
    Feature(LOADERS, "evaluation with a loader, in `aside`", "zoo_silent.py:EvaluationLoader"),
    Feature(OWN, "own seeds, `shuffle=True`, augmentation in the dataset", "zoo_loaders.py:Own"),
    Feature(OWN, "own seeds without saying so", "zoo_refused.py:SeedsItself", refused=True),
    Feature(OWN, "the same with worker processes", "zoo_loaders.py:OwnWorkers"),
    Feature(OWN, "a loader with a generator of its own", "zoo_loaders.py:OwnGenerator"),
    Feature(OWN, "the same, not attached", "zoo_unloadable.py:Unattached", refused=True),
    Feature(OWN, "`persistent_workers=True`", "zoo_unloadable.py:Persistent", refused=True),
    Feature(OWN, "own sampler, with replacement", "zoo_loaders.py:OwnWeighted"),
    Feature(OWN, "a sampler with hidden state", "zoo_unloadable.py:HiddenSampler", refused=True),
    Feature(OWN, "accumulation, odd rest of an epoch", "zoo_loaders.py:OwnAccumulating"),
    Feature(OWN, "a stream that shuffles when it begins", "zoo_loaders.py:OwnStream"),
    Feature(BASES, "adapters over a frozen base", "zoo_loaders.py:Frozen"),
    Feature(BASES, "adapters put into the model, over its `state_dict`", "zoo_loaders.py:FrozenInPlace"),
    Feature(BASES, "a base whose normalisation goes on learning", "zoo_unloadable.py:ChangesBase", refused=True),
    Feature(BASES, "a base that is secretly written to", "zoo_unloadable.py:ChangesBaseSecretly", refused=True),
    Feature(BASES, "a base that the optimizer trains", "zoo_unloadable.py:TrainsBase", refused=True),
    Feature(BASES, "a base that depends on the seed", "zoo_unloadable.py:DrawsBase", refused=True),
    Feature(HIDDEN, "weights that become NaN or infinite", "zoo_refused.py:Diverging", refused=True),
    Feature(HIDDEN, "a counter in a module", "zoo_silent.py:HiddenCounter", refused=True),
    Feature(HIDDEN, "a statistic, named in `ignored`", "zoo_silent.py:NamedMeter"),
    Feature(HIDDEN, "a value in an optimizer", "zoo_silent.py:HiddenInOptimizer", refused=True),
    Feature(HIDDEN, "half of an object in its `state_dict`", "zoo_silent.py:HalfSaved", refused=True),
    Feature(HIDDEN, "a generator that hangs on a module", "zoo_silent.py:HiddenGenerator", refused=True),
    Feature(HIDDEN, "a step that depends on the clock", "zoo_silent.py:ByTheClock", refused=True),
    Feature(HIDDEN, "a clock that is only printed", "zoo_silent.py:Throughput"),
    Feature(HIDDEN, "an attached object without `state_dict`", "zoo_refused.py:Stateless", refused=True),
)


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a feature."""

    group: str
    feature: str
    recipe: str
    verdict: str
    """``exact``, ``refused``, or what the verification said instead."""
    steps: int = 0
    intervals: int = 0
    """Replayed, each of one step."""
    message: str = ""
    level: str = ""
    """Assurance level that is reached, at most, without a nonce of the verifier's."""


def attempt(feature: Feature) -> Result:
    """Record and verify the training of a feature."""
    reference = f"{ZOO}/{feature.recipe}"
    row = {"group": feature.group, "feature": feature.name, "recipe": feature.recipe}
    with tempfile.TemporaryDirectory(prefix="pol-features-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        proof = Path(folder) / "proof"
        try:
            record(
                reference, proof, key=SigningKey.generate(), every=1, profile=Profile(threads=1), executor=InProcess()
            )
        except PolError as error:
            return Result(**row, verdict="refused", message=one_line(str(error)))
        report = verify(proof, policy=policy_for(proof), auditor=LocalAuditor(reference, None, InProcess()))
    if str(report.verdict) != "ACCEPT":
        return Result(**row, verdict=str(report.verdict), message=one_line(report.reason()))
    return Result(
        **row, verdict="exact", steps=max(one.stop for one in report.intervals), intervals=len(report.intervals),
        level=report.assurance.level,
    )  # fmt: skip


def policy_for(proof: Path) -> Policy:
    """The default policy, but with any order and randomness, and the bases of this run."""
    declared = read_genesis((proof / "genesis.json").read_bytes()).spec.declaration
    bases = tuple(base.root.digest for base in declared.frozen)
    return msgspec.structs.replace(EXACT, assurance="observed", order="any", bases=bases)


def one_line(message: str) -> str:
    """The beginning of a message, without this machine's paths."""
    line = next(iter(message.splitlines()), "").replace(f"{ROOT}/", "").partition(" (at ")[0]
    return line if len(line) <= LONGEST else line[: LONGEST - 1].rstrip() + "…"


def markdown(results: list[Result], about: str) -> str:
    """A table for each group."""
    exact = sum(one.verdict == "exact" for one in results)
    refused = sum(one.verdict == "refused" for one in results)
    parts = [about, f"{len(results)} features: {exact} exact, {refused} refused."]
    for group in dict.fromkeys(one.group for one in results):
        lines = [page.row(["feature", "recipe", "verdict", "replayed, or the message"]), "|---|---|---|---|"]
        lines += [table_row(one) for one in results if one.group == group]
        parts += [f"### {group}", "\n".join(lines)]
    return "\n\n".join(parts)


def table_row(one: Result) -> str:
    """A feature's line."""
    found = one.message.replace("|", "\\|")
    if one.verdict == "exact":
        weaker = "" if one.level == "self-seeded" else f", level {one.level}"
        found = f"{one.intervals} of {one.steps} steps{weaker}"
    return page.row([one.feature, f"`{one.recipe}`", one.verdict, found])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.features", description=__doc__)
    parser.add_argument("--group", choices=list(dict.fromkeys(one.group for one in FEATURES)), help="try one group")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table into the marked block of a page")
    options = parser.parse_args()
    results, surprises = [], 0
    for feature in FEATURES:
        if options.group in (None, feature.group):
            results.append(one := attempt(feature))
            surprises += one.verdict != ("refused" if feature.refused else "exact")
            print(f"{one.recipe}: {one.verdict} {one.message}", file=sys.stderr, flush=True)
    if options.json:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(results)))
    command = "python -m benchmarks.features" + (f" --group {options.group!r}" if options.group else "")
    text = markdown(results, page.about(command))
    print(text)
    if options.write:
        page.write(options.write, BLOCK, text)
    if surprises:
        raise SystemExit(f"{surprises} features are not what they are expected to be")


if __name__ == "__main__":
    main()
