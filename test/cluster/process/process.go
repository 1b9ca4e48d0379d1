// Package process runs daemons in network namespaces and keeps what they say.
package process

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// Process is a daemon that runs.
type Process struct {
	Name string
	Log  string // the file with its output

	cmd  *exec.Cmd
	done chan struct{}
	err  error // why it ended; read after done
}

// Start runs a prepared command. Its output is appended to NAME.log in dir. The
// kernel kills it when this program ends, however it ends.
func Start(name, dir string, cmd *exec.Cmd) (*Process, error) {
	p := &Process{Name: name, Log: filepath.Join(dir, name+".log"), cmd: cmd, done: make(chan struct{})}
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log of %s: %w", name, err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	// A process group of its own: the terminal's Ctrl-C must not end it first.
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid, cmd.SysProcAttr.Pdeathsig = true, syscall.SIGKILL
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// PID is the process' number.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Stop asks the process to end, and kills it after the limit. A process that
// says goodbye with an error, or has to be killed, is an error.
func (p *Process) Stop(limit time.Duration) error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself, which Wait tells
	select {
	case <-p.done:
	case <-time.After(limit):
		return errors.Join(fmt.Errorf("%s did not stop in %s:\n%s", p.Name, limit, p.Tail()), p.Kill())
	}
	var exit *exec.ExitError
	if errors.As(p.err, &exit) {
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signal() == syscall.SIGTERM {
			return nil
		}
	}
	if p.err != nil {
		return fmt.Errorf("%s: %w:\n%s", p.Name, p.err, p.Tail())
	}
	return nil
}

// Kill ends the process at once, as a crash does.
func (p *Process) Kill() error {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill %s: %w", p.Name, err)
	}
	<-p.done
	return nil
}

// Tail is the end of what the process said.
func (p *Process) Tail() string {
	const most = 4 << 10
	b, err := os.ReadFile(p.Log)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-most):])
}
