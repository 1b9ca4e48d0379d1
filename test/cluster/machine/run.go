package machine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds how long a daemon may take to be ready.
const patience = 30 * time.Second

// Run does what the configuration says, and goes on as long as its daemons
// live. The caller's goroutine is locked to its thread: a thread has the
// namespace of cgroups that its children inherit.
func Run(config string) error {
	c, err := read(config)
	if err != nil {
		return err
	}
	if err := c.isolate(); err != nil {
		return err
	}
	m := &children{exits: make(map[int]unix.WaitStatus)}
	m.changed = sync.NewCond(&m.mu)
	go m.bury()
	daemons := make(map[int]string)
	for _, s := range c.Steps {
		pid, err := start(s, c.Dir)
		if err != nil {
			return err
		}
		if !s.Daemon {
			if status := m.wait(pid); status != 0 {
				return fmt.Errorf("%s ended with status %#x", s.Name, status)
			}
			continue
		}
		daemons[pid] = s.Name
		if err := ready(s); err != nil {
			return err
		}
	}
	pid, status := m.first(daemons)
	return fmt.Errorf("%s ended with status %#x", daemons[pid], status)
}

func start(s Step, dir string) (pid int, err error) {
	log, err := os.OpenFile(filepath.Join(dir, s.Name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, fmt.Errorf("open log of %s: %w", s.Name, err)
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, fmt.Errorf("start %s: %w", s.Name, err)
	}
	defer null.Close()
	// Not exec.Cmd: its Wait and the burying of orphans would take each
	// other's processes.
	p, err := os.StartProcess(s.Args[0], s.Args, &os.ProcAttr{Env: append(os.Environ(), s.Env...), Files: []*os.File{null, log, log}})
	if err != nil {
		return 0, fmt.Errorf("start %s: %w", s.Name, err)
	}
	pid = p.Pid
	return pid, p.Release()
}

func ready(s Step) error {
	if s.Ready == "" {
		return nil
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(s.Ready); err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s has not made %s", s.Name, s.Ready)
		}
	}
}

// children are the processes that ended: own ones and orphans.
type children struct {
	mu      sync.Mutex
	changed *sync.Cond
	exits   map[int]unix.WaitStatus
}

// bury waits for all processes, as the first one of a machine must.
func (m *children) bury() {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		if errors.Is(err, unix.ECHILD) {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		if err != nil {
			continue
		}
		m.mu.Lock()
		m.exits[pid] = status
		m.mu.Unlock()
		m.changed.Broadcast()
	}
}

func (m *children) wait(pid int) unix.WaitStatus {
	_, status := m.first(map[int]string{pid: ""})
	return status
}

// first waits until one of some processes ends.
func (m *children) first(of map[int]string) (pid int, status unix.WaitStatus) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for {
		for pid := range of {
			if status, ended := m.exits[pid]; ended {
				return pid, status
			}
		}
		m.changed.Wait()
	}
}
