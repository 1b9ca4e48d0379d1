package kube

import (
	"cmp"
	"maps"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/flowaudit/flowaudit/flow"
)

// Objects are what an index is made of where no API server is asked.
type Objects struct {
	Namespaces     []*corev1.Namespace
	Nodes          []*corev1.Node
	Pods           []*corev1.Pod
	Services       []*corev1.Service
	EndpointSlices []*discoveryv1.EndpointSlice
	Policies       []*networkingv1.NetworkPolicy
	ReplicaSets    []*appsv1.ReplicaSet
	Jobs           []*batchv1.Job
	// Problems are carried into Stats.
	Problems []string
}

// Replace makes the objects the cluster's whole state from a moment on. What
// an address meant before is remembered for some hours; in the first state
// everything has been as it is always.
func (x *Index) Replace(o *Objects, at time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	m := moment{now: at.UnixNano(), asOf: at.UnixNano(), exact: true, first: !x.exact.Swap(true)}
	x.problems.set("manifests", o.Problems)
	for _, r := range o.ReplicaSets {
		x.setOwner("ReplicaSet", r, m)
	}
	for _, j := range o.Jobs {
		x.setOwner("Job", j, m)
	}
	replace(o.Namespaces, x.knownNamespaces(), nameOf, func(n *corev1.Namespace) { x.setNamespace(n, m) }, func(k podKey) { x.deleteNamespace(k.name, m) })
	replace(o.Nodes, x.knownNodes(), nameOf, func(n *corev1.Node) { x.setNode(n, m) }, func(k podKey) { x.deleteNode(k.name, m) })
	replace(o.Services, slices.Collect(maps.Keys(x.svcs)), keyOf, func(s *corev1.Service) { x.setService(s, m) }, func(k podKey) { x.deleteService(k, m) })
	replace(o.EndpointSlices, slices.Collect(maps.Keys(x.slices)), keyOf, func(s *discoveryv1.EndpointSlice) { x.setSlice(s, m) }, func(k podKey) { x.deleteSlice(k, m) })
	replace(o.Policies, slices.Collect(maps.Keys(x.byName)), keyOf, func(p *networkingv1.NetworkPolicy) { x.setPolicy(p, m) }, func(k podKey) { x.deletePolicy(k, m) })
	replace(o.Pods, slices.Collect(maps.Keys(x.pods)), keyOf, func(p *corev1.Pod) { x.setPod(factsOf(p), m) }, func(k podKey) { x.deletePod(k, m) })
	for _, kind := range []flow.ChangeKind{flow.ChangePolicy, flow.ChangeNamespace, flow.ChangeIdentity} {
		x.compare(kind, m)
	}
	x.forget(m.now)
}

func keyOf[T named](o T) podKey  { return podKey{orDefault(o.GetNamespace()), o.GetName()} }
func nameOf[T named](o T) podKey { return podKey{name: o.GetName()} }

// replace takes in a list that is complete: what is known and not listed goes
// first, so that its addresses are free.
func replace[T named](list []T, known []podKey, key func(T) podKey, set func(T), remove func(podKey)) {
	listed := make(map[podKey]struct{}, len(list))
	for _, o := range list {
		listed[key(o)] = struct{}{}
	}
	for _, k := range known {
		if _, ok := listed[k]; !ok {
			remove(k)
		}
	}
	for _, o := range list {
		set(o)
	}
}

func (x *Index) knownNamespaces() []podKey {
	var out []podKey
	for name, n := range x.namespaces {
		if n.known {
			out = append(out, podKey{name: name})
		}
	}
	return out
}

func (x *Index) knownNodes() []podKey {
	var out []podKey
	for name, n := range x.nodes {
		if n.known {
			out = append(out, podKey{name: name})
		}
	}
	return out
}

// NodeNames lists the nodes that the API, or a manifest, tells of.
func (x *Index) NodeNames() []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	var out []string
	for _, k := range x.knownNodes() {
		out = append(out, k.name)
	}
	return out
}

// NamespaceNames lists the namespaces that the API, or a manifest, tells of.
func (x *Index) NamespaceNames() []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	var out []string
	for _, k := range x.knownNamespaces() {
		out = append(out, k.name)
	}
	return out
}

// Stats describes what the index knows.
type Stats struct {
	Pods, Namespaces, Services, Nodes, Policies int
	Identities                                  int
	Ambiguous                                   int    // addresses that more than one pod surely has
	Ended                                       int    // past holders that are remembered
	Forgotten                                   uint64 // past holders that were let go before their time
	// Problems are objects and files that could not be used, in plain words.
	Problems []string
}

// Stats describes the present state.
func (x *Index) Stats() Stats {
	x.mu.Lock()
	defer x.mu.Unlock()
	problems := x.problems.list()
	problems = append(problems, x.portProblems()...)
	slices.Sort(problems)
	if n := len(problems); n > maxProblems {
		problems = append(problems[:maxProblems], "and more of the kind")
	}
	return Stats{
		Pods: len(x.pods), Namespaces: len(x.knownNamespaces()), Services: len(x.svcs), Nodes: len(x.knownNodes()),
		Policies: len(x.byName), Identities: len(x.identities.pods), Ambiguous: len(x.problems.conflicts),
		Ended: len(x.ended.queue), Forgotten: x.ended.dropped, Problems: problems,
	}
}

// maxProblems bounds what Stats tells.
const maxProblems = 100

// problems keeps what is wrong with each object, until it is mended.
type problems struct {
	objects   map[string][]string
	conflicts map[string]string // by address
}

func newProblems() problems {
	return problems{objects: make(map[string][]string), conflicts: make(map[string]string)}
}

func (p *problems) set(whose string, now []string) {
	if len(now) == 0 {
		delete(p.objects, whose)
		return
	}
	p.objects[whose] = now
}

func (p *problems) conflict(address, problem string) {
	if problem == "" {
		delete(p.conflicts, address)
		return
	}
	p.conflicts[address] = problem
}

func (p *problems) list() []string {
	var out []string
	for _, list := range p.objects {
		out = append(out, list...)
	}
	return append(out, slices.Collect(maps.Values(p.conflicts))...)
}

// Pods returns all pods that the API has now, by namespace and name.
func (x *Index) Pods() []*Pod {
	x.mu.Lock()
	defer x.mu.Unlock()
	out := make([]*Pod, 0, len(x.pods))
	for _, r := range x.pods {
		out = append(out, r.pod)
	}
	slices.SortFunc(out, func(a, b *Pod) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Pod, b.Pod))
	})
	return out
}

// Complete fills in what an agent cannot know of a pod, which sees one node
// and no namespace: what stands behind its controller, and its identity. An
// endpoint that needs nothing comes back as it is.
func (x *Index) Complete(e *flow.Endpoint) *flow.Endpoint {
	if e == nil || e.Kind != flow.EndpointPod {
		return e
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.options.Partial || len(x.namespaces) == 0 {
		return e
	}
	c := *e
	if w, ok := x.owners.behind[ownerKey{e.Workload.Kind, e.Namespace, e.Workload.Name}]; ok {
		c.Workload = w
	}
	if n := x.namespaces[e.Namespace]; n != nil {
		c.Labels = stable(e.Labels)
		c.Identity = Identity(e.Namespace, n.labels, c.Labels)
	}
	if c.Workload == e.Workload && c.Identity == e.Identity {
		return e
	}
	return &c
}
