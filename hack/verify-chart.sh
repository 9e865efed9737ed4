#!/usr/bin/env bash
# Lints the chart with its defaults and with each part left out, and builds every
# kustomize base. What they render is installed and judged by test/chart.
set -euo pipefail
cd "$(dirname "$0")/.."

helm=bin/tools/helm
kube=(--kube-version 1.36) # Helm takes itself for 1.20 unless its own Makefile links it
quiet() { # runs "$@" and shows what it said only when it fails
	local said
	said=$("$@" 2>&1) || { printf '%s\n' "$said" >&2; return 1; }
}

quiet "$helm" lint --strict "${kube[@]}" charts/fairlead
for part in controller node crds; do
	quiet "$helm" lint --strict "${kube[@]}" charts/fairlead --set "$part.enabled=false"
	quiet "$helm" template "${kube[@]}" fairlead charts/fairlead --set "$part.enabled=false"
done
for base in config/*/kustomization.yaml; do
	quiet bin/tools/kustomize build "$(dirname "$base")"
done
