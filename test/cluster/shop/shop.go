// Package shop is a small application on a cluster: what it consists of, and traffic in it that its policies allow and refuse.
package shop

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/test/cluster"
	"github.com/flowaudit/flowaudit/test/cluster/enforce"
	"github.com/flowaudit/flowaudit/test/cluster/ledger"
	"github.com/flowaudit/flowaudit/test/netlab/traffic"
)

//go:embed shop.yaml
var manifests string

// Payload is how many bytes a connection sends each way.
const Payload = 4096

// Shop is the application, ready.
type Shop struct {
	Namespace            string
	DB, API, Web, Report *cluster.Pod
	Probe                map[string]*cluster.Pod // by node
	DBService            map[bool]netip.Addr     // by whether it is IPv6
	APIService           netip.Addr

	port uint16 // of the last datagram, each from one of its own
}

// firstPort is below those that the kernel chooses (ip_local_port_range).
const firstPort = 10000

// Open creates the shop in a namespace of its own, and waits until its pods
// run, its Services lead to them, and its policies are enforced.
func Open(ctx context.Context, c *cluster.Cluster, e *enforce.Enforcer, namespace string) (*Shop, error) {
	if err := c.Apply(ctx, strings.ReplaceAll(manifests, "NAMESPACE", namespace)); err != nil {
		return nil, err
	}
	s := &Shop{Namespace: namespace, Probe: make(map[string]*cluster.Pod), DBService: make(map[bool]netip.Addr), port: firstPort}
	for _, app := range []string{"db", "api", "web", "report"} {
		if err := s.find(ctx, c, app); err != nil {
			return nil, err
		}
	}
	probes, err := c.Pods(ctx, s.Namespace, "app=probe", len(c.Nodes))
	if err != nil {
		return nil, err
	}
	for _, p := range probes {
		s.Probe[p.Node.Name] = p
	}
	if err := s.services(ctx, c); err != nil {
		return nil, err
	}
	return s, e.Sync(ctx)
}

// Replace deletes an app's pod, and waits until the next one runs.
func (s *Shop) Replace(ctx context.Context, c *cluster.Cluster, e *enforce.Enforcer, app string) error {
	pod := s.app(app)
	if err := c.Client.CoreV1().Pods(s.Namespace).Delete(ctx, (*pod).Key.Name, metav1.DeleteOptions{}); err != nil {
		return fmt.Errorf("delete pod %s: %w", (*pod).Key, err)
	}
	if err := c.Gone(ctx, *pod); err != nil {
		return err
	}
	if err := s.find(ctx, c, app); err != nil {
		return err
	}
	return errors.Join(s.services(ctx, c), e.Sync(ctx))
}

// app is where the shop keeps an app's pod.
func (s *Shop) app(name string) **cluster.Pod {
	return map[string]**cluster.Pod{"db": &s.DB, "api": &s.API, "web": &s.Web, "report": &s.Report}[name]
}

func (s *Shop) find(ctx context.Context, c *cluster.Cluster, app string) error {
	pods, err := c.Pods(ctx, s.Namespace, "app="+app, 1)
	if err == nil {
		*s.app(app) = pods[0]
	}
	return err
}

func (s *Shop) services(ctx context.Context, c *cluster.Cluster) error {
	for _, name := range []string{"db", "api"} {
		if err := c.ServiceReady(ctx, s.Namespace, name, 2); err != nil { // an IPv4 and an IPv6 address
			return err
		}
		service, err := c.Client.CoreV1().Services(s.Namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return fmt.Errorf("get Service %s: %w", name, err)
		}
		for _, ip := range service.Spec.ClusterIPs {
			addr, err := netip.ParseAddr(ip)
			if err != nil {
				return fmt.Errorf("read the address of Service %s: %w", name, err)
			}
			if name == "db" {
				s.DBService[addr.Is6()] = addr
			} else if addr.Is4() {
				s.APIService = addr
			}
		}
	}
	return nil
}

// act is one of the things that happen in the shop.
type act struct {
	from, to    *cluster.Pod
	network     string // tcp or udp
	ipv6        bool
	port        uint16     // of the pod
	through     netip.Addr // the Service's address, if one is asked
	servicePort uint16
	service     string
	refused     bool
	times       uint64
}

