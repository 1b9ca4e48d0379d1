package cluster_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/test/netlab/traffic"
)

// suggested is what this test reads of flowaudit suggest -o json.
type suggested struct {
	Policies []struct {
		Object networkingv1.NetworkPolicy `json:"object"`
		Rules  []struct {
			Direction string `json:"direction"`
			Evidence  []struct {
				connection
				Connections uint64 `json:"connections"`
			} `json:"evidence"`
		} `json:"rules"`
	} `json:"policies"`
	Proof struct {
		Refused, Decided, Allowed, Unclear []json.RawMessage
		Loose                              struct {
			Pairs, Unexplained uint64
			List               []struct {
				Source      string `json:"source"`
				Destination string `json:"destination"`
				Protocol    string `json:"protocol"`
				FirstPort   uint16 `json:"first_port"`
				LastPort    uint16 `json:"last_port"`
				Why         string `json:"why"`
			}
		}
	} `json:"proof"`
}

// connection is what a policy tells apart.
type connection struct {
	Source      string `json:"source"`
	Destination string `json:"destination"`
	Protocol    string `json:"protocol"`
	Port        uint16 `json:"port"`
}

// suggestFor are the arguments for the application's namespaces.
func suggestFor(format string) []string {
	return []string{"suggest", "-n", "least,least-dns", "--since", "1h", "-o", format}
}

// TestSuggestedPolicies: what is suggested for an application is valid, lets
// all pass that was recorded, and nothing else. A network plugin that knows
// nothing of flowaudit's policy engine is the judge.
func TestSuggestedPolicies(t *testing.T) {
	l := openLeast(t)
	must(t, l.useAll(t.Context()))
	s := l.learnt(t)
	l.proven(t, s)
	yaml, err := lab.product.Ask(t.Context(), suggestFor("yaml")...)
	must(t, err)
	again, err := lab.product.Ask(t.Context(), suggestFor("yaml")...)
	must(t, err)
	if diff := cmp.Diff(yaml, again); diff != "" {
		t.Errorf("asked again it suggests other policies:\n%s", diff)
	}
	lints(t, yaml)
	_, err = lab.Kubectl(t.Context(), yaml, "apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-")
	must(t, err)

	others := l.others(500)
	if got := arrived(t, l, others); len(got) != len(others) {
		t.Fatalf("without policies %d of %d other connections arrive: whether policies refuse them could not be told", len(got), len(others))
	}
	must(t, lab.Apply(t.Context(), yaml))
	l.endJob(t, "tonight")
	l.runJob(t, "tomorrow")
	must(t, lab.enforcer.Sync(t.Context()))

	_, before := l.associated()
	must(t, l.useAll(t.Context()))
	must(t, l.settle(t.Context()))
	if made, after := l.associated(); after-before != made {
		t.Errorf("%d of the %d packets of SCTP clients arrive", after-before, made)
	}
	for _, o := range arrived(t, l, others) {
		t.Errorf("%s arrives, and nobody needs it", o)
	}
	t.Logf("%d policies, %d uses, %d others", len(s.Policies), len(l.uses()), len(others))
}

// learnt waits until the suggestion rests on all that was done, and nothing else.
func (l *least) learnt(t *testing.T) suggested {
	t.Helper()
	want := make(map[string]map[connection]uint64)
	expect := func(direction string, c connection, times uint64) {
		if want[direction] == nil {
			want[direction] = make(map[connection]uint64)
		}
		want[direction][c] += times
	}
	for _, u := range l.uses() {
		c := connection{u.from.text(u.ipv6), u.to.text(u.ipv6), u.protocol.String(), u.port}
		if u.from != l.host && u.from != l.outside {
			expect("egress", c, u.times)
		}
		if u.to != l.outside {
			expect("ingress", c, u.times)
		}
	}
	var s suggested
	must(t, lab.product.Until(t.Context(), answerBy, "a suggestion from all that was done", func() error {
		out, err := lab.product.Ask(t.Context(), suggestFor("json")...)
		if err != nil {
			return err
		}
		s = suggested{}
		if err := json.Unmarshal([]byte(out), &s); err != nil {
			return fmt.Errorf("read suggestion: %w", err)
		}
		got := make(map[string]map[connection]uint64)
		for _, p := range s.Policies {
			for _, r := range p.Rules {
				if got[r.Direction] == nil {
					got[r.Direction] = make(map[connection]uint64)
				}
				for _, e := range r.Evidence {
					got[r.Direction][e.connection] = e.Connections
				}
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			return errors.New(diff)
		}
		return nil
	}))
	return s
}

// proven holds the proof: of what is permitted only DNS over TCP was not seen,
// which every client of DNS may need.
func (l *least) proven(t *testing.T, s suggested) {
	t.Helper()
	p := s.Proof
	if len(p.Refused)+len(p.Decided)+len(p.Allowed)+len(p.Unclear) > 0 {
		t.Errorf("the proof says: refused %s, decided %s, allowed %s, unclear %s", p.Refused, p.Decided, p.Allowed, p.Unclear)
	}
	if p.Loose.Pairs != 1 || p.Loose.Unexplained != 0 || len(p.Loose.List) != 1 {
		t.Fatalf("permitted and never seen: %+v", p.Loose)
	}
	one := p.Loose.List[0]
	if got, want := (connection{one.Source, one.Destination, one.Protocol, one.FirstPort}), l.dnsOverTCP(); got != want || one.Why != "dns" {
		t.Errorf("permitted and never seen: %+v, want %+v", one, want)
	}
}

func (l *least) dnsOverTCP() connection {
	return connection{l.nightly.name, l.dns.name, "tcp", 53}
}

// lints finds what lint says of policies beside what they are for.
func lints(t *testing.T, policies string) {
	t.Helper()
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "policies.yaml"), []byte(policies), 0o600))
	for _, namespace := range []string{"least", "least-dns"} {
		for name, args := range map[string][]string{
			"namespace": {"get", "namespace", namespace},
			"objects":   {"get", "-n", namespace, "pods,deployments,statefulsets,cronjobs,services"},
		} {
			out, err := lab.KubectlCommand(t.Context(), append(args, "-o", "yaml")...).Output()
			must(t, err)
			must(t, os.WriteFile(filepath.Join(dir, namespace+"-"+name+".yaml"), out, 0o600))
		}
	}
	out, err := exec.CommandContext(t.Context(), filepath.Join(lab.bin, "flowaudit"), "policy", "lint", "--manifests", dir).CombinedOutput()
	if err != nil {
		t.Errorf("flowaudit policy lint: %v\n%s", err, out)
	}
}

