#!/usr/bin/env bash
# One GPU, one command, under ten minutes: checks the environment, then measures a 7B shape row by row (bench/gpu.py).
#   bench/gpu.sh [RESULTS.json]      PYTHON=python3 chooses the interpreter
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
OUT=${1:-bench/results/gpu.json}
export PYTHONPATH="src:.${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
"$PYTHON" - <<'PY'
import importlib.util, sys
missing = [m for m in ("torch", "transformers", "numpy", "PIL", "safetensors", "jinja2", "typer", "rich", "matplotlib", "filelock") if importlib.util.find_spec(m) is None]
if missing:
    sys.exit(f"missing packages: {', '.join(missing)}; install limelight into this environment")
import torch, transformers
if not torch.cuda.is_available():
    sys.exit("no GPU is visible to torch")
free, total = torch.cuda.mem_get_info()
print(f"{torch.cuda.get_device_name(0)}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free, torch {torch.__version__}, transformers {transformers.__version__}")
if free < 30 * 2**30:
    sys.exit("a 7B in bfloat16 and its caches need about 30 GiB free")
PY
exec "$PYTHON" -m bench.gpu --out "$OUT" "${@:2}"
