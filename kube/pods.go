package kube

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/flowaudit/flowaudit/flow"
)

// podRecord is what the index keeps of a pod that the API has.
type podRecord struct {
	holder
	pod        *Pod // as it is now
	uid        uint64
	labels     *labelSet
	controller flow.Workload
	addrs      []netip.Addr // that it claims now
	node       *nodeRecord  // that it shares addresses with; nil if it has its own
	seen       int64        // when it was last heard of
	moved      bool         // it had another address before
	asked      bool         // to be deleted
	ended      bool         // nothing of it runs
}

// setPod takes in what a pod is now.
func (x *Index) setPod(f *podFacts, m moment) {
	r := x.pods[f.key]
	x.noticeChange(r, &f.life, m)
	m = x.upTo(m)
	if r != nil && r.uid != f.uid {
		// A StatefulSet's pod has the name of the one before it.
		x.removePod(r, m)
		r = nil
	}
	if r == nil {
		r = &podRecord{holder: holder{key: podKey{intern(f.key.namespace), intern(f.key.name)}}, uid: f.uid, seen: m.now}
		x.pods[r.key] = r
		x.hosts.Add(1)
	}
	x.problems.set(r.String(), x.podProblems(f))
	x.rename(r, f, m)
	x.readdress(r, f, m)
	r.asked = f.life.asked != 0
	awaited := !m.exact && f.node != "" && !f.hostNetwork && len(f.addrs) == 0 && !f.life.ended && f.life.asked == 0
	x.births.set(r.pod.Node, r.key, awaited, m.now)
	r.seen = m.now
}

func (x *Index) podProblems(f *podFacts) []string {
	if len(f.addrs) == 0 && len(f.problems) == 0 && f.running && !f.life.ended {
		return []string{fmt.Sprintf("Pod %s: has no address in status.podIPs", f.key)}
	}
	return f.problems
}

// deletePod takes in that the API has no such pod any more.
func (x *Index) deletePod(k podKey, m moment) {
	if r := x.pods[k]; r != nil {
		x.removePod(r, x.upTo(m))
	}
}

func (x *Index) removePod(r *podRecord, m moment) {
	for _, a := range r.addrs {
		x.leave(r, a, m)
	}
	x.leaveNode(r, m)
	if r.pod != nil {
		x.births.set(r.pod.Node, r.key, false, m.now)
	}
	x.owners.forget(r)
	if r.pod != nil {
		x.identities.lose(r.pod, m.now)
	}
	x.labels.release(r.labels)
	x.problems.set(r.String(), nil)
	x.namespace(r.key.namespace).pods--
	delete(x.pods, r.key)
	x.hosts.Add(-1)
}

// rename makes the pod's present description, and publishes it where it is new.
func (x *Index) rename(r *podRecord, f *podFacts, m moment) {
	labels := x.labels.get(f.labels)
	x.labels.release(r.labels)
	if r.controller != f.controller {
		x.owners.forget(r)
	}
	r.labels, r.controller = labels, f.controller
	if r.pod == nil {
		x.namespace(r.key.namespace).pods++
	}
	p := &Pod{
		Endpoint:  flow.Endpoint{Kind: flow.EndpointPod, Namespace: r.key.namespace, Pod: r.key.name, Node: intern(f.node), Labels: labels.stable},
		AllLabels: labels.all, Ports: f.ports, HostNetwork: f.hostNetwork,
	}
	if n := len(labels.ports); n > 0 && slices.Equal(labels.ports, p.Ports) {
		p.Ports = labels.ports
	} else {
		labels.ports = p.Ports
	}
	x.describe(r, p, m)
}

// describe completes a pod's description by what other objects say of it, and
// publishes it where it is new.
func (x *Index) describe(r *podRecord, p *Pod, m moment) {
	p.Workload = x.owners.workload(r)
	if !x.options.Partial {
		p.Identity = Identity(p.Namespace, x.namespace(p.Namespace).labels, p.Labels)
	}
	if r.pod != nil && samePod(r.pod, p) {
		return
	}
	x.identities.gain(p, x.namespace(p.Namespace).labels, m.now)
	since := m.now
	if r.pod != nil {
		x.identities.lose(r.pod, m.now)
		if before := *r.pod; before.Workload != p.Workload {
			if before.Workload = p.Workload; samePod(&before, p) {
				since = always // it was the same before, and is only known better
			}
		}
	}
	r.pod = p
	for _, a := range r.addrs {
		x.revise(a, &r.holder, version{since, &p.Endpoint, p})
	}
}

