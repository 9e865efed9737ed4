#!/usr/bin/env bash
# test-race.sh COUNT
#
# Runs every test COUNT times with the race detector, each time in another order.
# Ginkgo refuses -count (a suite cannot be run twice in one process) and knows a deeper
# shuffle than -shuffle, by a flag that only Ginkgo's test binaries have.
set -euo pipefail
cd "$(dirname "$0")/.."

count=${1:?how often}
packages=$(go list -f '{{.ImportPath}} {{join .TestImports " "}} {{join .XTestImports " "}}' ./...)
mapfile -t suites < <(awk '/ github.com\/onsi\/ginkgo\/v2/ { print $1 }' <<<"$packages")
mapfile -t plain < <(awk '!/ github.com\/onsi\/ginkgo\/v2/ { print $1 }' <<<"$packages")

hack/stage.sh "plain tests, $count times" \
	go test -race -shuffle=on -count="$count" -timeout=60m "${plain[@]}"
((${#suites[@]})) || exit 0
for ((i = 1; i <= count; i++)); do
	hack/stage.sh "suites, $i of $count" \
		go test -race -count=1 -timeout=30m "${suites[@]}" --ginkgo.randomize-all
done
