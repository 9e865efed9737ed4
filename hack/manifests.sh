#!/usr/bin/env bash
# Writes what controller-gen makes of the markers: CRDs, roles and webhooks for
# config/, and byte-equal copies of the CRDs and roles for the chart, whose templates
# read them. All is made aside first, so that a failure leaves the tree as it was and
# the file of a type that went away goes too.
set -euo pipefail
cd "$(dirname "$0")/.."

new=$(mktemp -d)
trap 'rm -rf "$new"' EXIT
mkdir "$new"/{crd,rbac,webhook}
gen=bin/tools/controller-gen

# controller-gen drops the rbac markers in the doc comment of a declaration without a
# word: they must be a comment of their own, with an empty line behind it.
lost() {
	find controllers internal/node -name '*.go' -exec awk '
		FNR == 1 { marker = 0 }
		/^\/\/ *\+kubebuilder:rbac/ { marker = FNR; next }
		/^\/\// { next }
		marker && /[^ \t]/ {
			printf "%s:%d: rbac marker in the doc comment of a declaration: put an empty line behind it\n", FILENAME, marker
			found = 1
		}
		{ marker = 0 }
		END { exit found }' {} + >&2
}

# role NAME FILE PATH...: controller-gen writes no file where it finds no marker, and a
# binding needs a role, so that a process without markers gets one that grants nothing.
role() {
	local name=$1 file=$2
	shift 2
	"$gen" "rbac:roleName=$name,fileName=$file" "${@/#/paths=}" output:rbac:dir="$new/rbac"
	[[ -e $new/rbac/$file ]] || printf -- \
		'---\napiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata:\n  name: %s\nrules: []\n' \
		"$name" >"$new/rbac/$file"
}

"$gen" crd paths=./api/... output:crd:dir="$new/crd"
"$gen" webhook paths=./api/... paths=./controllers/... output:webhook:dir="$new/webhook"
role fairlead-controller controller_role.yaml ./api/... ./controllers/...
role fairlead-node node_role.yaml ./internal/node/...

# replace DIR FILE...: makes the YAML files of DIR exactly FILEs.
replace() {
	local dir=$1
	shift
	mkdir -p "$dir"
	rm -f "$dir"/*.yaml
	cp "$@" "$dir/"
}

replace config/crd/bases "$new"/crd/*.yaml
cp "$new"/rbac/*.yaml config/rbac/
if [[ -e $new/webhook/manifests.yaml ]]; then
	mkdir -p config/webhook
	cp "$new/webhook/manifests.yaml" config/webhook/
else
	rm -f config/webhook/manifests.yaml
fi
replace charts/fairlead/files/crd config/crd/bases/*.yaml
replace charts/fairlead/files/rbac config/rbac/*_role.yaml
lost # at the end: what can be made is made
