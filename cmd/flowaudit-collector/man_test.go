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
	if code := run([]string{"--help"}, &help, &stderr); code != 0 {
		t.Fatalf("exit code %d, %s", code, stderr.String())
	}
	manual.Golden(t, "../../docs/man", "flowaudit-collector", 8, "stores flows and answers questions about them", help.String(), *update)
}
