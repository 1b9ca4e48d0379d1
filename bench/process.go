package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flowaudit/flowaudit/test/netlab"
)

// process is a program under measurement.
type process struct {
	cmd *exec.Cmd
	log bytes.Buffer
	end chan error
}

// start runs a program inside a namespace.
func start(ctx context.Context, ns *netlab.Namespace, name string, args ...string) (*process, error) {
	return launch(ns.Command(ctx, name, args...))
}

// launch starts a program.
func launch(cmd *exec.Cmd) (*process, error) {
	p := &process{cmd: cmd, end: make(chan error, 1)}
	p.cmd.Stdout, p.cmd.Stderr = &p.log, &p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	go func() { p.end <- p.cmd.Wait() }()
	return p, nil
}

// stop ends it and returns the processor time of its whole life.
func (p *process) stop() (time.Duration, error) {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return 0, err
	}
	select {
	case <-p.end: //nolint:errcheck // a program ended by a signal says so
	case <-time.After(20 * time.Second):
		return 0, errors.Join(fmt.Errorf("%s does not end", p.cmd.Args), p.cmd.Process.Kill())
	}
	return p.cmd.ProcessState.UserTime() + p.cmd.ProcessState.SystemTime(), nil
}

// cpu is the processor time so far, of ip netns exec's child: it replaces
// itself. The process's clock is exact, where /proc counts ticks, which lie
// for who sleeps and wakes with them.
func (p *process) cpu() (time.Duration, error) { return processTime(p.cmd.Process.Pid) }

func processTime(pid int) (time.Duration, error) {
	const schedClock = 2 // CPUCLOCK_SCHED of the process, as clock_getcpuclockid(3) makes it
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|schedClock), &t); err != nil {
		return 0, fmt.Errorf("read processor time: %w", err)
	}
	return time.Duration(t.Nano()), nil
}

// memory is what the process holds, in bytes.
func (p *process) memory() (anonymous, resident uint64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", p.cmd.Process.Pid))
	if err != nil {
		return 0, 0, fmt.Errorf("read memory: %w", err)
	}
	for _, line := range strings.Split(string(b), "\n") {
		var kb uint64
		if n, _ := fmt.Sscanf(line, "Anonymous: %d kB", &kb); n == 1 {
			anonymous = kb << 10
		}
		if n, _ := fmt.Sscanf(line, "Rss: %d kB", &kb); n == 1 {
			resident = kb << 10
		}
	}
	return anonymous, resident, nil
}

// startAgent runs the agent of this build against a sink.
func startAgent(ctx context.Context, ns *netlab.Namespace, sink *sink, args ...string) (*process, error) {
	state, err := os.MkdirTemp(filepath.Dir(sink.path), "state-")
	if err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	args = append([]string{"--collector", "unix:" + sink.path, "--node-name", "n1", "--state-dir", state}, args...)
	p, err := start(ctx, ns, "bin/flowaudit-agent", args...)
	if err != nil {
		return nil, err
	}
	select {
	case <-sink.first:
		return p, nil
	case err := <-p.end:
		return nil, fmt.Errorf("agent ended: %w: %s", err, p.log.String())
	case <-time.After(20 * time.Second): // its first window may have just begun
		return nil, fmt.Errorf("agent does not report: %s", p.log.String())
	}
}

// installed finds a program, or a plug-in of ulogd.
func installed(program string) bool {
	if _, err := exec.LookPath(program); err != nil {
		return false
	}
	return program != "ulogd" || len(ulogdPlugins()) > 0
}

func ulogdPlugins() string {
	found, _ := filepath.Glob("/usr/lib/*/ulogd/ulogd_output_JSON.so")
	if len(found) == 0 {
		return ""
	}
	return filepath.Dir(found[0])
}

// ulogdConfig writes a configuration that turns a stack of plug-ins into JSON lines.
func ulogdConfig(dir, stack, settings string) (config, output string, err error) {
	plugins := ulogdPlugins()
	output = filepath.Join(dir, "ulogd.json")
	config = filepath.Join(dir, "ulogd.conf")
	var b strings.Builder
	fmt.Fprintf(&b, "[global]\nlogfile=%q\nloglevel=5\n", filepath.Join(dir, "ulogd.log"))
	for _, name := range []string{"inppkt_NFLOG", "inpflow_NFCT", "filter_IFINDEX", "filter_IP2STR", "raw2packet_BASE", "output_JSON"} {
		fmt.Fprintf(&b, "plugin=%q\n", filepath.Join(plugins, "ulogd_"+name+".so"))
	}
	fmt.Fprintf(&b, "stack=%s\n%s\n[json1]\nsync=0\nfile=%q\n", stack, settings, output)
	return config, output, os.WriteFile(config, []byte(b.String()), 0o600)
}

// lines counts the lines of a file.
func lines(path string) (uint64, error) {
	b, err := os.ReadFile(path)
	return uint64(bytes.Count(b, []byte("\n"))), err
}
