#!/usr/bin/env bash
# Runs every fuzz target for a while: tools/fuzz.sh 60s
set -euo pipefail
cd "$(dirname "$0")/.."
grep -rn --include='*_test.go' -oE '^func Fuzz[A-Za-z0-9_]+' . | sort | while IFS=: read -r file _ name; do
	name=${name#func }
	echo "== $name of $(dirname "$file")"
	go test -run '^$' -fuzz "^$name\$" -fuzztime "$1" -fuzzminimizetime 5x "$(dirname "$file")" </dev/null
done
