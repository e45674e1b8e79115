#!/usr/bin/env bash
# verl in a folder of its own, for the tests of solostream.integrations.verl: its wheel asks for an older transformers and
# for another antlr4 than math-verify's, so it goes beside the environment, without dependencies that are here already.
# usage: scripts/install-verl.sh PYTHON FOLDER
set -euo pipefail
"$1" -m pip install -q --disable-pip-version-check --no-deps --target "$2" verl==0.9.1 tensordict==0.10.0 omegaconf==2.4.0 \
    antlr4-python3-runtime==4.9.3 hydra-core==1.3.8 codetiming==1.4.0 dill==0.4.1 torchdata==0.11.0 pyvers==0.2.3
