package kube

import (
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/flowaudit/flowaudit/flow"
)

// owners knows what stands behind the controllers that own pods directly: the
// Deployment behind a ReplicaSet, the CronJob behind a Job.
type owners struct {
	behind map[ownerKey]flow.Workload
	// waiting are pods whose owner was not told yet.
	waiting map[ownerKey][]*podRecord
}

type ownerKey struct{ kind, namespace, name string }

func newOwners() owners {
	return owners{behind: make(map[ownerKey]flow.Workload), waiting: make(map[ownerKey][]*podRecord)}
}

func (r *podRecord) ownerKey() ownerKey {
	return ownerKey{r.controller.Kind, r.key.namespace, r.controller.Name}
}

// workload names the controller that a person would name.
func (o *owners) workload(r *podRecord) flow.Workload {
	c := r.controller
	if c == (flow.Workload{}) { // a bare pod, or a static one
		return flow.Workload{Kind: "Pod", Name: r.key.name}
	}
	if w, ok := o.behind[r.ownerKey()]; ok {
		return w
	}
	if c.Kind == "ReplicaSet" || c.Kind == "Job" {
		if k := r.ownerKey(); !slices.Contains(o.waiting[k], r) {
			o.waiting[k] = append(o.waiting[k], r)
		}
	}
	// Without the ReplicaSet its name still tells: a Deployment appends the hash.
	if hash := r.labels.all["pod-template-hash"]; c.Kind == "ReplicaSet" && hash != "" {
		if name, ok := strings.CutSuffix(c.Name, "-"+hash); ok {
			return flow.Workload{Kind: "Deployment", Name: intern(name)}
		}
	}
	return flow.Workload{Kind: intern(c.Kind), Name: intern(c.Name)}
}

func (o *owners) forget(r *podRecord) {
	k := r.ownerKey()
	if rest := slices.DeleteFunc(o.waiting[k], func(w *podRecord) bool { return w == r }); len(rest) > 0 {
		o.waiting[k] = rest
	} else {
		delete(o.waiting, k)
	}
}

// setOwner takes in what stands behind a controller.
func (x *Index) setOwner(kind string, m metav1.Object, at moment) {
	k := ownerKey{kind, intern(orDefault(m.GetNamespace())), intern(m.GetName())}
	w := flow.Workload{Kind: kind, Name: k.name}
	if c := metav1.GetControllerOfNoCopy(m); c != nil {
		w = flow.Workload{Kind: intern(c.Kind), Name: intern(c.Name)}
	}
	if x.owners.behind[k] == w {
		return
	}
	x.owners.behind[k] = w
	for _, r := range x.owners.waiting[k] {
		p := *r.pod
		x.describe(r, &p, at)
	}
	delete(x.owners.waiting, k)
}

// deleteOwner forgets a controller. Its pods keep their workload.
func (x *Index) deleteOwner(kind string, k podKey) {
	delete(x.owners.behind, ownerKey{kind, k.namespace, k.name})
}
