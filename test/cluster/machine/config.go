// Package machine makes a process the first one of a machine inside the machine, with mounts, cgroups and daemons of its own.
package machine

import (
	"encoding/json"
	"fmt"
	"os"
)

// Config says what machine is wanted. The process is started in new mount,
// pid, uts and ipc namespaces, and in the machine's network namespace.
type Config struct {
	Name    string            // the host name
	Dir     string            // of the machine's own files
	Cgroups []Cgroup          // that contain it
	Binds   map[string]string // files and directories of the machine, and what they really are
	Steps   []Step            // in order
}

// Cgroup is a hierarchy of control groups.
type Cgroup struct {
	Type    string // of the file system: cgroup or cgroup2
	Options string // such as cpu,cpuacct or none,name=systemd
	Mount   string // where it is mounted
	Path    string // the machine's group, an existing directory
}

// Step starts a program.
type Step struct {
	Name   string // of its log in Dir
	Args   []string
	Env    []string // beside this process' own
	Daemon bool     // goes on; the next step does not wait for its end
	Ready  string   // file or socket that a daemon makes when it is ready; "" is at once
}

// Write keeps the configuration in a file, for Run.
func (c Config) Write(path string) error {
	b, err := json.MarshalIndent(c, "", "\t")
	if err != nil {
		return fmt.Errorf("write a machine's configuration: %w", err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		return fmt.Errorf("write a machine's configuration: %w", err)
	}
	return nil
}

func read(path string) (c Config, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return c, fmt.Errorf("read the machine's configuration: %w", err)
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return c, fmt.Errorf("read the machine's configuration: %w", err)
	}
	return c, nil
}
