#!/usr/bin/env bash
# Makes the code generated from proto/, or checks that it is what is committed.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
go tool -modfile=tools/go.mod buf generate proto --template tools/buf.gen.yaml --output "$out"
case "${1:-}" in
write) cp -r "$out"/. proto/ ;;
check)
	while IFS= read -r file; do
		if ! diff -u "proto/${file#"$out"/}" "$file"; then
			echo "generated code differs from proto/: run make generate" >&2
			exit 1
		fi
	done < <(find "$out" -name '*.go')
	;;
*) echo "usage: $0 check|write" >&2; exit 2 ;;
esac
