package policy_test

import (
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"

	"github.com/flowaudit/flowaudit/flow"
)

// FuzzPolicy gives the engine whatever decodes as a policy: it must not panic,
// and where all of it is valid it must decide as the reference does.
func FuzzPolicy(f *testing.F) {
	for _, s := range sentences {
		for _, d := range strings.Split(s.policies, "---\n") {
			f.Add([]byte(d), uint16(80), uint8(flow.TCP))
		}
	}
	for _, spec := range []string{
		`{ingress: [{from: [{ipBlock: {cidr: "::ffff:10.0.0.0/104", except: ["10.1.0.0/16"]}}]}]}`,
		`{ingress: [{from: [{ipBlock: {cidr: "fe80::1%eth0/64"}}], ports: [{port: 80, endPort: 2147483647}]}]}`,
		`{ingress: [{from: [{ipBlock: {cidr: "10.0.0.0/08"}}]}, null]}`,
		`{egress: [{to: [{ipBlock: {cidr: "::/0", except: ["8000::/1", "8000::/128", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"]}}, {ipBlock: {cidr: 0.0.0.0/0}}], ports: [{}]}]}`,
	} {
		f.Add([]byte("spec: "+spec), uint16(8080), uint8(flow.UDP))
	}
	f.Fuzz(func(t *testing.T, document []byte, port uint16, protocol uint8) {
		p := &networkingv1.NetworkPolicy{}
		if yaml.Unmarshal(document, p) != nil {
			return
		}
		p.Namespace = "a"
		g := &generator{Rand: fixed()}
		w := g.world()
		clear(w.policies)
		w.policies["a/"+p.Name] = p
		e := w.engine(t, nil)
		s, reference := e.Snapshot(), w.reference()
		agree := reference.valid[p] && len(s.Problems()) == 0
		for range 30 {
			c := g.connection(w)
			c.port = int32(port)
			connection := c.asConnection(e.Classes(), nil)
			connection.Protocol = flow.Protocol(protocol)
			if c.protocol = strings.ToUpper(connection.Protocol.String()); agree {
				want, _, _ := reference.decide(c)
				if got := s.Decide(connection).Verdict.String(); got != want {
					t.Errorf("%s\n engine %s, reference %s", describe(c), got, want)
				}
			}
			_ = s.Explain(connection).String()
			s.Reach(&connection.Src, &connection.Dst)
		}
		e.SetPolicy(throughYAML(p))
		e.DeletePolicy("a", p.Name)
	})
}

// FuzzProtobuf gives the engine whatever decodes from an API server's form.
func FuzzProtobuf(f *testing.F) {
	for _, s := range sentences {
		for _, p := range decode(f, s.policies) {
			b, err := p.Marshal()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, message []byte) {
		p := &networkingv1.NetworkPolicy{}
		if p.Unmarshal(message) != nil {
			return
		}
		p.Namespace = "a"
		g := &generator{Rand: fixed()}
		w := g.world()
		e := w.engine(t, nil)
		e.SetPolicy(p)
		s := e.Snapshot()
		for range 20 {
			c := g.connection(w).asConnection(e.Classes(), nil)
			_ = s.Explain(c).String()
			s.Reach(&c.Src, &c.Dst)
		}
	})
}
