"""Prints what `vggkit serve` needs with OpenVINO, a requirement a line: all of vggkit's dependencies but torch."""

import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]

if __name__ == "__main__":
    wanted = [*PROJECT["dependencies"], *EXTRAS["serve"], *EXTRAS["fast"]]
    print("\n".join(each for each in wanted if not each.startswith("torch")))
