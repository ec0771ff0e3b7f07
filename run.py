"""Runs a workload through a serving system and leaves its measurements.

    python run.py workload=mmlu policy=lru                   # one cell
    python run.py -m workload=mmlu,hellaswag policy=lru,lfu  # a sweep; finished cells are skipped
    python run.py experiment=policies                        # several policies, interleaved and compared

conf/config.yaml names every setting.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

import conf
from experiments.session import Session

CONF = str(Path(next(iter(conf.__path__))).resolve())


def main() -> int:
    """The exit code: 0 when every cell was measured and written."""
    session = Session(sys.argv)
    full_error, os.environ["HYDRA_FULL_ERROR"] = (
        os.environ.get("HYDRA_FULL_ERROR"),
        "1",
    )  # errors come here, as they are

    @hydra.main(version_base="1.3", config_path=CONF, config_name="config")
    def task(config: DictConfig) -> None:
        session.run(config)

    with session.reporting(debug=full_error == "1"):
        sys.argv[1:] = session.arguments()
        task()
    return session.exit_code


if __name__ == "__main__":
    sys.exit(main())
