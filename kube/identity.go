package kube

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unique"

	"github.com/flowaudit/flowaudit/flow"
)

// volatileLabels change from one copy of a pod to the next and say nothing
// about what it is.
func volatileLabels() []string {
	return []string{
		"pod-template-hash", "pod-template-generation", "rollouts-pod-template-hash", "controller-revision-hash", "controller-uid", "job-name",
		"statefulset.kubernetes.io/pod-name", "apps.kubernetes.io/pod-index",
	}
}

// volatilePrefix begins the labels that a Job gives to its pods.
const volatilePrefix = "batch.kubernetes.io/"

// stable returns labels without the volatile ones; nil if none is left.
func stable(labels map[string]string) map[string]string {
	var out map[string]string
	volatile := volatileLabels()
	for k, v := range labels {
		if strings.HasPrefix(k, volatilePrefix) || slices.Contains(volatile, k) {
			continue
		}
		if out == nil {
			out = make(map[string]string, len(labels))
		}
		out[k] = v
	}
	return out
}

// Identity hashes a namespace, its labels and a pod's stable labels by FNV-1a
// over length-prefixed, sorted fields: equal wherever it is computed.
func Identity(namespace string, namespaceLabels, podLabels map[string]string) uint64 {
	h := fnv.New64a()
	field := func(s string) {
		_, _ = h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(s)))) // a hash never fails
		_, _ = io.WriteString(h, s)
	}
	field(namespace)
	for _, labels := range []map[string]string{namespaceLabels, podLabels} {
		_, _ = h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(labels))))
		for _, k := range slices.Sorted(maps.Keys(labels)) {
			field(k)
			field(labels[k])
		}
	}
	return h.Sum64()
}

// labelSet is a set of labels that pods share.
type labelSet struct {
	key    string
	all    map[string]string
	stable map[string]string // the same map where no label is volatile
	pods   int
	// ports are the last pod's: pods with the same labels mostly have the same.
	ports []flow.NamedPort
}

// labelSets keeps each set once, as long as a pod has it.
type labelSets map[string]*labelSet

// get returns the set for labels, and counts its user.
func (l labelSets) get(labels map[string]string) *labelSet {
	key := labelKey(labels)
	s := l[key]
	if s == nil {
		s = &labelSet{key: key, all: make(map[string]string, len(labels))}
		for k, v := range labels {
			s.all[intern(k)] = intern(v)
		}
		s.stable = stable(s.all)
		if len(s.stable) == len(s.all) && s.stable != nil {
			s.stable = s.all
		}
		l[key] = s
	}
	s.pods++
	return s
}

func (l labelSets) release(s *labelSet) {
	if s == nil {
		return
	}
	if s.pods--; s.pods == 0 {
		delete(l, s.key)
	}
}

func labelKey(labels map[string]string) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		v := labels[k]
		b.Write(binary.AppendUvarint(nil, uint64(len(k))))
		b.WriteString(k)
		b.Write(binary.AppendUvarint(nil, uint64(len(v))))
		b.WriteString(v)
	}
	return b.String()
}

// intern returns the one copy of a string that many objects hold.
func intern(s string) string { return unique.Make(s).Value() }

// identities counts the pods of each identity, and tells of the first and the
// last one.
type identities struct {
	pods map[uint64]int
	tell func(flow.Change)
}

// gain takes a pod in that has an identity now.
func (d *identities) gain(p *Pod, namespaceLabels map[string]string, at int64) {
	if p.Identity == 0 {
		return
	}
	if d.pods[p.Identity]++; d.pods[p.Identity] > 1 || d.tell == nil {
		return
	}
	object, err := json.Marshal(flow.IdentityState{
		Namespace: p.Namespace, NamespaceLabels: namespaceLabels, Workload: p.Workload, Labels: p.Labels, Ports: p.Ports,
	})
	if err != nil {
		return // maps of strings and numbers always have JSON
	}
	c := identityChange(p, at)
	c.Object = object
	d.tell(c)
}

// lose takes a pod out of an identity.
func (d *identities) lose(p *Pod, at int64) {
	if p.Identity == 0 {
		return
	}
	if d.pods[p.Identity]--; d.pods[p.Identity] > 0 {
		return
	}
	delete(d.pods, p.Identity)
	if d.tell != nil {
		c := identityChange(p, at)
		c.Deleted = true
		d.tell(c)
	}
}

// has reports whether a pod has the identity that the timeline calls so.
func (d *identities) has(name string) bool {
	id, err := strconv.ParseUint(name, 16, 64)
	return err == nil && d.pods[id] > 0
}

func identityChange(p *Pod, at int64) flow.Change {
	return flow.Change{
		Time: time.Unix(0, at), Kind: flow.ChangeIdentity, Namespace: p.Namespace, Name: fmt.Sprintf("%016x", p.Identity),
	}
}
