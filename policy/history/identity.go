package history

import (
	"cmp"
	"time"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/policy"
)

// Identity is pods that had the same stable labels in a namespace of the same
// labels.
type Identity struct {
	ID        uint64 // 0 if only the labels are known
	Namespace string
	Labels    map[string]string
	// NamespaceLabels is nil if they are not known.
	NamespaceLabels map[string]string
	Workloads       []*Workload // that had pods of it, sorted; mostly one
	First, Last     time.Time   // when it was known of: by its pods or its edges
	// Present says that pods had it at the end.
	Present bool

	states []identityState // oldest first
}

// identityState is what an identity's pods were like from a moment on.
type identityState struct {
	from  time.Time
	ports []policy.NamedPort
	known bool // the ports are
	class *policy.Class
}

// Ports returns the named ports at the end of the history; known is false if
// they are not known.
func (i *Identity) Ports() (ports []policy.NamedPort, known bool) {
	s := i.states[len(i.states)-1]
	return s.ports, s.known
}

// PortsAt returns the named ports of a moment.
func (i *Identity) PortsAt(t time.Time) (ports []policy.NamedPort, known bool) {
	s := i.at(t)
	return s.ports, s.known
}

// Class returns the pods' class at the end of the history.
func (i *Identity) Class() *policy.Class { return i.states[len(i.states)-1].class }

func (i *Identity) at(t time.Time) *identityState {
	for n := len(i.states) - 1; n > 0; n-- {
		if !i.states[n].from.After(t) {
			return &i.states[n]
		}
	}
	return &i.states[0]
}

// classify finds what policies can tell of the pods, at each moment.
func (i *Identity) classify(classes *policy.Classes) {
	if len(i.states) == 0 {
		i.states = []identityState{{from: i.First}}
	}
	for n := range i.states {
		s := &i.states[n]
		s.class = classes.Of(&policy.Pod{
			Namespace: i.Namespace, NamespaceLabels: i.NamespaceLabels, Labels: i.Labels, Ports: s.ports, PortsUnknown: !s.known,
		})
	}
}

func (i *Identity) seen(from, to time.Time) {
	if i.First.IsZero() || from.Before(i.First) {
		i.First = from
	}
	if to.After(i.Last) {
		i.Last = to
	}
}

// Workload is what owned pods in a namespace.
type Workload struct {
	Namespace string
	flow.Workload
	Identities  []*Identity // in the order in which they came
	First, Last time.Time
	// Edges counts the edges of the workload, each direction by itself.
	Egress, Ingress int
}

// String is Kind namespace/name.
func (w *Workload) String() string { return w.Kind + " " + w.Namespace + "/" + w.Name }

// Present lists the identities that the workload's pods have at the end; where
// no pod runs, the one that came last.
func (w *Workload) Present() []*Identity {
	var out []*Identity
	for _, i := range w.Identities {
		if i.Present {
			out = append(out, i)
		}
	}
	if len(out) == 0 && len(w.Identities) > 0 {
		last := w.Identities[0]
		for _, i := range w.Identities[1:] {
			if i.Last.After(last.Last) {
				last = i
			}
		}
		out = append(out, last)
	}
	return out
}

// Running reports whether the workload has pods at the end.
func (w *Workload) Running() bool {
	for _, i := range w.Identities {
		if i.Present {
			return true
		}
	}
	return false
}

// Periodic reports whether the workload runs now and then, so that it may have
// no pods and still be there.
func (w *Workload) Periodic() bool { return w.Kind == "CronJob" || w.Kind == "Job" }

func compareWorkloads(a, b *Workload) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
}

func compareIdentities(a, b *Identity) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.ID, b.ID), cmp.Compare(labelText(a.Labels), labelText(b.Labels)))
}