func (s *Shop) acts() []act {
	return []act{
		{from: s.API, to: s.DB, network: "tcp", port: 3306, through: s.DBService[false], servicePort: 3306, service: s.Namespace + "/db", times: 3},
		{from: s.API, to: s.DB, network: "tcp", ipv6: true, port: 3306, through: s.DBService[true], servicePort: 3306, service: s.Namespace + "/db", times: 2},
		{from: s.API, to: s.DB, network: "udp", port: 5353, through: s.DBService[false], servicePort: 123, service: s.Namespace + "/db", times: 2},
		{from: s.API, to: s.DB, network: "tcp", port: 9104, times: 2},
		{from: s.API, to: s.DB, network: "tcp", ipv6: true, port: 9104, times: 1},
		{from: s.Web, to: s.API, network: "tcp", port: 8080, through: s.APIService, servicePort: 80, service: s.Namespace + "/api", times: 2},
		{from: s.Web, to: s.API, network: "udp", port: 8080, times: 1},
		{from: s.Report, to: s.API, network: "tcp", port: 8080, times: 1},
		{from: s.Probe["node1"], to: s.DB, network: "tcp", port: 9104, times: 1},
		{from: s.Probe["node2"], to: s.DB, network: "tcp", port: 9104, times: 1},

		{from: s.Web, to: s.DB, network: "tcp", port: 3306, refused: true, times: 3},
		{from: s.Web, to: s.DB, network: "tcp", ipv6: true, port: 3306, refused: true, times: 1},
		{from: s.Web, to: s.DB, network: "udp", port: 5353, refused: true, times: 1},
		{from: s.API, to: s.DB, network: "tcp", port: 5432, refused: true, times: 1},
		{from: s.Probe["node2"], to: s.DB, network: "tcp", port: 3306, refused: true, times: 1},
		{from: s.Report, to: s.DB, network: "tcp", port: 9104, refused: true, times: 2},
		{from: s.Report, to: s.Web, network: "udp", ipv6: true, port: 1000, refused: true, times: 1},
	}
}

// Act makes all the traffic once and says what was done.
func (s *Shop) Act(ctx context.Context) ([]ledger.Deed, error) {
	var deeds []ledger.Deed
	for _, a := range s.acts() {
		for range a.times {
			if err := a.do(ctx, s.caller(a)); err != nil {
				return nil, fmt.Errorf("from %s to %s: %w", a.from.Key, a.to.Key, err)
			}
		}
		deeds = append(deeds, a.deed())
	}
	return deeds, nil
}

// caller is who acts. Datagrams from a port that was used before would be no
// further connection.
func (s *Shop) caller(a act) traffic.Caller {
	c := traffic.Caller{From: a.from}
	if a.network == "udp" {
		s.port++
		c.Port = s.port
	}
	return c
}

func (a act) addr() netip.Addr {
	if a.ipv6 {
		return a.to.IPv6
	}
	return a.to.IPv4
}

func (a act) do(ctx context.Context, by traffic.Caller) error {
	to := netip.AddrPortFrom(a.addr(), a.port)
	if a.through.IsValid() {
		to = netip.AddrPortFrom(a.through, a.servicePort)
	}
	if a.refused {
		return by.Knock(ctx, a.network, to.String())
	}
	return by.Talk(ctx, a.network, to.String(), Payload)
}

func (a act) deed() ledger.Deed {
	d := ledger.Deed{Verdict: flow.VerdictAllowed, Protocol: flow.TCP, Port: a.port, Service: a.service, Connections: a.times, Bytes: Payload * a.times}
	if a.refused {
		d.Verdict, d.Bytes = flow.VerdictDenied, 0
	}
	if a.network == "udp" {
		d.Protocol = flow.UDP
	}
	source := a.from.IPv4
	if a.ipv6 {
		source = a.from.IPv6
	}
	d.Source, d.Destination = End(a.from, source), End(a.to, a.addr())
	return d
}

// End is how an answer must name one of the shop's pods.
func End(p *cluster.Pod, addr netip.Addr) ledger.End {
	return ledger.End{Addr: addr, Pod: p.Key.String(), Workload: workload(p.Key.Name), Node: p.Node.Name}
}

// workload is the controller of a pod, by the pod's name.
func workload(pod string) string {
	name, _, _ := strings.Cut(pod, "-")
	switch name {
	case "db":
		return "StatefulSet/db"
	case "probe":
		return "DaemonSet/probe"
	}
	return "Deployment/" + name
}
