"""Mutated configs and command lines: each must be a valid run or a clear error, and nothing else.

python benchmarks/robustness_configs.py --count 1000 --seed 1

A config that is accepted is built into a model on a synthetic data set, and takes one training step. Writes
benchmarks/results/robustness_configs.json; exits with 1 if there is a defect.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from gemkit import __version__
from gemkit.config.compose import compose
from gemkit.registry import load_registry
from gemkit.session import open_dataset
from gemkit.testing.mutations import Mutation, Mutations
from gemkit.testing.outcomes import DEFECT, ERROR, VALID, Outcome, outcome_of
from gemkit.testing.runs import SMALL, silent, table_config
from gemkit.testing.teaching import write_log
from gemkit.train import train

RESULTS = Path(__file__).resolve().parent / "results" / "robustness_configs.json"
DATA: dict[str, Any] = {"num_users": 20, "num_examples": 240, "num_events": 480}
WORDS = (*SMALL, "size.num_blocks=1", "train.batch_size=16", "train.eval_batch_size=256", "train.max_steps=2")


def prepare(folder: Path) -> tuple[list[str], Path]:
    """The words of a valid tiny run, and a run folder that was trained with them."""
    (folder / "configs" / "data").mkdir(parents=True)
    values = table_config(folder / "data", **DATA) | {"max_history": 40}
    (folder / "configs" / "data" / "tiny.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    words = ["--config-dir", str(folder / "configs"), "data=tiny", *WORDS, f"runs={folder / 'runs'}"]
    registry = load_registry()
    run = compose(words[2:], registry, [folder / "configs"])
    train(run, registry, progress=silent())
    write_log(folder / "teacher_log", open_dataset(run, registry, silent()))
    return words, next((folder / "runs").iterdir())


def report(pairs: list[tuple[Mutation, Outcome]], seed: int, wall_s: float) -> dict[str, Any]:
    """Counts by class, and what was missed."""
    by_class: dict[str, collections.Counter[str]] = {}
    for mutation, outcome in pairs:
        by_class.setdefault(mutation.kind, collections.Counter())[outcome.result] += 1
    totals = collections.Counter(outcome.result for _, outcome in pairs)
    errors = [(m, o) for m, o in pairs if o.result == ERROR]
    missed = [(m, o) for m, o in errors if not o.named]
    return {
        "gemkit": __version__,
        "seed": seed,
        "mutations": len(pairs),
        "wall_s": round(wall_s, 1),
        "outcomes": {name: totals[name] for name in (VALID, ERROR, DEFECT)},
        "built_and_trained_one_step": sum(outcome.built for _, outcome in pairs),
        "slowest_s": round(max(outcome.seconds for _, outcome in pairs), 2),
        "errors_that_name_what_was_hit": round(1 - len(missed) / max(1, len(errors)), 4),
        "errors_that_do_not": [described(m, o) for m, o in missed],
        "defects": [described(m, o) for m, o in pairs if o.result == DEFECT],
        "by_class": {kind: dict(sorted(by_class[kind].items())) for kind in sorted(by_class)},
    }


def described(mutation: Mutation, outcome: Outcome) -> dict[str, Any]:
    """A mutation as the report shows it, without paths of this machine."""
    words = [w if len(w) < 80 else w[:60] + "..." for w in mutation.argv if not w.startswith(("/", "runs="))]
    text = outcome.text.replace(tempfile.gettempdir(), "<tmp>").strip()
    return {
        "class": mutation.kind,
        "target": mutation.target[:80],
        "words": [w for w in words if w not in (*WORDS, "data=tiny")],
        "why": outcome.why,
        "message": text[:400],
    }


def main() -> int:
    """Runs and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gemkit-mutations-") as name:
        folder = Path(name)
        words, run_folder = prepare(folder)
        saved = yaml.safe_load((run_folder / "config.yaml").read_text(encoding="utf-8"))
        mutations = Mutations(load_registry(), words, saved, args.seed).take(args.count)
        # A mutation that slipped through must not take the machine with it.
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (used + 12 * 2**30, resource.RLIM_INFINITY))
        started_s, pairs = time.perf_counter(), []
        home = Path.cwd()
        for i, mutation in enumerate(mutations):
            own = folder / f"mutation{i}"
            own.mkdir()
            os.chdir(own)
            outcome = outcome_of(mutation, own, run_folder)
            pairs.append((mutation, outcome))
            if outcome.result == DEFECT:
                print(json.dumps(described(mutation, outcome), indent=2, ensure_ascii=False), flush=True)
        os.chdir(home)
    found = report(pairs, args.seed, time.perf_counter() - started_s)
    args.output.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps({k: v for k, v in found.items() if k not in ("by_class", "defects")}, indent=2)[:6000])
    return 1 if found["outcomes"][DEFECT] else 0


if __name__ == "__main__":
    sys.exit(main())
