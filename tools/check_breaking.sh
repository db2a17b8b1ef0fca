#!/usr/bin/env bash
# Compares the contract with the one of a commit and fails on a change that breaks callers.
# Where there is nothing to compare with (no such commit, no protos in it, or those of an earlier
# epoch, which were broken on purpose) it says so and passes.
# Usage: check_breaking.sh COMMIT
set -euo pipefail

commit=$1
if ! git rev-parse --quiet --verify "$commit^{commit}" >/dev/null; then
    echo "There is no $commit to compare the contract with"
    exit 0
fi
if ! git cat-file -e "$commit:protos" 2>/dev/null; then
    echo "$commit has no contract to compare with"
    exit 0
fi

epoch() { grep -v '^#' || true; }
now=$(epoch < protos/epoch)
then=$( (git show "$commit:protos/epoch" 2>/dev/null || true) | epoch)
if [ "${then:-0}" -lt "$now" ]; then
    echo "The contract of $(git rev-parse --short "$commit") is of an earlier epoch: ${then:-0}, not $now"
    exit 0
fi

# An exported tree, not buf's own git input: that clones, and so fails on a shallow clone.
base=$(mktemp -d)
trap 'rm -rf "$base"' EXIT
git archive "$commit" protos buf.yaml | tar -x -C "$base"
buf breaking --against "$base"
echo "The contract breaks nobody who uses that of $(git rev-parse --short "$commit")"
