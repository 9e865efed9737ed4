#!/usr/bin/env bash
# stage.sh NAME COMMAND...
#
# Runs COMMAND, says how long it took, and leaves with its exit code.
set -uo pipefail

name=$1
shift
printf '== %s\n' "$name"
start=$SECONDS
"$@"
code=$?
verdict="done"
((code == 0)) || verdict="FAILED"
printf '== %s: %s in %ds\n' "$name" "$verdict" "$((SECONDS - start))"
exit "$code"
