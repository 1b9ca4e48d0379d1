package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

// TestUsage: what the user can mend says how, and exits with 2.
func TestUsage(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"obsrve", "unknown command \"obsrve\" for \"flowaudit\"\n\nDid you mean this?\n\tobserve"},
		{"--nosuch", "unknown flag: --nosuch"},
		{"observe --nosuch", "unknown flag: --nosuch"},
		{"observe web", `unexpected argument "web": filters are flags, such as --pod web`},
		{"observe --port http", `"http" is no port: want a number up to 65535`},
		{"observe --port 65536", `invalid argument "65536" for "--port" flag`},
		{"observe --port 80,", "the value is empty"},
		{"observe --namespace=", `invalid argument "" for "-n, --namespace" flag: the value is empty`},
		{"observe --protocol quic", "quic"},
		{"observe --verdict rejcted", `parse verdict "rejcted": want denied (dropped), allowed (forwarded), unanswered or unknown`},
		{"observe --assessment fine", "want one of unknown, allowed, enforced"},
		{"observe --traffic-direction up", "want ingress or egress"},
		{"observe --ip db", `"db" is no IP address and no CIDR`},
		{"observe --ip 10.0.0.0/33", `"10.0.0.0/33" is no IP address and no CIDR`},
		{"observe --workload a/b/c/d", "want [namespace/][kind/]name"},
		{"observe -l app=(", `"app=(" is no label selector`},
		{"observe -l n>5", "operator gt is not for labels of flows"},
		{"observe --not", "--not has no filter flag after it"},
		{"observe -A -n shop", "-A and -n exclude each other"},
		{"observe --first 1 --last 1", "--first, --last and --all exclude each other"},
		{"observe --last 1 --all", "--first, --last and --all exclude each other"},
		{"observe --last -1", `invalid argument "-1" for "--last" flag`},
		{"observe --since soon", `--since: "soon" is no time: want a duration back from now such as 5m, 2h or 7d, an RFC 3339 time, or a date`},
		{"observe --until soon", `--until: "soon" is no time`},
		{"observe --since 1h --until 2h", "--until 2h is before --since 1h"},
		{"observe -o xml", `--output "xml": want compact, table, wide, json, yaml or jsonpath=TEMPLATE`},
		{"observe -o jsonpath={.a", "--output jsonpath"},
		{"observe --color blue", `--color "blue": want auto, always or never`},
		{"observe --tls-cert a.crt", "--tls-cert and --tls-key belong together"},
		{"observe --tls-ca none.crt", "none.crt"},
		{"status now", `unknown command "now" for "flowaudit status"`},
		{"status -o csv", `--output "csv": want table or json`},
		{"version now", `unknown command "now"`},
		{"query", "which question? flowaudit query --list names them"},
		{"query nodes since=1h", `unexpected argument "since=1h": arguments of a question are --arg NAME=VALUE`},
		{"query --list nodes", `unexpected argument "nodes"`},
		{"query nodes --arg since", `--arg "since": want NAME=VALUE`},
		{"query nodes -o yaml", `--output "yaml": want table, json, csv or parquet`},
		{"sql", "which SELECT?"},
		{"sql SELECT 1", `unexpected argument "1": put the whole SELECT into quotes`},
		{"sql x --max-rows 0", "--max-rows 0: want a number from 1"},
		{"sql x -o yaml", `--output "yaml": want table, json, csv or parquet`},
	} {
		t.Run(test.args, func(t *testing.T) {
			r := flowaudit(t, nil, nil, strings.Fields(test.args)...)
			if r.code != exitUsage || r.stdout != "" || !strings.HasPrefix(r.stderr, "flowaudit: ") || !strings.Contains(r.stderr, test.want) ||
				!regexp.MustCompile(`\nSee flowaudit( \w+)* --help\.\n$`).MatchString(r.stderr) {
				t.Errorf("exit code %d, standard output %q, error %q; want %q", r.code, r.stdout, r.stderr, test.want)
			}
		})
	}
}

