package kube

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/flowaudit/flowaudit/flow"
)

// serviceRecord is what the index keeps of a Service.
type serviceRecord struct {
	holder
	endpoint *flow.Endpoint
	uid      string
	selector map[string]string
	addrs    []netip.Addr // cluster, external and load balancer addresses
	ports    []servicePort
}

// servicePort is one port of a Service.
type servicePort struct {
	name     string
	protocol flow.Protocol
	port     uint16
	nodePort uint16             // 0 if nodes do not listen for it
	target   intstr.IntOrString // a number, or the name of a container port
}

// frontKey is an address and port that clients of a Service ask for. A node
// port has the zero address.
type frontKey struct {
	addr     netip.Addr
	port     uint16
	protocol flow.Protocol
}

// front says which Service had an address and port from when to when.
type front struct {
	service  *flow.Service
	by       *serviceRecord
	port     int // in by.ports
	from, to int64
}

// servicePorts holds who had each front, oldest first.
type servicePorts struct {
	mu     sync.RWMutex
	fronts map[frontKey][]front
}

func (s *servicePorts) init() { s.fronts = make(map[frontKey][]front) }

func (s *servicePorts) at(k frontKey, t int64) (front, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	list := s.fronts[k]
	for i := len(list) - 1; i >= 0; i-- {
		if f := list[i]; t >= f.from && t < f.to {
			return f, true
		}
	}
	return front{}, false
}

// open adds a front, or makes an open one of the same Service anew.
func (s *servicePorts) open(k frontKey, f front) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := slices.DeleteFunc(slices.Clone(s.fronts[k]), func(o front) bool {
		return o.to != forever && f.from-o.to > int64(historyKept)
	})
	for i := range list {
		if list[i].by == f.by && list[i].to == forever {
			f.from = list[i].from
			list[i] = f
			s.fronts[k] = list
			return
		}
	}
	s.fronts[k] = append(list, f)
}

func (s *servicePorts) close(k frontKey, by *serviceRecord, at int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := slices.Clone(s.fronts[k])
	for i := range list {
		if list[i].by == by && list[i].to == forever {
			list[i].to = at
		}
	}
	if list = slices.DeleteFunc(list, func(o front) bool { return at-o.to > int64(historyKept) }); len(list) > 0 {
		s.fronts[k] = list
	} else {
		delete(s.fronts, k)
	}
}

// Service names the Service that owned an address and port at a moment: one of
// its own addresses, or a node's with its node port. nil if there was none.
func (x *Index) Service(addr netip.Addr, port uint16, protocol flow.Protocol, at time.Time) *flow.Service {
	f, ok := x.front(addr, port, protocol, at)
	switch {
	case !ok:
		return nil
	case f.service.Addr.IsValid():
		return f.service
	}
	return &flow.Service{Addr: addr, Port: port, Namespace: f.service.Namespace, Name: f.service.Name}
}

func (x *Index) front(addr netip.Addr, port uint16, protocol flow.Protocol, at time.Time) (front, bool) {
	t := at.UnixNano()
	if f, ok := x.services.at(frontKey{addr, port, protocol}, t); ok {
		return f, true
	}
	f, ok := x.services.at(frontKey{port: port, protocol: protocol}, t)
	if !ok || x.Endpoint(addr, at).Kind != flow.EndpointNode {
		return front{}, false
	}
	return f, true
}

// setService takes in what a Service is now. A headless one and one of type
// ExternalName have no address: DNS answers with the pods', or with a name.
func (x *Index) setService(o *corev1.Service, m moment) {
	k := podKey{orDefault(o.Namespace), o.Name}
	if r := x.svcs[k]; r != nil && r.uid != string(o.UID) {
		x.removeService(r, m)
	}
	r := x.svcs[k]
	if r == nil {
		k = podKey{intern(k.namespace), intern(k.name)}
		r = &serviceRecord{
			holder: holder{rank: rankService, kind: "Service", key: k}, uid: string(o.UID),
			endpoint: &flow.Endpoint{Kind: flow.EndpointService, Namespace: k.namespace, Workload: flow.Workload{Kind: "Service", Name: k.name}},
		}
		x.svcs[k] = r
	}
	addrs, problems := serviceAddrs(o)
	ports, more := readPorts(o)
	x.problems.set(r.String(), append(problems, more...))
	if r.selector = o.Spec.Selector; o.Spec.Type == corev1.ServiceTypeExternalName {
		addrs = nil
	}
	before := r.fronts()
	x.reclaim(&r.holder, r.addrs, addrs, version{m.now, r.endpoint, nil}, false, m)
	r.addrs, r.ports = addrs, ports
	x.publishFronts(r, before, m)
	if len(addrs) > 0 {
		x.learnServiceNetwork(o)
	}
}

