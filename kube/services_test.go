package kube

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/flowaudit/flowaudit/flow"
)

// listens is a pod whose port named http has a number.
func listens(name, ip string, port int32) *corev1.Pod {
	p := runs(name, ip, 0)
	p.Labels = map[string]string{"app": "web"}
	p.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: port}}}}
	return p
}

func webService(target intstr.IntOrString, change func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"},
		Spec: corev1.ServiceSpec{
			ClusterIP: "10.96.0.1", ClusterIPs: []string{"10.96.0.1"}, Selector: map[string]string{"app": "web"},
			Ports: []corev1.ServicePort{{Name: "main", Port: 80, NodePort: 30080, TargetPort: target}},
		},
	}
	if change != nil {
		change(s)
	}
	return s
}

func webSlice(name string, port int32, addrs ...string) *discoveryv1.EndpointSlice {
	main, no := "main", false
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		Ports:      []discoveryv1.EndpointPort{{Name: &main, Port: &port}},
		Endpoints:  []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.99"}, Conditions: discoveryv1.EndpointConditions{Ready: &no}}},
	}
	for _, a := range addrs {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}})
	}
	return s
}

func TestBackends(t *testing.T) {
	byName := intstr.FromString("http")
	pods := []*corev1.Pod{listens("a", "10.0.0.1", 8080), listens("b", "10.0.0.2", 9090)}
	noSelector := func(s *corev1.Service) { s.Spec.Selector = nil }
	for _, c := range []struct {
		name    string
		service *corev1.Service
		slices  []*discoveryv1.EndpointSlice
		ask     string
		want    string
	}{
		{"a number is every pod's", webService(intstr.FromInt32(8000), nil), nil, "10.96.0.1:80", "10.0.0.1:8000 10.0.0.2:8000"},
		{"no target is the port itself", webService(intstr.IntOrString{}, nil), nil, "10.96.0.1:80", "10.0.0.1:80 10.0.0.2:80"},
		{"a name is each pod's own", webService(byName, nil), nil, "10.96.0.1:80", "10.0.0.1:8080 10.0.0.2:9090"},
		{"a node port leads to the same", webService(byName, nil), nil, "192.168.0.1:30080", "10.0.0.1:8080 10.0.0.2:9090"},
		{"a node port only of a node", webService(byName, nil), nil, "192.168.0.2:30080", ""},
		{"EndpointSlices say it where there are some", webService(byName, nil), []*discoveryv1.EndpointSlice{webSlice("x", 8080, "10.0.0.1"), webSlice("y", 9090, "10.0.0.2", "10.0.0.3")}, "10.96.0.1:80", "10.0.0.1:8080 10.0.0.2:9090 10.0.0.3:9090"},
		{"without a selector only they do", webService(byName, noSelector), []*discoveryv1.EndpointSlice{webSlice("x", 5432, "203.0.113.7")}, "10.96.0.1:80", "203.0.113.7:5432"},
		{"without a selector and them it leads nowhere", webService(byName, noSelector), nil, "10.96.0.1:80", ""},
		{"another port is no Service's", webService(byName, nil), nil, "10.96.0.1:81", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := NewIndex()
			x.Replace(&Objects{Pods: pods, Nodes: []*corev1.Node{newNode("n1", "192.168.0.1")}, Services: []*corev1.Service{c.service}, EndpointSlices: c.slices}, epoch)
			ask := netip.MustParseAddrPort(c.ask)
			var got []string
			for _, b := range x.Backends(ask.Addr(), ask.Port(), flow.TCP) {
				got = append(got, b.String())
			}
			if strings.Join(got, " ") != c.want {
				t.Errorf("%s leads to %q, want %q", c.ask, got, c.want)
			}
		})
	}
}

func TestANamedPortThatNobodyHas(t *testing.T) {
	x := NewIndex()
	o := &Objects{Pods: []*corev1.Pod{listens("a", "10.0.0.1", 8080)}, Services: []*corev1.Service{webService(intstr.FromString("grpc"), nil)}}
	x.Replace(o, epoch)
	want := []string{`Service shop/web: no pod that it selects has a tcp port named "grpc"`}
	if got := x.Stats().Problems; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if x.Service(netip.MustParseAddr("10.96.0.1"), 80, flow.TCP, epoch) == nil {
		t.Error("the rest of the Service is lost")
	}
	o.Services[0].Spec.Ports[0].TargetPort = intstr.FromString("http")
	x.Replace(o, epoch)
	if got := x.Stats().Problems; len(got) != 0 {
		t.Errorf("it is mended, and still told: %q", got)
	}
}

func TestAServicesAddressAtATime(t *testing.T) {
	s := newStage(t)
	addr := netip.MustParseAddr("10.96.0.1")
	name := func(at float64) string {
		e, out := s.Endpoint(addr, sec(at)), ""
		if f := s.Service(addr, 80, flow.TCP, sec(at)); f != nil {
			out = f.Name
		}
		return fmt.Sprintf("%s %s", out, e.Workload.Name)
	}
	old := webService(intstr.IntOrString{}, nil)
	s.setService(old, live(sec(10)))
	s.deleteService(podKey{"shop", "web"}, live(sec(20)))
	s.setService(webService(intstr.IntOrString{}, func(n *corev1.Service) { n.Name = "other" }), live(sec(30)))
	for at, want := range map[float64]string{5: " ", 15: "web web", 25: " ", 35: "other other"} {
		if got := name(at); got != want {
			t.Errorf("at %.0f s %q, want %q", at, got, want)
		}
	}
}

func TestSpoiltServicesAreNamed(t *testing.T) {
	for _, c := range []struct {
		name, want string
		spoil      func(*corev1.Service)
	}{
		{"an address", `Service shop/web: address "10.96.0.300" is none`, func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"10.96.0.300"} }},
		{"a port", "Service shop/web: 70000 is no port", func(s *corev1.Service) { s.Spec.Ports[0].Port = 70000 }},
		{"a protocol", "Service shop/web: ", func(s *corev1.Service) { s.Spec.Ports[0].Protocol = "carrier-pigeon" }},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := NewIndex()
			x.Replace(&Objects{Services: []*corev1.Service{webService(intstr.FromInt32(80), c.spoil)}}, epoch)
			got := x.Stats().Problems
			if len(got) != 1 || !strings.HasPrefix(got[0], c.want) {
				t.Errorf("%q, want %q", got, c.want)
			}
			if x.Endpoint(netip.MustParseAddr("10.96.0.1"), epoch).Kind != flow.EndpointService {
				t.Error("its address is lost")
			}
		})
	}
}
