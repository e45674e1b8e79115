"""Print what the image installs besides the package itself: `python requirements.py pyproject.toml`."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
extras = project["project"]["optional-dependencies"]
print(
    *project["project"]["dependencies"],
    *extras["jupyter"],
    *extras["server"],
    *project["build-system"]["requires"],
    sep="\n",
)