// TestTheCollectorsErrors: in the user's words.
func TestTheCollectorsErrors(t *testing.T) {
	for _, command := range []string{"observe", "status", "query nodes", "query --list"} {
		for _, test := range []struct {
			err  error
			code int
			want string
		}{
			{status.Error(codes.InvalidArgument, "no question \"nods\": there are nodes"), exitUsage, "flowaudit: no question \"nods\": there are nodes\nSee flowaudit " + strings.Fields(command)[0] + " --help.\n"},
			{status.Error(codes.Internal, "read flows: disk"), exitError, ": read flows: disk\n"},
			{status.Error(codes.Unavailable, "gone"), exitError, "gone: start flowaudit-collector, or name it with --server\n"},
			{status.Error(codes.DeadlineExceeded, "late"), exitError, "within 30s: narrow the question, or raise --timeout\n"},
		} {
			r := flowaudit(t, &collector{err: test.err}, nil, strings.Fields(command)...)
			if r.code != test.code || !strings.HasSuffix(r.stderr, test.want) {
				t.Errorf("%s: exit code %d, %q; want %d, %q", command, r.code, r.stderr, test.code, test.want)
			}
		}
	}
}

// TestWhoseHelp: a mistake leads to the help of the subcommand it was made in.
func TestWhoseHelp(t *testing.T) {
	for args, want := range map[string]string{
		"observ":                    "flowaudit",
		"--sever x":                 "flowaudit",
		"observe --since yesterday": "flowaudit observe",
		"observe --unknown":         "flowaudit observe",
		"policy evl":                "flowaudit policy",
		"policy eval --manifest x":  "flowaudit policy eval",
		"policy lint -o xml":        "flowaudit policy lint",
		"query":                     "flowaudit query",
	} {
		if r := flowaudit(t, nil, nil, strings.Fields(args)...); r.code != exitUsage || !strings.HasSuffix(r.stderr, "\nSee "+want+" --help.\n") {
			t.Errorf("%s: exit code %d, %q; want the help of %s", args, r.code, r.stderr, want)
		}
	}
}

func TestWhoseHelpAsAPlugin(t *testing.T) {
	var stderr strings.Builder
	code := run(t.Context(), environment{
		name: "kubectl-flowaudit", args: []string{"policy", "lint", "-o", "xml"}, stdout: io.Discard, stderr: &stderr,
		getenv: func(string) string { return "" }, now: time.Now,
	})
	if code != exitUsage || !strings.HasPrefix(stderr.String(), "kubectl flowaudit: ") || !strings.HasSuffix(stderr.String(), "\nSee kubectl flowaudit policy lint --help.\n") {
		t.Errorf("exit code %d, %q", code, stderr.String())
	}
}

func TestNoCollector(t *testing.T) {
	const nobody = "unix:/nonexistent/c.sock"
	for _, args := range [][]string{{"observe"}, {"status"}, {"query", "nodes"}, {"observe", "-f"}} {
		for name, r := range map[string]result{
			"by --server":         flowaudit(t, nil, nil, append(args, "--server", nobody)...),
			"by FLOWAUDIT_SERVER": flowaudit(t, nil, map[string]string{"FLOWAUDIT_SERVER": nobody}, args...),
		} {
			if r.code != exitError || !strings.Contains(r.stderr, "flowaudit: connect to the collector at "+nobody+": dial unix /nonexistent/c.sock: connect: no such file or directory: ") ||
				!strings.Contains(r.stderr, "start flowaudit-collector, or name it with --server") {
				t.Errorf("%v, %s: exit code %d, %q", args, name, r.code, r.stderr)
			}
		}
	}
}

// TestAnAnswerThatTakesTooLong: --timeout ends it.
func TestAnAnswerThatTakesTooLong(t *testing.T) {
	r := flowaudit(t, &collector{hang: true}, nil, "observe", "--timeout", "1ms")
	if r.code != exitError || !strings.Contains(r.stderr, "within 1ms: narrow the question, or raise --timeout") {
		t.Errorf("exit code %d, %q", r.code, r.stderr)
	}
}

// TestInterrupted: what has come is shown, and the exit code is a shell's.
func TestInterrupted(t *testing.T) {
	for _, format := range []string{"compact", "table", "json"} {
		t.Run(format, func(t *testing.T) {
			c := answering()
			c.hang = true
			ctx, interrupt := context.WithCancel(t.Context())
			defer interrupt()
			read, write := io.Pipe()
			lines := make(chan int, 1)
			go func() {
				n := 0
				for s := bufio.NewScanner(read); s.Scan(); {
					if n++; strings.Contains(s.Text(), "192.168.7.1") { // the last flow
						interrupt()
					}
				}
				lines <- n
			}()
			var stderr strings.Builder
			address := c.listen(t)
			code := run(ctx, environment{
				name: "flowaudit", args: []string{"observe", "-f", "-o", format, "--no-headers"}, stdout: write, stderr: &stderr,
				getenv: func(string) string { return "" }, now: func() time.Time { return here },
			}.to(address))
			write.Close()
			if n := <-lines; code != exitInterrupt || n != 5 || strings.Contains(stderr.String(), "flowaudit:") {
				t.Errorf("exit code %d, %d lines, %q; want 130, the five flows, and no complaint", code, n, stderr.String())
			}
		})
	}
}

