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

// controllerOf is what owns a pod directly; the zero value for a bare pod and a
// static one.
func controllerOf(p metav1.Object) flow.Workload {
	c := metav1.GetControllerOfNoCopy(p)
	if c == nil || c.Kind == "Node" {
		return flow.Workload{}
	}
	return flow.Workload{Kind: intern(c.Kind), Name: intern(c.Name)}
}

// workload names the controller that a person would name. A pod whose
// ReplicaSet or Job is not known is named again when it is.
func (o *owners) workload(r *podRecord) flow.Workload {
	k := r.ownerKey()
	_, known := o.behind[k]
	if !known && (k.kind == "ReplicaSet" || k.kind == "Job") && !slices.Contains(o.waiting[k], r) {
		o.waiting[k] = append(o.waiting[k], r)
	}
	return o.name(k, r.key.name, r.labels.all)
}

// name names the workload of a pod that k owns directly.
func (o *owners) name(k ownerKey, pod string, labels map[string]string) flow.Workload {
	if k.kind == "" {
		return flow.Workload{Kind: "Pod", Name: pod}
	}
	if w, ok := o.behind[k]; ok {
		return w
	}
	// Without the ReplicaSet its name still tells: a Deployment appends the hash.
	if hash := labels["pod-template-hash"]; k.kind == "ReplicaSet" && hash != "" {
		if name, ok := strings.CutSuffix(k.name, "-"+hash); ok {
			return flow.Workload{Kind: "Deployment", Name: intern(name)}
		}
	}
	return flow.Workload{Kind: k.kind, Name: k.name}
}

// set takes in what stands behind a controller, and reports whether that is new.
func (o *owners) set(kind string, m metav1.Object) (k ownerKey, changed bool) {
	k = ownerKey{kind, intern(orDefault(m.GetNamespace())), intern(m.GetName())}
	w := flow.Workload{Kind: kind, Name: k.name}
	if c := metav1.GetControllerOfNoCopy(m); c != nil {
		w = flow.Workload{Kind: intern(c.Kind), Name: intern(c.Name)}
	}
	if o.behind[k] == w {
		return k, false
	}
	o.behind[k] = w
	return k, true
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
	k, changed := x.owners.set(kind, m)
	if !changed {
		return
	}
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