// other is a connection that the application does not need.
type other struct {
	from, to *spot
	protocol flow.Protocol
	port     uint16
	ipv6     bool
}

func (o other) connection() connection {
	return connection{o.from.text(o.ipv6), o.to.text(o.ipv6), o.protocol.String(), o.port}
}

func (o other) String() string {
	return fmt.Sprintf("%s → %s %s port %d (%s)", o.from.text(o.ipv6), o.to.text(o.ipv6), o.protocol, o.port, o.to.addr(o.ipv6))
}

// others are n connections that nobody needs; half of them to ports that
// somebody does need. Those between a pod and its own node are none: no policy
// is asked about them.
func (l *least) others(n int) []other {
	taken := map[connection]bool{l.dnsOverTCP(): true}
	ports := []uint16{80}
	for _, u := range l.uses() {
		taken[connection{u.from.text(u.ipv6), u.to.text(u.ipv6), u.protocol.String(), u.port}] = true
		ports = append(ports, u.port)
	}
	random := rand.New(rand.NewPCG(6, 500))
	pods := l.pods()
	from, to := slices.Concat(pods, []*spot{l.host, l.outside}), slices.Concat(pods, []*spot{l.outside})
	var all []other
	for len(all) < n {
		o := other{
			from: from[random.IntN(len(from))], to: to[random.IntN(len(to))], ipv6: random.IntN(2) == 1,
			protocol: []flow.Protocol{flow.TCP, flow.UDP, flow.SCTP}[random.IntN(3)],
			port:     uint16(1 + random.IntN(32000)), // answers come back to higher ones
		}
		if random.IntN(2) == 1 {
			o.port = ports[random.IntN(len(ports))]
		}
		o.ipv6 = o.ipv6 && o.protocol != flow.SCTP
		unasked := o.from == o.to || o.from == l.host && (o.to == l.outside || o.to.node == l.host.node)
		if unasked || taken[o.connection()] {
			continue
		}
		taken[o.connection()] = true
		all = append(all, o)
	}
	return all
}

// arrived tries connections and says which of them reach their destinations.
func arrived(t *testing.T, l *least, all []other) []other {
	t.Helper()
	before := make([]int, len(all))
	group, ctx := errgroup.WithContext(t.Context())
	group.SetLimit(32)
	for i, o := range all {
		before[i] = o.count()
		group.Go(func() error { return o.try(ctx) })
	}
	must(t, group.Wait())
	must(t, l.settle(t.Context()))
	var got []other
	for i, o := range all {
		if o.count() > before[i] {
			got = append(got, o)
		}
	}
	return got
}

func (o other) count() int {
	want := traffic.Arrival{From: o.from.addr(o.ipv6), To: o.to.addr(o.ipv6), Protocol: uint8(o.protocol), Port: o.port}
	return o.to.arrivals.Count(func(a traffic.Arrival) bool { return a == want })
}

func (o other) try(ctx context.Context) error {
	to := netip.AddrPortFrom(o.to.addr(o.ipv6), o.port)
	if o.protocol == flow.SCTP {
		return traffic.InitSCTP(o.from.at, to.Addr(), to.Port())
	}
	err := traffic.Knock(ctx, o.from.at, o.protocol.String(), to.String())
	if errors.Is(err, traffic.ErrLetIn) {
		return nil // the destination tells, too
	}
	return err
}

// settle waits until what was sent before has arrived: each spot's node sends
// a datagram, which no policy refuses, and waits for it.
func (l *least) settle(ctx context.Context) error {
	const marker = 32001
	for _, s := range slices.Concat(l.pods(), []*spot{l.outside}) {
		node := s.node
		if node == nil {
			node = lab.Nodes[0]
		}
		marked := func() int {
			return s.arrivals.Count(func(a traffic.Arrival) bool { return a.Protocol == uint8(flow.UDP) && a.Port == marker })
		}
		before := marked()
		if err := traffic.Knock(ctx, node, "udp", netip.AddrPortFrom(s.v4, marker).String()); err != nil {
			return err
		}
		err := lab.product.Until(ctx, answerBy, "a datagram to "+s.name, func() error {
			if marked() == before {
				return errors.New("it has not arrived")
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