// revise gives an address's holder another description from a moment on. One
// that held always replaces the last.
func (x *Index) revise(a netip.Addr, by *holder, v version) {
	claims := x.addresses.claims(a)
	c := openClaim(claims, by)
	if c == nil {
		return
	}
	next := *c
	next.versions = slices.Clone(c.versions)
	if v.since == always {
		v.since = c.latest().since
		next.versions = next.versions[:len(next.versions)-1]
	}
	next.versions = append(next.versions, v)
	if n := len(next.versions); n > maxVersions {
		next.versions = next.versions[n-maxVersions:]
	}
	x.publish(a, with(claims, next))
}

// maxVersions bounds how many descriptions of one holder are remembered.
const maxVersions = 32

func samePod(a, b *Pod) bool {
	return a.Node == b.Node && a.Identity == b.Identity && a.Workload == b.Workload && a.HostNetwork == b.HostNetwork &&
		slices.Equal(a.Ports, b.Ports) && maps.Equal(a.AllLabels, b.AllLabels)
}

// readdress brings the claims up to the addresses that the pod has now.
func (x *Index) readdress(r *podRecord, f *podFacts, m moment) {
	if f.hostNetwork {
		if f.life.ended {
			x.leaveNode(r, m)
		} else {
			x.joinNode(r, f.addrs, m)
		}
		return
	}
	x.noticeLateness(r, f, m)
	r.ended = f.life.ended
	r.moved = r.moved || len(r.addrs) > 0
	for _, a := range r.addrs {
		switch {
		case !slices.Contains(f.addrs, a):
			x.leave(r, a, m)
		default:
			x.stay(r, a, &f.life, m)
		}
	}
	var now []netip.Addr
	for _, a := range f.addrs {
		switch {
		case f.life.ended: // another pod may have its address
		case slices.Contains(r.addrs, a):
			now = append(now, a)
		default:
			now = append(now, a)
			c := m.begin(&r.holder, &f.life, r.moved, r.seen)
			c.versions = []version{{c.from, &r.pod.Endpoint, r.pod}}
			c.network = true
			x.beginClaim(a, c)
		}
	}
	r.addrs = now
}

// noticeLateness learns from a pod's first address and its end how late news is.
func (x *Index) noticeLateness(r *podRecord, f *podFacts, m moment) {
	if m.ofPast() {
		return
	}
	switch l := &f.life; {
	case len(r.addrs) == 0 && len(f.addrs) > 0 && l.proof != 0 && !r.moved:
		x.lateness.notice(l.proof, m.now, int64(maxLateness))
	case l.ended && !r.ended && l.stopped != 0:
		x.lateness.notice(l.stopped+second, m.now, int64(maxLateness))
	}
}

// stay goes on with a claim, or ends it if the pod has ended.
func (x *Index) stay(r *podRecord, a netip.Addr, l *podLife, m moment) {
	claims := x.addresses.claims(a)
	c := openClaim(claims, &r.holder)
	if c == nil {
		return
	}
	next := m.fade(*c, l)
	switch {
	case m.exact && l.ended:
		x.endClaim(a, m.end(*c, true))
	case !next.open():
		x.endClaim(a, next)
	case next.doubt != c.doubt:
		x.publish(a, with(claims, next))
	}
}

// leave ends a claim.
func (x *Index) leave(r *podRecord, a netip.Addr, m moment) {
	if c := openClaim(x.addresses.claims(a), &r.holder); c != nil {
		x.endClaim(a, m.end(*c, r.ended))
	}
}

// checkConflict tells of two that surely have one address.
func (x *Index) checkConflict(a netip.Addr) {
	var first, second *claim
	claims := x.addresses.claims(a)
	for i := range claims {
		c := &claims[i]
		if !c.open() || c.doubt != forever || c.by.rank != rankHost {
			continue
		}
		if first == nil {
			first = c
		} else {
			second = c
		}
	}
	key := "address " + a.String()
	if second == nil {
		x.problems.conflict(key, "")
		return
	}
	x.problems.conflict(key, fmt.Sprintf("%s: address %s is also claimed by %s: neither is named by it", kindAndName(second.by), a, kindAndName(first.by)))
}

func kindAndName(h *holder) string {
	if h.kind == "" {
		return "Pod " + h.String()
	}
	return h.String()
}
