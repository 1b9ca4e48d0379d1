package main

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// The agent is started as it is shipped, without cgo, and all of its threads
// are looked at.
func TestAStartedAgentHasNothingButNetAdmin(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("must run as root")
		}
		t.Skip("needs root, whose capabilities the agent gives up")
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "flowaudit-agent")
	build := exec.Command("go", "build", "-o", program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the agent: %v\n%s", err, out)
	}
	log := filepath.Join(dir, "policy_action.log")
	if err := os.WriteFile(log, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"connection tracking": {[]string{"--source", "conntrack"}, "0000000000001000"},
		"the kernel's log":    {[]string{"--source", "kernel-log"}, "0000000400001000"},
		"a log in a file":     {[]string{"--source", "gke=" + log}, "0000000000001004"},
	} {
		t.Run(name, func(t *testing.T) {
			args := append([]string{"--collector", "unix:" + filepath.Join(dir, "none"), "--node-name", "node-1", "--conntrack=false"}, c.args...)
			agent := exec.Command(program, args...)
			stderr, err := agent.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := agent.Start(); err != nil {
				t.Fatal(err)
			}
			var said bytes.Buffer
			t.Cleanup(func() {
				_ = agent.Process.Kill()
				_ = agent.Wait()
			})
			lines := bufio.NewScanner(stderr)
			for lines.Scan() { // it gives up its capabilities before it says anything
				said.Write(append(lines.Bytes(), '\n'))
				if strings.Contains(lines.Text(), "capabilities") {
					break
				}
			}
			threads, err := filepath.Glob(filepath.Join("/proc", strconv.Itoa(agent.Process.Pid), "task", "*", "status"))
			if err != nil || len(threads) == 0 {
				t.Fatalf("no threads of the agent: %v\n%s", err, said.String())
			}
			for _, path := range threads {
				if text, err := os.ReadFile(path); err == nil { // a thread may have ended
					checkStatus(t, path, string(text), c.want)
				}
			}
			main, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(agent.Process.Pid), "status"))
			if err != nil {
				t.Fatalf("the agent has ended: %v\n%s", err, said.String())
			}
			checkStatus(t, "the process", string(main), c.want)
		})
	}
}

func checkStatus(t *testing.T, path, text, want string) {
	t.Helper()
	got := make(map[string]string)
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(line, ":")
		got[name] = strings.TrimSpace(value)
	}
	for name, want := range map[string]string{
		"CapEff": want, "CapPrm": want, "CapBnd": want, "CapInh": "0000000000000000", "CapAmb": "0000000000000000", "NoNewPrivs": "1",
	} {
		if got[name] != want {
			t.Errorf("%s: %s is %s, want %s", path, name, got[name], want)
		}
	}
}
