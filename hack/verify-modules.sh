#!/usr/bin/env bash
# Fails, with a diff, when `go mod tidy` would change a module. hack/tools.mod is left
# out: the root package would be tidied into it.
set -euo pipefail
cd "$(dirname "$0")/.."

code=0
for mod in go.mod $(git ls-files 'test/*/go.mod'); do
	(cd "$(dirname "$mod")" && GOWORK=off go mod tidy -diff) || {
		echo "$mod is not tidy: run 'go mod tidy' in its directory" >&2
		code=1
	}
done
exit "$code"
