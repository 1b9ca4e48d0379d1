package cluster_test

import (
	"context"
	_ "embed"
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/test/cluster"
	"github.com/flowaudit/flowaudit/test/netlab/traffic"
)

//go:embed testdata/least.yaml
var leastManifests string

// spot is where packets begin and end, as a suggestion names it.
type spot struct {
	name, name6 string // of its IPv4 and its IPv6 address
	at          traffic.Place
	v4, v6      netip.Addr
	node        *cluster.Node // nil outside of the cluster
	arrivals    *traffic.Arrivals
}

func (s *spot) addr(ipv6 bool) netip.Addr {
	if ipv6 {
		return s.v6
	}
	return s.v4
}

// text is how a suggestion names the spot.
func (s *spot) text(ipv6 bool) string {
	if ipv6 {
		return s.name6
	}
	return s.name
}

// least is an application without policies, for which they are suggested.
type least struct {
	dns, web, api, db, red, blue, signal, silent, nightly *spot // pods
	host, outside                                         *spot
	services                                              map[string][]netip.Addr // by name; IPv4 first
}

// openLeast makes the application, which stays until the run's end as shops do.
func openLeast(t *testing.T) *least {
	t.Helper()
	must(t, lab.Apply(t.Context(), leastManifests))
	l := &least{services: make(map[string][]netip.Addr)}
	for _, p := range []struct {
		to                        **spot
		namespace, selector, name string
	}{
		{&l.dns, "least-dns", "k8s-app=dns", "Deployment least-dns/dns"},
		{&l.web, "least", "app=web", "Deployment least/web"},
		{&l.api, "least", "app=api", "Deployment least/api"},
		{&l.db, "least", "app=db", "StatefulSet least/db"},
		{&l.red, "least", "app.kubernetes.io/instance=red", "Deployment least/red-cache"},
		{&l.blue, "least", "app.kubernetes.io/instance=blue", "Deployment least/blue-cache"},
		{&l.signal, "least", "app=signal", "Deployment least/signal"},
		{&l.silent, "least", "app=silent", "Deployment least/silent"},
	} {
		*p.to = &spot{}
		(*p.to).become(t, p.namespace, p.selector, p.name)
	}
	l.nightly = &spot{}
	l.runJob(t, "tonight")
	for _, s := range []*spot{l.api, l.signal} {
		must(t, s.at.(*cluster.Pod).NFT(traffic.NoSCTP))
	}
	node := lab.Nodes[0]
	_, err := lab.Pods(t.Context(), "least", "app=host", 1)
	must(t, err)
	l.host = &spot{name: fmt.Sprintf("node node1 (%s)", node.IPv4), name6: fmt.Sprintf("node node1 (%s)", node.IPv6), at: node, v4: node.IPv4, v6: node.IPv6, node: node}
	l.openOutside(t)
	for _, s := range []struct {
		namespace, name string
		addresses       int
	}{{"least-dns", "dns", 1}, {"least", "web", 1}, {"least", "api", 2}, {"least", "db", 2}} {
		must(t, lab.ServiceReady(t.Context(), s.namespace, s.name, s.addresses))
		service, err := lab.Client.CoreV1().Services(s.namespace).Get(t.Context(), s.name, metav1.GetOptions{})
		must(t, err)
		for _, ip := range service.Spec.ClusterIPs {
			l.services[s.name] = append(l.services[s.name], netip.MustParseAddr(ip))
		}
	}
	return l
}

// become makes the spot the only pod that a selector selects.
func (s *spot) become(t *testing.T, namespace, selector, name string) {
	t.Helper()
	pods, err := lab.Pods(t.Context(), namespace, selector, 1)
	must(t, err)
	p := pods[0]
	*s = spot{name: name, name6: name, at: p, v4: p.IPv4, v6: p.IPv6, node: p.Node}
	s.watch(t)
}

func (s *spot) watch(t *testing.T) {
	t.Helper()
	var err error
	s.arrivals, err = traffic.Watch(s.at)
	must(t, err)
	closing := s.arrivals
	t.Cleanup(func() {
		if err := closing.Close(); err != nil {
			t.Error(err)
		}
	})
}

func (l *least) openOutside(t *testing.T) {
	t.Helper()
	o, err := lab.Outside()
	must(t, err)
	t.Cleanup(func() {
		if err := o.Close(); err != nil {
			t.Error(err)
		}
	})
	server, err := traffic.Serve(o, 443)
	must(t, err)
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	l.outside = &spot{name: o.IPv4.String(), name6: o.IPv6.String(), at: o, v4: o.IPv4, v6: o.IPv6}
	l.outside.watch(t)
}

