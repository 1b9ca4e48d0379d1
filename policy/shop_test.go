package policy_test

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/policy"
)

// shop is the cluster of the tables: three namespaces on two nodes.
func shop(t *testing.T, policies ...*networkingv1.NetworkPolicy) *policy.Engine {
	t.Helper()
	pod := func(namespace, name, node, addrs string, ports []policy.NamedPort, labels ...string) policy.Pod {
		p := policy.Pod{Namespace: namespace, Name: name, Node: node, Ports: ports, Labels: make(map[string]string)}
		for i := 0; i < len(labels); i += 2 {
			p.Labels[labels[i]] = labels[i+1]
		}
		for _, a := range strings.Fields(addrs) {
			p.Addrs = append(p.Addrs, netip.MustParseAddr(a))
		}
		return p
	}
	http := func(n uint16) []policy.NamedPort {
		return []policy.NamedPort{{Name: "http", Protocol: flow.TCP, Port: n}, {Name: "metrics", Protocol: flow.UDP, Port: n}}
	}
	host := pod("ops", "exporter", "node-1", "192.168.0.1", nil, "app", "exporter")
	host.HostNetwork = true
	e, err := policy.New(policy.Options{
		Policies: policies,
		Namespaces: map[string]map[string]string{
			"shop": {"team": "a", "stage": "prod"}, "data": {"team": "b", "stage": "prod"}, "ops": nil,
		},
		Pods: []policy.Pod{
			pod("shop", "web", "node-1", "10.0.1.1 fd00::1:1", http(8080), "app", "web", "role", "front"),
			pod("shop", "web-2", "node-2", "10.0.1.2", http(9090), "app", "web", "role", "front"),
			pod("shop", "api", "node-2", "10.0.1.3 fd00::1:3", http(80), "app", "api", "role", "back", "tier", ""),
			pod("shop", "bare", "node-2", "10.0.1.4", nil),
			pod("data", "db", "node-1", "10.0.2.1 fd00::2:1", nil, "app", "db", "role", "back"),
			pod("data", "api", "node-2", "10.0.2.2", http(80), "app", "api"),
			pod("ops", "probe", "node-2", "10.0.3.1", nil, "app", "probe"),
			host,
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// decode reads policies from YAML documents. Those without a name are p0, p1, …
// in namespace shop.
func decode(t testing.TB, documents string) []*networkingv1.NetworkPolicy {
	t.Helper()
	var out []*networkingv1.NetworkPolicy
	for i, d := range strings.Split(documents, "---\n") {
		p := &networkingv1.NetworkPolicy{}
		if err := yaml.UnmarshalStrict([]byte(d), p); err != nil {
			t.Fatalf("document %d: %v\n%s", i, err, d)
		}
		if p.Name == "" {
			p.Name = fmt.Sprintf("p%d", i)
		}
		if p.Namespace == "" {
			p.Namespace = "shop"
		}
		out = append(out, p)
	}
	return out
}

// codings are the ways by which a policy can come.
var codings = map[string]func(*networkingv1.NetworkPolicy) *networkingv1.NetworkPolicy{
	"yaml":          func(p *networkingv1.NetworkPolicy) *networkingv1.NetworkPolicy { return p },
	"protobuf":      throughProtobuf,
	"written again": throughYAML,
}

func recode(policies []*networkingv1.NetworkPolicy, by func(*networkingv1.NetworkPolicy) *networkingv1.NetworkPolicy) []*networkingv1.NetworkPolicy {
	out := make([]*networkingv1.NetworkPolicy, len(policies))
	for i, p := range policies {
		out[i] = by(p)
	}
	return out
}

// parseConnection reads "shop/web > data/db tcp 3306". An end is a pod, node:NAME,
// an address outside of the cluster, or a kind: service:ADDRESS. An address
// behind a pod (shop/web@fd00::1:1) is the one it uses.
func parseConnection(t testing.TB, s *policy.Snapshot, text string) *policy.Connection {
	t.Helper()
	fields := strings.Fields(text)
	if len(fields) != 5 || fields[1] != ">" {
		t.Fatalf("%q is no connection", text)
	}
	protocol, err := flow.ParseProtocol(fields[3])
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.ParseUint(fields[4], 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	c := &policy.Connection{Src: parseEnd(t, s, fields[0]), Dst: parseEnd(t, s, fields[2]), Protocol: protocol, Port: uint16(port)}
	return c
}

func parseEnd(t testing.TB, s *policy.Snapshot, text string) policy.End {
	t.Helper()
	if node, is := strings.CutPrefix(text, "node:"); is {
		return policy.End{Kind: flow.EndpointNode, Node: node, Addr: netip.MustParseAddr("192.168.0." + strings.TrimPrefix(node, "node-"))}
	}
	if addr, is := strings.CutPrefix(text, "service:"); is {
		return policy.End{Kind: flow.EndpointService, Addr: netip.MustParseAddr(addr)}
	}
	if addr, is := strings.CutPrefix(text, "unknown:"); is {
		return policy.End{Addr: netip.MustParseAddr(addr)}
	}
	name, addr, _ := strings.Cut(text, "@")
	namespace, pod, is := strings.Cut(name, "/")
	if !is {
		return policy.End{Kind: flow.EndpointOutside, Addr: netip.MustParseAddr(text)}
	}
	p := s.Pod(namespace, pod)
	if p == nil {
		t.Fatalf("no pod %s", name)
	}
	e := p.End()
	if addr != "" {
		e.Addr = netip.MustParseAddr(addr)
	}
	return e
}

// check decides lines of "connection verdict [reasons]": a reason alone is that
// of either side, two are egress' and ingress'.
func check(t *testing.T, e *policy.Engine, lines string) {
	t.Helper()
	s := e.Snapshot()
	for line := range strings.Lines(lines) {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		c := parseConnection(t, s, strings.Join(fields[:5], " "))
		d := s.Decide(c)
		got := []string{d.Verdict.String(), d.Egress.Reason.String(), d.Ingress.Reason.String()}
		if want := fields[5:]; want[0] != got[0] || len(want) == 2 && want[1] != got[1] && want[1] != got[2] || len(want) == 3 && (want[1] != got[1] || want[2] != got[2]) {
			t.Errorf("%s: got %s", strings.TrimSpace(line), strings.Join(got, " "))
		}
	}
}
