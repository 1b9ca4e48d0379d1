package kube

import (
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/flowaudit/flowaudit/flow"
)

// podFacts is what the index needs of a pod. The rest of the object is let go
// as soon as it is read.
type podFacts struct {
	metav1.Object // what a reflector asks for
	key           podKey
	uid           uint64
	node          string
	controller    flow.Workload // which owns the pod directly; the zero value if none does
	labels        map[string]string
	ports         []flow.NamedPort
	addrs         []netip.Addr
	problems      []string
	hostNetwork   bool
	running       bool // or of unknown phase
	life          podLife
}

// podKey names a pod.
type podKey struct{ namespace, name string }

func (k podKey) String() string { return k.namespace + "/" + k.name }

// podLife is what the API says about when a pod had its network, as Unix
// nanoseconds; 0 is unknown. API times are cut to whole seconds, so that an
// event lies up to a second after its time.
type podLife struct {
	created int64 // as an object
	start   int64 // not before this
	proof   int64 // by then its network was there
	asked   int64 // somebody asked to delete it
	stopped int64 // its last container ended, not before this
	// ended says that no container of it runs or ever will.
	ended bool
}

const second = int64(time.Second)

// factsOf reads a pod.
func factsOf(p *corev1.Pod) *podFacts {
	f := &podFacts{
		Object: &metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, ResourceVersion: p.ResourceVersion},
		key:    podKey{orDefault(p.Namespace), p.Name}, uid: hashUID(string(p.UID)), node: p.Spec.NodeName,
		controller: controllerOf(p), labels: p.Labels, hostNetwork: p.Spec.HostNetwork, life: lifeOf(p),
		running: p.Status.Phase == corev1.PodRunning || p.Status.Phase == "",
	}
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			f.addPorts(list[i].Ports)
		}
	}
	for _, text := range podIPs(p) {
		a, err := netip.ParseAddr(text)
		switch {
		case err != nil:
			f.problems = append(f.problems, fmt.Sprintf("Pod %s: address %q is none", f.key, text))
		case !slices.Contains(f.addrs, a.Unmap()):
			f.addrs = append(f.addrs, a.Unmap())
		}
	}
	return f
}

// addPorts keeps the ports that policies and Services can ask for by name.
func (f *podFacts) addPorts(ports []corev1.ContainerPort) {
	for _, p := range ports {
		if p.Name == "" || p.ContainerPort < 1 || p.ContainerPort > 65535 {
			continue
		}
		protocol := flow.TCP
		if p.Protocol != "" {
			var err error
			if protocol, err = flow.ParseProtocol(string(p.Protocol)); err != nil {
				continue
			}
		}
		f.ports = append(f.ports, flow.NamedPort{Name: p.Name, Protocol: protocol, Port: uint16(p.ContainerPort)})
	}
}

func podIPs(p *corev1.Pod) []string {
	var out []string
	for _, ip := range p.Status.PodIPs {
		out = append(out, ip.IP)
	}
	if p.Status.PodIP != "" && !slices.Contains(out, p.Status.PodIP) {
		out = append(out, p.Status.PodIP)
	}
	return out
}

// hashUID keeps 8 bytes of 36. A pod that follows another of its name has
// another UID, and nothing else is compared.
func hashUID(uid string) uint64 {
	if uid == "" {
		return 0
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(uid)) // a hash never fails
	return h.Sum64()
}

// lifeOf reads when a pod had its network.
func lifeOf(p *corev1.Pod) podLife {
	created := nanos(&p.CreationTimestamp)
	l := podLife{created: created, start: created}
	if s := nanos(p.Status.StartTime); s != 0 {
		l.start = s
	}
	terminated := 0
	for _, list := range [][]corev1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses, p.Status.EphemeralContainerStatuses} {
		for i := range list {
			if l.container(&list[i]) {
				terminated++
			}
		}
	}
	all := len(p.Status.InitContainerStatuses) + len(p.Status.ContainerStatuses) + len(p.Status.EphemeralContainerStatuses)
	phase := p.Status.Phase
	l.ended = phase == corev1.PodSucceeded || phase == corev1.PodFailed
	if p.DeletionTimestamp != nil {
		l.asked = nanos(p.DeletionTimestamp)
		if p.DeletionGracePeriodSeconds != nil {
			l.asked -= *p.DeletionGracePeriodSeconds * second
		}
		// With restarts out of the question, it is over when all have ended.
		l.ended = l.ended || all > 0 && terminated == all
	}
	if !l.ended {
		l.stopped = 0
	}
	return l
}

