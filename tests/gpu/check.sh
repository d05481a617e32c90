#!/usr/bin/env bash
# What one GPU of 80 GB shows, in under 8 minutes: tests/gpu/check.sh FOLDER
# Leaves in FOLDER the tests' report, seconds and peaks by stage, equality with the CPU, and the
# bench's tables.  SPARSEMEND_GPU_CHECK_DEVICE=cpu runs all of it small, on the CPU.
set -uo pipefail

out=$(mkdir -p "${1:?give a folder for the figures}" && cd "$1" && pwd)
device=${SPARSEMEND_GPU_CHECK_DEVICE:-cuda}
root=$(cd "$(dirname "$0")/../.." && pwd)
export SPARSEMEND_GPU_CHECK_OUT=$out SPARSEMEND_GPU_CHECK_DEVICE=$device
# read as torch initialises CUDA: less of the card is lost to fragments
export PYTORCH_ALLOC_CONF=${PYTORCH_ALLOC_CONF:-expandable_segments:True}
cd "$root" || exit 1
failed=0

if [ "$device" = cpu ]; then
    shape=(shape=small shape.hidden=128 shape.intermediate=256 shape.blocks=2 rounds=1)
    side=256
    limit=()
else
    side=4096
    limit=(timeout 340)  # with the 45 of each bench below 8 minutes
    shape=(shape=llama_7b_slice "device=$device" rounds=3)
    nvidia-smi >"$out/card.txt" 2>&1 || true
fi
python -c 'import torch; print(torch.__config__.show(), torch.version.cuda)' >"$out/torch.txt"

rm -f "$out"/{stages,peaks,equality,selection,products}.csv
"${limit[@]}" python -m pytest -p no:randomly -m gpu --durations=10 -rs tests/gpu tests/evaluation/speed \
    2>&1 | tee "$out/tests.txt" || failed=1

for suite in "suite=methods shape.tokens=[[1,512]]" "suite=pruning suite.samples=4 suite.seqlen=512" \
    "suite=inference suite.rows=$side suite.columns=$side"; do
    name=${suite%% *}
    # shellcheck disable=SC2086  # words of one line
    "${limit[@]/340/45}" python -m sparsemend.cli.bench $suite "${shape[@]}" \
        "hydra.run.dir=$out/bench_${name#suite=}" 2>&1 | tee "$out/bench_${name#suite=}.txt" || failed=1
done
exit "$failed"
