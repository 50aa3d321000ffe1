"""One process of the test of training with several: trains, stops, resumes, evaluates, and says what came of it.

torchrun --nproc-per-node 2 python_tests/engine/ddp_worker.py FOLDER FLAGS OF TRAIN
"""

import hashlib
import json
import sys
from pathlib import Path

from hmsa_ext import train
from hmsa_ext.engine import distributed, loop, results
from hmsa_ext.engine.run import Run, open_run


def main(folder: Path, arguments: list[str]) -> None:
    begun = train.parse([*arguments, "--max-minutes", "1e-9"]).training
    with distributed.start(begun.machine.device) as process:
        run = open_run(begun, process)
        finished = [loop.train(run).finished]
        steps = [run.progress.step]
        flags = ["--resume", str(run.folder), "--max-minutes", "0"]
        run = open_run(train.parse(flags).training, process, resume=run.folder)
        finished.append(loop.train(run).finished)
        steps.append(run.progress.step)
        result = results.finish(run).to_dict() | {"evaluation_seconds": None}
        content = {
            "world_size": process.world_size,
            "finished": finished,
            "steps": steps,
            "weights": digest(run),
            "result": result,
        }
        (folder / f"rank{process.rank}.json").write_text(json.dumps(content))


def digest(run: Run) -> str:
    """A fingerprint of all weights and statistics."""
    values = (value.detach().cpu().numpy().tobytes() for value in run.model.state_dict().values())
    return hashlib.sha256(b"".join(values)).hexdigest()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
