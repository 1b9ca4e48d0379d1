package kube

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/flowaudit/flowaudit/flow"
)

// sliceRecord is what the index keeps of an EndpointSlice.
type sliceRecord struct {
	service podKey
	addrs   []netip.Addr
	ports   []slicePort
}

type slicePort struct {
	name     string // of the Service's port
	protocol flow.Protocol
	port     uint16
}

// kubernetesService is the Service of the API server itself.
func kubernetesService() podKey { return podKey{metav1.NamespaceDefault, "kubernetes"} }

// setSlice takes in what an EndpointSlice is now.
func (x *Index) setSlice(o *discoveryv1.EndpointSlice, m moment) {
	k := podKey{orDefault(o.Namespace), o.Name}
	r := readSlice(o)
	x.slices[k] = r
	if r.service == kubernetesService() {
		x.claimAPIServer(m)
	}
}

func (x *Index) deleteSlice(k podKey, m moment) {
	r := x.slices[k]
	delete(x.slices, k)
	if r != nil && r.service == kubernetesService() {
		x.claimAPIServer(m)
	}
}

func readSlice(o *discoveryv1.EndpointSlice) *sliceRecord {
	r := &sliceRecord{service: podKey{intern(orDefault(o.Namespace)), intern(o.Labels[discoveryv1.LabelServiceName])}}
	for i := range o.Endpoints {
		e := &o.Endpoints[i]
		if e.Conditions.Ready != nil && !*e.Conditions.Ready && (e.Conditions.Serving == nil || !*e.Conditions.Serving) {
			continue
		}
		for _, text := range e.Addresses {
			if a, err := netip.ParseAddr(text); err == nil { // of type FQDN it is a name
				r.addrs = append(r.addrs, a.Unmap())
			}
		}
	}
	for _, p := range o.Ports {
		if p.Port == nil || *p.Port < 1 || *p.Port > 65535 {
			continue
		}
		out := slicePort{protocol: flow.TCP, port: uint16(*p.Port)}
		if p.Name != nil {
			out.name = intern(*p.Name)
		}
		if p.Protocol != nil {
			protocol, err := flow.ParseProtocol(string(*p.Protocol))
			if err != nil {
				continue
			}
			out.protocol = protocol
		}
		r.ports = append(r.ports, out)
	}
	return r
}

// claimAPIServer makes the endpoints of the Service kubernetes known as the
// API server's. Where one is a node's address, it stays the node's.
func (x *Index) claimAPIServer(m moment) {
	var now []netip.Addr
	ports := make(map[frontKey]bool)
	for _, r := range x.slices {
		if r.service != kubernetesService() {
			continue
		}
		for _, a := range r.addrs {
			now = append(now, a)
			for _, p := range r.ports {
				ports[frontKey{a, p.port, p.protocol}] = true
			}
		}
	}
	e := &flow.Endpoint{
		Kind: flow.EndpointAPIServer, Namespace: metav1.NamespaceDefault, Workload: flow.Workload{Kind: "Service", Name: "kubernetes"},
	}
	x.reclaim(x.apiServer, x.apiAddrs, now, version{m.now, e, nil}, false, m)
	x.apiAddrs = now
	for k := range x.apiPorts {
		if !ports[k] {
			x.services.close(k, nil, m.now)
		}
	}
	for k := range ports {
		s := &flow.Service{Addr: k.addr, Port: k.port, Namespace: metav1.NamespaceDefault, Name: "kubernetes"}
		x.services.open(k, front{service: s, from: m.now, to: forever})
	}
	x.apiPorts = ports
}

// Backends says where an address and port of a Service lead now: by its
// EndpointSlices, or, where none are known, to the pods that it selects. A
// target port that is a name is each pod's own. A Service without selector
// leads where somebody's EndpointSlices say.
func (x *Index) Backends(addr netip.Addr, port uint16, protocol flow.Protocol) []netip.AddrPort {
	f, ok := x.front(addr, port, protocol, time.Now())
	if !ok || f.by == nil {
		return nil
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if f.port >= len(f.by.ports) {
		return nil
	}
	p := f.by.ports[f.port]
	out, known := x.sliceBackends(f.by.key, p)
	if !known && len(f.by.selector) > 0 {
		out = x.selectedBackends(f.by, p)
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return slices.Compact(out)
}

func (x *Index) sliceBackends(service podKey, p servicePort) (out []netip.AddrPort, known bool) {
	for _, r := range x.slices {
		if r.service != service {
			continue
		}
		known = true
		for _, sp := range r.ports {
			if sp.name != p.name || sp.protocol != p.protocol {
				continue
			}
			for _, a := range r.addrs {
				out = append(out, netip.AddrPortFrom(a, sp.port))
			}
		}
	}
	return out, known
}

func (x *Index) selectedBackends(s *serviceRecord, p servicePort) []netip.AddrPort {
	var out []netip.AddrPort
	for k, r := range x.pods {
		if k.namespace != s.key.namespace || !selects(s.selector, r.pod.AllLabels) {
			continue
		}
		if port, ok := targetPort(r.pod, p); ok {
			for _, a := range r.addrs {
				out = append(out, netip.AddrPortFrom(a, port))
			}
		}
	}
	return out
}

func selects(selector, labels map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// targetPort resolves a Service's target at one pod.
func targetPort(p *Pod, s servicePort) (uint16, bool) {
	if s.target.Type == intstr.Int {
		return uint16(s.target.IntVal), true
	}
	for _, c := range p.Ports {
		if c.Name == s.target.StrVal && c.Protocol == s.protocol {
			return c.Port, true
		}
	}
	return 0, false
}

// portProblems finds target ports that no selected pod has a name for.
func (x *Index) portProblems() []string {
	wanted := make(map[string][]*serviceRecord) // by namespace
	for _, s := range x.svcs {
		if len(s.selector) > 0 && slices.ContainsFunc(s.ports, func(p servicePort) bool { return p.target.Type == intstr.String }) {
			wanted[s.key.namespace] = append(wanted[s.key.namespace], s)
		}
	}
	type portOf struct {
		s *serviceRecord
		i int
	}
	selected, resolved := make(map[*serviceRecord]bool), make(map[portOf]bool)
	for k, r := range x.pods {
		for _, s := range wanted[k.namespace] {
			if !selects(s.selector, r.pod.AllLabels) {
				continue
			}
			selected[s] = true
			for i := range s.ports {
				if _, ok := targetPort(r.pod, s.ports[i]); ok {
					resolved[portOf{s, i}] = true
				}
			}
		}
	}
	var out []string
	for s := range selected {
		for i, p := range s.ports {
			if !resolved[portOf{s, i}] {
				out = append(out, fmt.Sprintf("Service %s: no pod that it selects has a %s port named %q", s.key, p.protocol, p.target.StrVal))
			}
		}
	}
	return out
}
