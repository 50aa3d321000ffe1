"""One process of the test of training with several: trains, evaluates, and writes what it has come to.

torchrun --nproc-per-node 2 python_tests/engine/ddp_worker.py FOLDER FLAGS OF TRAIN
"""

import hashlib
import json
import sys
from pathlib import Path

from hmsa_ext import train
from hmsa_ext.engine import distributed, loop
from hmsa_ext.engine.config import parse_command_line
from hmsa_ext.engine.run import open_run


def main(folder: Path, arguments: list[str]) -> None:
    config = parse_command_line(arguments, prog="worker", description="")
    with distributed.start(config.device) as process:
        run = open_run(config, process)
        finished = loop.train(run)
        content = {"rank": process.rank, "world_size": process.world_size, "step": run.progress.step}
        content["weights"] = hashlib.sha256(
            b"".join(p.detach().cpu().numpy().tobytes() for p in run.model.parameters())
        ).hexdigest()
        if finished:
            content["result"] = train.finish(run).to_dict() | {"evaluation_seconds": None}
        (folder / f"rank{process.rank}.json").write_text(json.dumps(content))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
