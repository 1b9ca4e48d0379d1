package policy

import (
	"errors"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/flowaudit/flowaudit/flow"
)

// Engine holds a cluster's policies in compiled form, and optionally its
// namespaces and pods. Each change makes a new Snapshot and recompiles only
// what it touches. All methods may be used concurrently.
type Engine struct{}

// Options are what an Engine begins with. The zero value is an empty cluster.
type Options struct {
	// Classes makes the classes of the pods below; nil means new ones. Engines
	// that decide about the same ends should share it.
	Classes    *Classes
	Policies   []*networkingv1.NetworkPolicy
	Namespaces map[string]map[string]string // labels by name
	// Pods are the cluster's pods. Their NamespaceLabels are ignored.
	Pods []Pod
	// CacheEntries bounds the remembered decisions; 0 means 262,144. One takes
	// about 200 bytes, once it is in use.
	CacheEntries int
}

// Validate reports what cannot be.
func (o *Options) Validate() error {
	if o.CacheEntries < 0 {
		return errors.New("CacheEntries is negative: give 0 for the default, or a number of decisions")
	}
	return nil
}

// New returns an engine. Policies that are not wholly valid are no error: see
// Snapshot.Problems. Policies must not be changed afterwards.
func New(o Options) (*Engine, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	return &Engine{}, nil
}

// Fork returns an engine that begins as this one is now, at the cost of a few
// copied pointers. Changes to one do not show in the other.
func (e *Engine) Fork() *Engine { return &Engine{} }

// Classes returns what makes this engine's classes.
func (e *Engine) Classes() *Classes { return nil }

// Snapshot returns the present state. It never changes, and costs nothing to ask for.
func (e *Engine) Snapshot() *Snapshot { return &Snapshot{} }

// SetPolicy adds a policy or replaces the one of the same namespace and name.
// It returns what of it could not be compiled; decisions which that could
// influence are unknown. The policy must not be changed afterwards.
func (e *Engine) SetPolicy(p *networkingv1.NetworkPolicy) []Problem { return nil }

// DeletePolicy removes a policy, if it is there.
func (e *Engine) DeletePolicy(namespace, name string) {}

// SetNamespace makes a namespace and its labels known; nil means no labels.
func (e *Engine) SetNamespace(name string, labels map[string]string) {}

// DeleteNamespace forgets a namespace: the labels of pods that are still in it
// are no longer known. Its policies and pods stay until they are deleted.
func (e *Engine) DeleteNamespace(name string) {}

// SetPod adds a pod or replaces the one of the same namespace and name. Its
// NamespaceLabels are ignored: SetNamespace gives them.
func (e *Engine) SetPod(p Pod) {}

// DeletePod removes a pod, if it is there.
func (e *Engine) DeletePod(namespace, name string) {}

// Snapshot is a cluster's policies, namespaces and pods at one revision. It is
// never changed and may be used concurrently.
type Snapshot struct{}

// Revision counts the changes of policies since the engine was made. It does
// not count those of pods and namespaces: a Connection brings its own.
func (s *Snapshot) Revision() uint64 { return 0 }

// Decide says what the policies say about a connection.
func (s *Snapshot) Decide(c *Connection) Decision { return Decision{} }

// Explain says it for people, with the nearest miss of each side that denies.
func (s *Snapshot) Explain(c *Connection) *Explanation { return &Explanation{} }

// Reach says which ports of a destination a source may connect to: for TCP,
// UDP and SCTP all ranges of ports from 1 to 65535, in order, with the verdict
// that Decide gives to each port in them. Neighbours differ in their verdict.
func (s *Snapshot) Reach(src, dst *End) []PortRange { return nil }

// PortRange is a range of ports with one verdict.
type PortRange struct {
	Protocol    flow.Protocol
	First, Last uint16
	Verdict     flow.Verdict
}

// Policies lists the policies, sorted by namespace and name.
func (s *Snapshot) Policies() []*networkingv1.NetworkPolicy { return nil }

// Problems lists what could not be compiled, sorted by policy and field.
func (s *Snapshot) Problems() []Problem { return nil }

// Isolating names the policies that isolate the pods of a class for a
// direction, and those of which it is not known whether they do.
func (s *Snapshot) Isolating(c *Class, d flow.Direction) []flow.PolicyRef { return nil }

// Namespaces returns the labels of the known namespaces, without those the
// control plane adds. It must not be changed.
func (s *Snapshot) Namespaces() map[string]map[string]string { return nil }

// Pods lists the known pods, sorted by namespace and name, each with its class
// and its namespace's labels.
func (s *Snapshot) Pods() []RegisteredPod { return nil }

// Pod finds a pod by name.
func (s *Snapshot) Pod(namespace, name string) (RegisteredPod, bool) { return RegisteredPod{}, false }

// RegisteredPod is a pod of a Snapshot, ready to be an end.
type RegisteredPod struct {
	Pod
	// Class is nil if the pod uses the host's network.
	Class *Class
}

// End returns the pod as an end of a connection; see Classes.End.
func (p *RegisteredPod) End() End { return End{} }

// Connect describes a connection between two ends with several addresses: it
// gives both the first pair of the same IP version.
func Connect(src, dst *RegisteredPod, protocol flow.Protocol, port uint16) Connection {
	return Connection{}
}
