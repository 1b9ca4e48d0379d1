package history

import (
	"cmp"
	"time"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/flowaudit/flowaudit/flow"
)

// Policy is a policy as it was from a moment on.
type Policy struct {
	// NetworkPolicy is nil where the policy was deleted. It must not be changed.
	*networkingv1.NetworkPolicy
	Changed time.Time
	Author  string // the manager that changed it; "" if it is not known

	namespace, name string
}

// Key returns the policy's namespace and name, of one that was deleted too.
func (p *Policy) Key() (namespace, name string) { return p.namespace, p.name }

// Revision is policies that changed at one moment.
type Revision struct {
	Time    time.Time
	Changes []*Policy
}

type policyKey struct{ namespace, name string }

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// compareKeys orders edges that began at one moment.
func compareKeys(a, b *flow.EdgeKey) int {
	return cmp.Or(
		compareEnds(&a.Source, &b.Source), compareEnds(&a.Destination, &b.Destination), a.Seen.Compare(b.Seen),
		cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Direction, b.Direction), cmp.Compare(a.Verdict, b.Verdict),
		cmp.Compare(a.Expected, b.Expected), cmp.Compare(a.Assessment, b.Assessment), cmp.Compare(a.Caveat, b.Caveat), cmp.Compare(a.Exempt, b.Exempt),
	)
}

func compareEnds(a, b *flow.EdgeEnd) int {
	return cmp.Or(
		cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Workload.Kind, b.Workload.Kind), cmp.Compare(a.Workload.Name, b.Workload.Name),
		cmp.Compare(a.Identity, b.Identity), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Node, b.Node),
		a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()),
	)
}
