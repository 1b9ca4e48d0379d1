package main

import (
	"bytes"
	"context"
	"strings"
	"time"
)

// answer is what a command says.
type answer struct {
	code           int
	stdout, stderr string
}

// invoke runs a command as a shell would, without a terminal.
func invoke(stdin string, args ...string) answer {
	var stdout, stderr bytes.Buffer
	code := run(context.Background(), environment{
		name: "flowaudit", args: args, stdin: strings.NewReader(stdin), stdout: &stdout, stderr: &stderr,
		getenv: func(string) string { return "" }, now: func() time.Time { return time.Unix(1_700_000_000, 0) },
	})
	return answer{code, stdout.String(), stderr.String()}
}