// container takes in what one container tells, and reports whether it has
// ended. Only a container that runs proves that the present network was there:
// one that ran before may have had another, before the node was started anew.
func (l *podLife) container(s *corev1.ContainerStatus) bool {
	if s.State.Running != nil {
		if n := nanos(&s.State.Running.StartedAt); n != 0 && (l.proof == 0 || n+second < l.proof) {
			l.proof = n + second
		}
	}
	if s.State.Terminated != nil {
		l.stopped = max(l.stopped, nanos(&s.State.Terminated.FinishedAt))
		return true
	}
	return false
}

// nanos gives Unix nanoseconds, 0 for no time.
func nanos(t *metav1.Time) int64 {
	if t == nil || t.IsZero() || t.Unix() <= 0 {
		return 0
	}
	return t.UnixNano()
}

const (
	// linger is how long a pod that was deleted by force may still use its address.
	linger = 30 * time.Second
	// lag is how late the index may hear of an end that nothing announced,
	// and how late an agent may read of a connection that began before it.
	lag = time.Second
)

// moment is when and how the index learns something.
type moment struct {
	now int64
	// asOf is until when the index had known everything before.
	asOf int64
	// exact says that what is told is so from now on: manifests have no
	// other time. first is set for what is told at the very beginning.
	exact, first bool
	late         bool // asOf is an estimate, since news comes late
	// listed is set for what a list tells: who came and went since asOf is not in it.
	listed bool
	slack  int64 // how far clocks may differ
}

// ofPast reports whether what is told says nothing about how late news is.
func (m moment) ofPast() bool { return m.exact || m.first || m.asOf != m.now && !m.late }

// begin is the claim of a pod that is seen with an address for the first time.
// moved says that the pod had another address before, so that its start says
// nothing about this one; seen is when the pod was last heard of.
func (m moment) begin(by *holder, l *podLife, moved bool, seen int64) claim {
	c := claim{by: by, from: m.now, sure: m.now, doubt: forever, to: forever, gone: forever}
	switch {
	case m.exact && m.first:
		c.from, c.sure = always, always
	case m.exact:
	case moved:
		c.from = min(max(seen, m.asOf-int64(maxSettling)), m.now) - m.slack
	default:
		if l.proof != 0 {
			c.sure = min(c.sure, l.proof+m.slack)
		}
		if l.start != 0 {
			c.from = min(l.start-m.slack, c.sure)
		}
	}
	if !m.exact && (m.first || m.listed) {
		c.from = c.sure // who had it before is not known
	}
	return m.fade(c, l)
}

// fade brings a claim up to what is known of the pod's end.
func (m moment) fade(c claim, l *podLife) claim {
	if m.exact {
		return c
	}
	c.doubt = forever
	if l.asked != 0 {
		c.doubt = min(l.asked-m.slack, m.now)
	}
	if l.ended {
		switch {
		case l.stopped != 0:
			c.doubt, c.announced = min(l.stopped-m.slack, m.now), true
		case l.asked == 0:
			c.doubt = m.asOf - m.slack - int64(lag)
		}
		c.to, c.gone = m.now+m.slack+int64(lag), m.now+m.slack
	}
	c.doubt = max(c.doubt, c.sure)
	return c
}

// end closes the claim of a pod that is gone, or has another address now.
// ended says that nothing of it runs any more.
func (m moment) end(c claim, ended bool) claim {
	if m.exact {
		c.doubt, c.to, c.gone = min(c.doubt, m.now), m.now, m.now
		return c
	}
	c.doubt = max(c.sure, min(c.doubt, m.asOf-m.slack-int64(lag)))
	c.to, c.gone = m.now+m.slack+int64(lag), min(c.gone, m.asOf)
	if !ended {
		// Nothing said when it ended: it may be over already, or not yet.
		c.to, c.gone = m.now+int64(linger), c.doubt
	}
	c.doubt = min(c.doubt, c.to)
	return c
}
