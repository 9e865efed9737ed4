#!/usr/bin/env bash
# Fails, with a diff, when the generators change the tree. It compares with what was
# there before and not with HEAD, so that it also tells the truth about a tree with
# other uncommitted work in it.
set -euo pipefail
cd "$(dirname "$0")/.."

was=$(mktemp -d)
trap 'rm -rf "$was"' EXIT

# generated lists all that `make generate manifests` writes or copies.
generated() {
	find api -name 'zz_generated.*.go'
	find config/crd/bases config/rbac config/webhook charts/fairlead/files -type f 2>/dev/null || true
}

mkdir "$was"/{before,after}
generated | xargs cp --parents -t "$was/before"
make --no-print-directory --silent generate manifests
generated | xargs cp --parents -t "$was/after"

if ! (cd "$was" && diff -ruN before after); then
	echo "generated files had drifted; the tree now holds what the generators make, commit that" >&2
	exit 1
fi