// learnServiceNetwork remembers that the cluster address's neighbours are
// Services' too. They stay so: the range of Services does not change.
func (x *Index) learnServiceNetwork(o *corev1.Service) {
	for _, text := range o.Spec.ClusterIPs {
		if a, err := netip.ParseAddr(text); err == nil && !x.networks.contain(a) {
			x.networks.addService(a, 1)
		}
	}
}

func (x *Index) deleteService(k podKey, m moment) {
	if r := x.svcs[k]; r != nil {
		x.removeService(r, m)
	}
}

func (x *Index) removeService(r *serviceRecord, m moment) {
	before := r.fronts()
	x.reclaim(&r.holder, r.addrs, nil, version{}, false, m)
	r.addrs, r.ports = nil, nil
	x.publishFronts(r, before, m)
	x.problems.set(r.String(), nil)
	delete(x.svcs, r.key)
}

// fronts lists every address and port that clients may ask for, with the port's place.
func (r *serviceRecord) fronts() map[frontKey]int {
	out := make(map[frontKey]int, (len(r.addrs)+1)*len(r.ports))
	for i, p := range r.ports {
		for _, a := range r.addrs {
			out[frontKey{a, p.port, p.protocol}] = i
		}
		if p.nodePort != 0 {
			out[frontKey{port: p.nodePort, protocol: p.protocol}] = i
		}
	}
	return out
}

func (x *Index) publishFronts(r *serviceRecord, before map[frontKey]int, m moment) {
	now := r.fronts()
	for k := range before {
		if _, still := now[k]; !still {
			x.services.close(k, r, m.now)
		}
	}
	from := m.now
	if m.first {
		from = always
	}
	for k, i := range now {
		s := &flow.Service{Addr: k.addr, Port: k.port, Namespace: r.key.namespace, Name: r.key.name}
		x.services.open(k, front{service: s, by: r, port: i, from: from, to: forever})
	}
}

// serviceAddrs reads all addresses of a Service.
func serviceAddrs(o *corev1.Service) (addrs []netip.Addr, problems []string) {
	texts := append([]string{o.Spec.ClusterIP}, o.Spec.ClusterIPs...)
	texts = append(texts, o.Spec.ExternalIPs...)
	for _, in := range o.Status.LoadBalancer.Ingress {
		texts = append(texts, in.IP)
	}
	for _, text := range texts {
		if text == "" || text == corev1.ClusterIPNone {
			continue
		}
		a, err := netip.ParseAddr(text)
		if err != nil {
			problems = append(problems, fmt.Sprintf("Service %s/%s: address %q is none", orDefault(o.Namespace), o.Name, text))
			continue
		}
		if a = a.Unmap(); !slices.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
	}
	return addrs, problems
}

func readPorts(o *corev1.Service) (ports []servicePort, problems []string) {
	problem := func(format string, args ...any) {
		problems = append(problems, fmt.Sprintf("Service %s/%s: ", orDefault(o.Namespace), o.Name)+fmt.Sprintf(format, args...))
	}
	for _, p := range o.Spec.Ports {
		protocol, err := flow.ParseProtocol(cmp.Or(string(p.Protocol), "TCP"))
		if err != nil {
			problem("%v", err)
			continue
		}
		if p.Port < 1 || p.Port > 65535 || p.NodePort < 0 || p.NodePort > 65535 {
			problem("%d is no port", p.Port)
			continue
		}
		target := p.TargetPort
		if target == (intstr.IntOrString{}) {
			target = intstr.FromInt32(p.Port)
		}
		ports = append(ports, servicePort{p.Name, protocol, uint16(p.Port), uint16(p.NodePort), target})
	}
	return ports, problems
}