func (e environment) to(address string) environment {
	e.args = append(e.args, "--server", address)
	return e
}

// TestAReaderThatHasSeenEnough: head closes its end; that is no failure.
func TestAReaderThatHasSeenEnough(t *testing.T) {
	for _, args := range []string{"observe", "observe -o table", "observe -o json", "observe -o jsonpath=.verdict", "query nodes", "query nodes -o json", "query nodes -o csv"} {
		c := answering()
		c.run = []*flowauditv1.RunResponse{{Columns: []string{"node"}, Coverage: coverageOf()}}
		c.run[0].Rows = append(c.run[0].Rows, row(t, "node-1"))
		for _, test := range []struct {
			err  error
			code int
		}{{syscall.EPIPE, exitOK}, {errors.New("disk full"), exitError}} {
			var stderr strings.Builder
			code := run(t.Context(), environment{
				name: "flowaudit", args: strings.Fields(args), stdout: failingWriter{test.err}, stderr: &stderr,
				getenv: func(string) string { return "" }, now: func() time.Time { return here },
			}.to(c.listen(t)))
			if code != test.code {
				t.Errorf("%s: writing gives %q: exit code %d, %q; want %d", args, test.err, code, stderr.String(), test.code)
			}
		}
	}
}

// failingWriter writes nothing.
type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }

// TestTheProgramItself: a closed pipe does not kill it, and a signal ends it.
func TestTheProgramItself(t *testing.T) {
	program := func(c *collector, args ...string) *exec.Cmd {
		cmd := exec.Command(os.Args[0], append(args, "--server", c.listen(t))...)
		cmd.Env = append(os.Environ(), "FLOWAUDIT_TEST_MAIN=1")
		return cmd
	}
	t.Run("closed pipe", func(t *testing.T) {
		read, write, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		read.Close()
		defer write.Close()
		cmd := program(answering(), "observe")
		cmd.Stdout = write
		if err := cmd.Run(); err != nil {
			t.Error(err)
		}
	})
	t.Run("signal", func(t *testing.T) {
		c := answering()
		c.hang = true
		cmd := program(c, "observe", "-f")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		var exit *exec.ExitError
		if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != exitInterrupt {
			t.Errorf("%v, want exit code 130", err)
		}
	})
}

func TestColor(t *testing.T) {
	for _, test := range []struct {
		args     string
		terminal bool
		noColor  string
		want     bool
	}{
		{"", true, "", true},
		{"", false, "", false},
		{"", true, "1", false},
		{"--color auto", true, "", true},
		{"--color always", false, "1", true},
		{"--color never", true, "", false},
	} {
		var stdout, stderr strings.Builder
		code := run(t.Context(), environment{
			name: "flowaudit", args: append([]string{"observe"}, strings.Fields(test.args)...), stdout: &stdout, stderr: &stderr, terminal: test.terminal,
			getenv: func(name string) string { return map[string]string{"NO_COLOR": test.noColor}[name] }, now: func() time.Time { return here },
		}.to(answering().listen(t)))
		if got := strings.Contains(stdout.String(), "\x1b["); code != exitOK || got != test.want {
			t.Errorf("%q, terminal %t, NO_COLOR %q: colours %t, exit code %d", test.args, test.terminal, test.noColor, got, code)
		}
	}
}

func TestAsAPluginOfKubectl(t *testing.T) {
	var stderr strings.Builder
	code := run(t.Context(), environment{
		name: "kubectl-flowaudit", args: []string{"nosuch"}, stdout: io.Discard, stderr: &stderr,
		getenv: func(string) string { return "" }, now: time.Now,
	})
	if code != exitUsage || !strings.HasSuffix(stderr.String(), "See kubectl flowaudit --help.\n") {
		t.Errorf("exit code %d, %q", code, stderr.String())
	}
}

func TestVersion(t *testing.T) {
	if r := flowaudit(t, nil, nil, "version"); r.code != exitOK || r.stdout != "flowaudit devel\n" {
		t.Errorf("%+v", r)
	}
}
