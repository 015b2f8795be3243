"""Plans of Wukong's rows 1, 4 and 7 with 600 B embedding parameters on 256 to 4,096 GPUs.

python benchmarks/plan_wukong.py    writes benchmarks/results/plan_wukong.json: what seven `gemkit plan` commands say
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from gemkit.cli.main import main as gemkit

RESULTS = Path(__file__).resolve().parent / "results"
BESIDE = " --table-neighbours replicas"
RUNS = {
    "1": (1, ""),
    "1, replicas side by side": (1, BESIDE),
    "4": (4, ""),
    "4, replicas side by side": (4, BESIDE),
    "7": (7, ""),
    "7 over two nodes": (7, " --dp-shard 16"),
    "7 over two nodes, replicas side by side": (7, " --dp-shard 16" + BESIDE),
}
"""Name in the table -> row of the paper, further options."""
OPTIONS = (
    "--gpu h100-80g --world-size 256,512,1024,2048,4096 train.precision=bf16 --local-batch 1024 "
    "--embedding-params 600e9 --embedding-tables 720"
)


def command(row: int, further: str) -> list[str]:
    """The words after `gemkit`."""
    return ["plan", f"experiment=wukong_row{row}", *(OPTIONS + further).split()]


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    report = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (row, further) in RUNS.items():
            file, words = Path(folder) / "plan.json", command(row, further)
            if gemkit([*words, "--json", str(file)]):
                raise SystemExit(1)
            facts = json.loads(file.read_text(encoding="utf-8"))
            report[name] = {"command": "gemkit " + " ".join(words)} | facts
    (RESULTS / "plan_wukong.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
