package main

import (
	"flag"
	"strings"
	"testing"

	"github.com/flowaudit/flowaudit/cmd/manual"
)

var update = flag.Bool("update", false, "write the manual page anew")

func TestManualPage(t *testing.T) {
	var help, stderr strings.Builder
	if code := run([]string{"--help"}, getenv(nil), &help, &stderr); code != 0 {
		t.Fatalf("exit code %d, %s", code, stderr.String())
	}
	manual.Golden(t, "../../docs/man", "flowaudit-agent", 8, "reports the flows of a node or a pod", help.String(), *update)
}
