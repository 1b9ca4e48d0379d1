package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/test/netlab"
)

// programs are the collector and the agent, and the questions to them.
type programs struct {
	bin, socket, dir string
	running          []*program
}

// program is one that runs, with what it says kept for a failure.
type program struct {
	cmd  *exec.Cmd
	log  bytes.Buffer
	done chan error
}

const (
	manifests = "demo/manifests"
	readyTime = 10 * time.Second
	answerBy  = 20 * time.Second
)

func (p *programs) start(ctx context.Context, node *netlab.Node) error {
	collector := exec.Command(filepath.Join(p.bin, "flowaudit-collector"), "--listen", "unix:"+p.socket, "--data", filepath.Join(p.dir, "data"),
		"--manifests", manifests)
	if err := p.launch(collector); err != nil {
		return err
	}
	// The agent works in the node's network namespace, where a DaemonSet's would.
	agent := node.Command(context.WithoutCancel(ctx), filepath.Join(p.bin, "flowaudit-agent"), "--collector", "unix:"+p.socket, "--node-name", "node-1",
		"--nflog-group", "100=denied", "--manifests", manifests, "--window", "2s", "--dump-interval", "1s")
	if err := p.launch(agent); err != nil {
		return err
	}
	return p.until(ctx, readyTime, "the agent to report", func() error {
		out, err := p.ask(ctx, "query", "nodes")
		if err == nil && !strings.Contains(out, "node-1") {
			err = errors.New("no report yet")
		}
		return err
	})
}

func (p *programs) launch(cmd *exec.Cmd) error {
	r := &program{cmd: cmd, done: make(chan error, 1)}
	cmd.Stdout, cmd.Stderr = &r.log, &r.log
	// A process group of its own: the terminal's Ctrl-C must not end it before
	// the demo does.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w: run make build first", cmd.Args[0], err)
	}
	go func() { r.done <- cmd.Wait() }()
	p.running = append(p.running, r)
	return nil
}

// stop ends what runs, the agent first, so that it can hand over its last flows.
func (p *programs) stop() error {
	var errs []error
	for i := len(p.running) - 1; i >= 0; i-- {
		r := p.running[i]
		_ = r.cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself
		select {
		case err := <-r.done:
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w\n%s", strings.Join(r.cmd.Args, " "), err, r.log.String()))
			}
		case <-time.After(15 * time.Second):
			errs = append(errs, fmt.Errorf("%s did not stop\n%s", strings.Join(r.cmd.Args, " "), r.log.String()), r.cmd.Process.Kill())
		}
	}
	return errors.Join(errs...)
}

// ask runs flowaudit against the collector.
func (p *programs) ask(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(p.bin, "flowaudit"), append(args, "--server", "unix:"+p.socket)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("flowaudit %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return string(out), nil
}

// until tries something until it works.
func (p *programs) until(ctx context.Context, limit time.Duration, what string, try func() error) error {
	deadline := time.After(limit)
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-deadline:
			return fmt.Errorf("wait for %s: %w\n%s", what, err, p.logs())
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (p *programs) logs() string {
	var b strings.Builder
	for _, r := range p.running {
		fmt.Fprintf(&b, "%s said:\n%s\n", filepath.Base(r.cmd.Args[0]), r.log.String())
	}
	return b.String()
}

// said is what flowaudit says of one pair, over all its flows.
type said struct {
	connections, sent, received uint64
	service                     string
}

// compare holds the answers against what was done, until they agree.
func (p *programs) compare(ctx context.Context, ledger []deed) error {
	return p.until(ctx, answerBy, "the answers to agree with what was done", func() error {
		answers, err := p.answers(ctx)
		if err != nil {
			return err
		}
		var errs []error
		for _, d := range ledger {
			key := fmt.Sprintf("%s %s->%s %s %s:%d", d.verdict, d.source, d.destination, d.protocol, d.ip, d.port)
			got := answers[key]
			delete(answers, key)
			switch {
			case got.connections != d.connections:
				errs = append(errs, fmt.Errorf("%s: %d connections made, %d in the answer", key, d.connections, got.connections))
			case got.sent < d.bytes || got.received < d.bytes:
				errs = append(errs, fmt.Errorf("%s: %d bytes sent each way, %d and %d in the answer", key, d.bytes, got.sent, got.received))
			case got.service != d.service:
				errs = append(errs, fmt.Errorf("%s: Service %q asked, %q in the answer", key, d.service, got.service))
			}
		}
		for key := range answers {
			errs = append(errs, fmt.Errorf("%s: in the answer, and never done", key))
		}
		return errors.Join(errs...)
	})
}

func (p *programs) answers(ctx context.Context) (map[string]said, error) {
	out, err := p.ask(ctx, "observe", "--all", "-o", "json", "-n", "shop", "--verdict", "allowed,denied")
	if err != nil {
		return nil, err
	}
	answers := make(map[string]said)
	lines := bufio.NewScanner(strings.NewReader(out))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var f flow.Flow
		if err := json.Unmarshal(lines.Bytes(), &f); err != nil {
			return nil, err
		}
		key := fmt.Sprintf("%s %s->%s %s %s:%d", f.Verdict, workload(f.Source), workload(f.Destination), f.Protocol, f.Dst, f.Port)
		a := answers[key]
		a.connections += f.Connections
		a.sent += f.Sent.Bytes
		a.received += f.Received.Bytes
		if f.Service != nil {
			a.service = f.Service.Name
		}
		answers[key] = a
	}
	return answers, lines.Err()
}

func workload(e *flow.Endpoint) string {
	if e == nil {
		return "?"
	}
	return e.Workload.Name
}

// show prints what a person would ask.
func (p *programs) show(ctx context.Context) error {
	for _, q := range [][]string{
		{"observe", "--verdict", "denied", "--to-workload", "shop/db", "--all", "--color", colors()},
		{"observe", "--verdict", "allowed", "-n", "shop", "--all", "-o", "table"},
		{"query", "denied-by-port"},
	} {
		fmt.Printf("\n$ flowaudit %s\n", strings.Join(q, " "))
		cmd := exec.CommandContext(ctx, filepath.Join(p.bin, "flowaudit"), append(q, "--server", "unix:"+p.socket)...)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stdout
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("flowaudit %s: %w", strings.Join(q, " "), err)
		}
	}
	return nil
}

func colors() string {
	if info, err := os.Stdout.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
		return "auto"
	}
	return "never"
}

// invite says how to ask more.
func (p *programs) invite() {
	fmt.Printf(`
It runs until Ctrl-C. In another terminal:

  export FLOWAUDIT_SERVER=unix:%s
  bin/flowaudit status
  bin/flowaudit observe -f
  bin/flowaudit observe --from-pod shop/web --not --verdict allowed -o wide
  bin/flowaudit query --list
`, p.socket)
}
