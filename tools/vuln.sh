#!/usr/bin/env bash
# Looks for known vulnerabilities in what the programs call. Exits with 0 if there
# are none, 3 if there are some, and 4 if the database could not be reached: then
# nothing is known. GOVULNDB names another one, such as file:///srv/vulndb.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(mktemp)
trap 'rm -f "$out"' EXIT
tools=$PWD/tools/go.mod
worst=0
for module in . deploy; do
	echo "== $module"
	(cd "$module" && go tool -modfile="$tools" govulncheck ${GOVULNDB:+-db "$GOVULNDB"} ./...) >"$out" 2>&1
	code=$?
	cat "$out"
	if [ "$code" = 0 ]; then
		continue
	fi
	if grep -q 'fetching vulnerabilities\|no such host\|connection refused' "$out"; then
		echo "the database of vulnerabilities (${GOVULNDB:-https://vuln.go.dev}) cannot be reached from here: it is not known whether there are any." >&2
		exit 4
	fi
	[ "$worst" -gt "$code" ] || worst=$code
done
exit "$worst"