// runJob runs the CronJob's next Job, whose pod is another one.
func (l *least) runJob(t *testing.T, name string) {
	t.Helper()
	_, err := lab.Kubectl(t.Context(), "", "-n", "least", "create", "job", name, "--from=cronjob/nightly")
	must(t, err)
	l.nightly.become(t, "least", "app=nightly", "CronJob least/nightly")
}

// endJob completes the Job's pod and removes the Job.
func (l *least) endJob(t *testing.T, name string) {
	t.Helper()
	must(t, lab.Complete(t.Context(), l.nightly.at.(*cluster.Pod)))
	_, err := lab.Kubectl(t.Context(), "", "-n", "least", "delete", "job", name)
	must(t, err)
	_, err = lab.Running(t.Context(), "least", "app=nightly", 0)
	must(t, err)
	newSecond()
}

func (l *least) pods() []*spot {
	return []*spot{l.dns, l.web, l.api, l.db, l.red, l.blue, l.signal, l.silent, l.nightly}
}

// use is traffic that the application needs.
type use struct {
	from, to *spot
	protocol flow.Protocol
	port     uint16 // of the destination itself
	ipv6     bool
	through  netip.AddrPort // what the client asks, if that is another address
	times    uint64
}

func (l *least) uses() []use {
	dns := netip.AddrPortFrom(l.services["dns"][0], 53)
	api, api6 := netip.AddrPortFrom(l.services["api"][0], 80), netip.AddrPortFrom(l.services["api"][1], 80)
	db, db6 := netip.AddrPortFrom(l.services["db"][0], 3306), netip.AddrPortFrom(l.services["db"][1], 3306)
	return []use{
		{from: l.web, to: l.dns, protocol: flow.UDP, port: 53, through: dns, times: 2},
		{from: l.web, to: l.dns, protocol: flow.TCP, port: 53, through: dns, times: 1},
		{from: l.api, to: l.dns, protocol: flow.UDP, port: 53, through: dns, times: 2},
		{from: l.api, to: l.dns, protocol: flow.TCP, port: 53, through: dns, times: 1},
		{from: l.nightly, to: l.dns, protocol: flow.UDP, port: 53, through: dns, times: 1}, // and never over TCP
		{from: l.web, to: l.api, protocol: flow.TCP, port: 8080, through: api, times: 3},
		{from: l.web, to: l.api, protocol: flow.TCP, port: 8080, ipv6: true, through: api6, times: 2},
		{from: l.api, to: l.db, protocol: flow.TCP, port: 3306, through: db, times: 2},
		{from: l.api, to: l.db, protocol: flow.TCP, port: 3306, ipv6: true, through: db6, times: 1},
		{from: l.nightly, to: l.db, protocol: flow.TCP, port: 3306, times: 1},
		{from: l.web, to: l.red, protocol: flow.TCP, port: 6379, times: 1},
		{from: l.api, to: l.blue, protocol: flow.TCP, port: 6379, times: 1},
		{from: l.api, to: l.signal, protocol: flow.SCTP, port: 3868, times: 2},
		{from: l.api, to: l.outside, protocol: flow.TCP, port: 443, times: 2},
		{from: l.api, to: l.outside, protocol: flow.TCP, port: 443, ipv6: true, times: 1},
		{from: l.host, to: l.api, protocol: flow.TCP, port: 9102, times: 2},
		// Through the NodePort of a node that web is not on: web's sees that node.
		{from: l.outside, to: l.web, protocol: flow.TCP, port: 8443, through: netip.AddrPortFrom(lab.Nodes[1].IPv4, 30443), times: 1},
	}
}

// useAll makes all the traffic that the application needs; nothing may be in its way.
func (l *least) useAll(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for _, u := range l.uses() {
		for range u.times {
			group.Go(func() error {
				if err := u.make(ctx); err != nil {
					return fmt.Errorf("from %s to %s, %s port %d: %w", u.from.text(u.ipv6), u.to.text(u.ipv6), u.protocol, u.port, err)
				}
				return nil
			})
		}
	}
	return group.Wait()
}

func (u use) make(ctx context.Context) error {
	to := netip.AddrPortFrom(u.to.addr(u.ipv6), u.port)
	if u.through.IsValid() {
		to = u.through
	}
	if u.protocol != flow.SCTP {
		return traffic.Talk(ctx, u.from.at, u.protocol.String(), to.String(), 1000)
	}
	return traffic.Associate(u.from.at, u.to.at, u.from.v4, u.to.v4, u.port)
}

// associated counts the packets of the clients of SCTP that reached their servers.
func (l *least) associated() (made, arrived int) {
	for _, u := range l.uses() {
		if u.protocol == flow.SCTP {
			made += 2 * int(u.times)
			want := traffic.Arrival{From: u.from.v4, To: u.to.v4, Protocol: uint8(flow.SCTP), Port: u.port}
			arrived += u.to.arrivals.Count(func(a traffic.Arrival) bool { return a == want })
		}
	}
	return made, arrived
}
