// Package suggest makes least-privilege policies from recorded traffic, and proves them on it.
package suggest

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/policy/history"
)

// Mode says what becomes of the policies that are there.
type Mode string

// The modes.
const (
	Add     Mode = "add"     // they stay; only what is missing is suggested
	Replace Mode = "replace" // they are deleted
	Tighten Mode = "tighten" // their rules are narrowed to what was seen
)

// Isolation says what a policy is for.
type Isolation string

// The isolations.
const (
	PerWorkload  Isolation = "workload"
	PerNamespace Isolation = "namespace" // coarse: pods of a namespace are not kept apart
)

// Options of Run. The zero value suggests for all workloads, both directions,
// in mode add.
type Options struct {
	// Namespaces and Workloads that are suggested for; empty means all. Peers
	// may be anywhere.
	Namespaces []string
	Workloads  []flow.WorkloadName
	// NoEgress and NoIngress leave a direction alone.
	NoEgress, NoIngress bool
	Mode                Mode      // "" means Add
	Isolation           Isolation // "" means PerWorkload
	// CIDRSlack is how many never-seen addresses one CIDR may cover, so that
	// there are fewer of them. Ranges of private addresses are only widened if
	// ClusterCIDRs says where pods and Services are.
	CIDRSlack    uint64
	ClusterCIDRs []netip.Prefix
	// PortSlack is the share of never-seen ports that a range of ports may
	// cover, from 0 to less than 1.
	PortSlack float64
	// DNSCaches are addresses of node-local DNS caches. Their packets are not
	// tracked, so that no recorded traffic shows who needs them.
	DNSCaches []netip.Addr
	// Schedules are the cluster's CronJobs; nil if they are not known.
	Schedules []Schedule
	// ReadyAfter is how long a workload has to be watched; 0 means 7 days.
	ReadyAfter time.Duration
	// AcceptScans names sources, as SetAside.Source does, whose traffic is
	// learnt although it looks like a scan. Reject names sources and
	// destinations from whose traffic nothing is learnt.
	AcceptScans, Reject []string
	// Progress, if not nil, is told what is being done and how much of all is
	// done, from 0 to 1.
	Progress func(doing string, done float64)
}

const defaultReadyAfter = 7 * 24 * time.Hour

// Validate reports what cannot be.
func (o *Options) Validate() error {
	switch {
	case o.NoEgress && o.NoIngress:
		return errors.New("neither egress nor ingress is wanted: leave one of them")
	case !slices.Contains([]Mode{"", Add, Replace, Tighten}, o.Mode):
		return fmt.Errorf("mode %q: want add, replace or tighten", o.Mode)
	case !slices.Contains([]Isolation{"", PerWorkload, PerNamespace}, o.Isolation):
		return fmt.Errorf("isolation %q: want workload or namespace", o.Isolation)
	case o.Isolation == PerNamespace && o.Mode == Tighten:
		return errors.New("isolation namespace does not go with mode tighten: existing policies keep what they select")
	case o.Isolation == PerNamespace && len(o.Workloads) > 0:
		return errors.New("isolation namespace is for whole namespaces: leave the workloads out")
	case o.PortSlack < 0 || o.PortSlack >= 1:
		return fmt.Errorf("port slack %g: want a share from 0 to less than 1", o.PortSlack)
	case o.ReadyAfter < 0:
		return fmt.Errorf("ready after %s: a time cannot be negative", o.ReadyAfter)
	}
	for _, s := range o.Schedules {
		if err := s.validate(); err != nil {
			return err
		}
	}
	return nil
}

func (o Options) withDefaults() Options {
	if o.Mode == "" {
		o.Mode = Add
	}
	if o.Isolation == "" {
		o.Isolation = PerWorkload
	}
	if o.ReadyAfter == 0 {
		o.ReadyAfter = defaultReadyAfter
	}
	if o.Progress == nil {
		o.Progress = func(string, float64) {}
	}
	return o
}

// wants reports whether a workload is suggested for.
func (o *Options) wants(w *history.Workload) bool {
	if !o.wantsNamespace(w.Namespace) {
		return false
	}
	if len(o.Workloads) == 0 {
		return true
	}
	return slices.ContainsFunc(o.Workloads, func(n flow.WorkloadName) bool {
		return n.Name == w.Name && (n.Namespace == "" || n.Namespace == w.Namespace) && (n.Kind == "" || n.Kind == w.Kind)
	})
}

func (o *Options) wantsNamespace(name string) bool {
	return len(o.Namespaces) == 0 || slices.Contains(o.Namespaces, name)
}
