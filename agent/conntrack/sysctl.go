package conntrack

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// sysctlDir holds the settings of connection tracking (kernel documentation,
// nf_conntrack-sysctl). The kernel shows each thread its own network namespace's.
const sysctlDir = "/proc/sys/net/netfilter"

// sysctls are the settings, in one network namespace, that decide what can be read.
type sysctls struct {
	accounting bool // nf_conntrack_acct: packets and bytes are counted
	events     bool // nf_conntrack_events: changes are told, not only dumped
}

func readSysctls(dir string) (sysctls, error) {
	var errs []error
	on := func(name string) bool {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			errs = append(errs, fmt.Errorf("read sysctl: %w", err))
			return false
		}
		n, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err != nil {
			errs = append(errs, fmt.Errorf("read sysctl %s: %w", name, err))
		}
		return n != 0
	}
	s := sysctls{accounting: on("nf_conntrack_acct"), events: on("nf_conntrack_events")}
	return s, errors.Join(errs...)
}

// Limits says in plain words what the kernel's settings keep from being seen,
// in the network namespace of the calling thread.
func Limits() []string { return limits(readSysctls(sysctlDir)) }

// Events reports whether connections that begin are told, in the network
// namespace of the calling thread. Where that cannot be read they are taken to be.
func Events() bool {
	s, err := readSysctls(sysctlDir)
	return err != nil || s.events
}

func limits(s sysctls, err error) []string {
	if err != nil {
		return []string{fmt.Sprintf("whether packets and bytes are counted is not known: %v", err)}
	}
	var all []string
	if !s.accounting {
		all = append(all, "packets and bytes are absent: net.netfilter.nf_conntrack_acct is 0, set it to 1")
	}
	if !s.events {
		all = append(all, "connections are seen by dumps only: net.netfilter.nf_conntrack_events is 0, set it to 1 or 2")
	}
	return all
}

// Account tries to switch packet and byte counters on, in the network namespace
// of the calling thread. It works for connections that begin after it.
func Account() error {
	if err := os.WriteFile(filepath.Join(sysctlDir, "nf_conntrack_acct"), []byte("1"), 0); err != nil {
		return fmt.Errorf("switch on packet and byte counters: %w: set the sysctl net.netfilter.nf_conntrack_acct to 1 from outside", err)
	}
	return nil
}
