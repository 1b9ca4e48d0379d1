package collector

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/flowaudit/flowaudit/collector/access"
	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/kube"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

// objects is what the collector knows of the cluster's objects.
type objects struct {
	index    *kube.Index
	cluster  string
	known    bool          // somebody tells what the cluster is
	ready    chan struct{} // closed when all was told
	problems func() []string
	others   *atomic.Pointer[[]kube.OtherPolicy]
}

// answerObjects is how many bytes of objects one message of an answer holds.
const answerObjects = 1 << 20

// Objects implements the Query service.
func (q *query) Objects(req *flowauditv1.ObjectsRequest, stream flowauditv1.Query_ObjectsServer) error {
	now := time.Now()
	at := time.UnixMilli(req.GetAt())
	switch {
	case !q.known:
		return status.Error(codes.FailedPrecondition, "the collector knows no cluster: start it with --kubeconfig, --in-cluster or --manifests")
	case req.GetAt() != 0 && at.After(now):
		return status.Errorf(codes.InvalidArgument, "%s is in the future", at.UTC().Format(time.RFC3339))
	}
	select {
	case <-q.ready:
	default:
		return status.Error(codes.FailedPrecondition, "the collector has just started, and is reading the cluster: ask again in a moment")
	}
	found, limits := q.index.Current(), q.problems()
	if req.GetAt() != 0 {
		past, more, err := q.past(stream, found, at)
		if err != nil {
			return err
		}
		found, limits = past, more
	}
	return q.sendObjects(found, limits, stream)
}

func (q *query) sendObjects(found *kube.Objects, limits []string, stream flowauditv1.Query_ObjectsServer) error {
	response, size := &flowauditv1.ObjectsResponse{}, 0
	send := func(object []byte) error {
		response.Objects = append(response.Objects, object)
		if size += len(object); size < answerObjects {
			return nil
		}
		err := stream.Send(response)
		response, size = &flowauditv1.ObjectsResponse{}, 0
		return err
	}
	for object := range each(found) {
		text, err := json.Marshal(object)
		if err != nil {
			return status.Errorf(codes.Internal, "write object: %v", err)
		}
		if err := send(text); err != nil {
			return err
		}
	}
	if others := q.others.Load(); others != nil {
		for _, p := range *others {
			if p.Object == nil {
				limits = append(limits, "no permission to read policies of kind "+p.Kind+"."+p.Group)
				continue
			}
			if err := send(p.Object); err != nil {
				return err
			}
		}
	}
	response.Limits = limits
	return stream.Send(response)
}

// each goes through all objects.
func each(o *kube.Objects) func(yield func(metav1.Object) bool) {
	return func(yield func(metav1.Object) bool) {
		_ = every(o.Namespaces, yield) && every(o.Nodes, yield) && every(o.Pods, yield) && every(o.Services, yield) && every(o.Policies, yield)
	}
}

func every[T metav1.Object](list []T, yield func(metav1.Object) bool) bool {
	for _, o := range list {
		if !yield(o) {
			return false
		}
	}
	return true
}

// past is the cluster as it was: policies, namespaces and identities by the
// timeline, pods by who had their addresses.
func (q *query) past(stream flowauditv1.Query_ObjectsServer, now *kube.Objects, at time.Time) (*kube.Objects, []string, error) {
	// Nobody keeps what nodes and Services were.
	then := &kube.Objects{Nodes: now.Nodes, Services: now.Services}
	limits := []string{"nodes, Services and policies of other kinds are those of now"}
	pods, named := q.index.PodsAt(at)
	then.Pods = pods
	var bad error
	anything, nameless := false, namelessPods{taken: make(map[string]bool)}
	for _, p := range pods {
		nameless.taken[p.Namespace+"/"+p.Name] = true
	}
	err := q.store.Timeline(stream.Context(), access.SightOf(stream.Context()), at, at, func(c flow.Change) bool {
		if c.Cluster != q.cluster || c.Deleted || c.Time.After(at) {
			return true
		}
		anything = true
		bad = restoreObject(then, &c, named, &nameless)
		return bad == nil
	})
	switch {
	case err != nil:
		return nil, nil, storeError("read timeline", err)
	case bad != nil:
		return nil, nil, status.Errorf(codes.Internal, "read timeline: %v", bad)
	case !anything:
		return nil, nil, status.Errorf(codes.NotFound, "nothing is known of the cluster at %s: the timeline begins later", at.UTC().Format(time.RFC3339))
	}
	then.Pods = append(then.Pods, nameless.pods...)
	if n := len(nameless.pods); n > 0 {
		limits = append(limits, fmt.Sprintf("of %d workloads no pod of that time is remembered: each stands for one pod of its own name, without an address", n))
	}
	stats, err := q.store.Stats(stream.Context())
	if err != nil {
		return nil, nil, storeError("read store", err)
	}
	if at.Before(stats.Oldest) {
		limits = append(limits, "it is before the first flow that is kept: what was deleted or changed before the collector watched is not known")
	}
	return then, limits, nil
}

// restoreObject makes an object of the timeline one of the cluster.
func restoreObject(o *kube.Objects, c *flow.Change, named map[uint64]bool, nameless *namelessPods) error {
	switch c.Kind {
	case flow.ChangePolicy:
		p := &networkingv1.NetworkPolicy{}
		if err := json.Unmarshal(c.Object, p); err != nil {
			return err
		}
		p.TypeMeta = metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"}
		p.Namespace, p.Name = c.Namespace, c.Name
		o.Policies = append(o.Policies, p)
	case flow.ChangeNamespace:
		n := &corev1.Namespace{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}, ObjectMeta: metav1.ObjectMeta{Name: c.Name}}
		if err := json.Unmarshal(c.Object, &n.Labels); err != nil {
			return err
		}
		o.Namespaces = append(o.Namespaces, n)
	case flow.ChangeIdentity:
		var s flow.IdentityState
		if err := json.Unmarshal(c.Object, &s); err != nil {
			return err
		}
		var id uint64
		if _, err := fmt.Sscanf(c.Name, "%x", &id); err != nil {
			return fmt.Errorf("identity %q: %w", c.Name, err)
		}
		if s.Namespace = c.Namespace; !named[id] && s.Workload.Name != "" {
			nameless.add(&s, c.Name)
		}
	}
	return nil
}

// namelessPods are those of which only the identity is known.
type namelessPods struct {
	taken map[string]bool // names, as namespace/name
	pods  []*corev1.Pod
}

// add gives the pod its workload's name, with the identity's where that is taken.
func (n *namelessPods) add(s *flow.IdentityState, identity string) {
	name := s.Workload.Name
	if n.taken[s.Namespace+"/"+name] {
		name += "-" + strings.ToLower(identity)
	}
	n.taken[s.Namespace+"/"+name] = true
	n.pods = append(n.pods, kube.IdentityPod(name, s))
}
