package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/test/cluster"
	"github.com/flowaudit/flowaudit/test/netlab/traffic"
)

// churn replaces pods on one node, with address reuse, while they talk. They
// share one network namespace, so that a pod costs three requests and no
// process. Number n talks to port firstPort+n only: a flow tells by itself
// whose it is.
type churn struct {
	t     *testing.T
	home  *cluster.Pod // whose namespace sends
	sinks []*cluster.Pod

	free chan netip.Addr // addresses, in the order in which they became free
	node *cluster.Node

	mu   sync.Mutex
	sent int
}

const (
	churnSpace = "churn"
	firstPort  = 2000
	addresses  = 600
	life       = 2 * time.Second
)

// newChurn makes the sender, and sinks on both nodes; those of number sinks/2
// and more refuse everything.
func newChurn(t *testing.T, sinks int) *churn {
	t.Helper()
	namespace(t, churnSpace)
	c := &churn{t: t, free: make(chan netip.Addr, addresses), home: barePod(t, churnSpace, "home", "node1"), node: lab.Nodes[0]}
	for i := range addresses {
		c.free <- netip.AddrFrom4([4]byte{10, 244, byte(24 + i/250), byte(1 + i%250)})
	}
	must(t, c.node.IP("route", "add", churnNetwork.String(), "via", c.home.IPv4.String()))
	must(t, lab.Nodes[1].IP("route", "add", churnNetwork.String(), "via", c.node.IPv4.String()))
	for _, n := range lab.Nodes { // each datagram is a connection of its own
		must(t, n.Sysctl("netfilter/nf_conntrack_udp_timeout", "5"))
	}
	for i := range sinks {
		name, role := fmt.Sprintf("sink-%d", i), "open"
		if i >= sinks/2 {
			role = "closed"
		}
		p := barePod(t, churnSpace, name, lab.Nodes[i%2].Name)
		// A closed port's kernel would answer each datagram with an error.
		must(t, p.NFT("table inet sink {\n chain in1 { type filter hook input priority 0; meta l4proto udp drop\n }\n}"))
		_, err := lab.Kubectl(t.Context(), "", "-n", churnSpace, "label", "pod", name, "role="+role)
		must(t, err)
		c.sinks = append(c.sinks, p)
	}
	must(t, lab.Apply(t.Context(), `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed, namespace: churn}
spec: {podSelector: {matchLabels: {role: closed}}, policyTypes: [Ingress]}`))
	must(t, lab.enforcer.Sync(t.Context()))
	t.Cleanup(func() {
		for _, n := range lab.Nodes {
			if err := errors.Join(n.IP("route", "delete", churnNetwork.String()), n.Sysctl("netfilter/nf_conntrack_udp_timeout", "30")); err != nil {
				t.Error(err)
			}
		}
	})
	return c
}

// churnNetwork is the half of node1's network that no other pods use.
var churnNetwork = netip.MustParsePrefix("10.244.24.0/21")

func churnName(number int) string { return fmt.Sprintf("churn-%d", number) }

// one is the life of a pod: it talks before its status says where it is, while
// it runs, and its address goes to the next one before the API forgets it.
func (c *churn) one(ctx context.Context, number int) error {
	pods := lab.Client.CoreV1().Pods(churnSpace)
	pod, err := pods.Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: churnName(number), Labels: map[string]string{"app": "churn", cluster.Unmanaged: "true"}},
		Spec:       corev1.PodSpec{NodeName: c.node.Name, AutomountServiceAccountToken: new(bool), Containers: []corev1.Container{{Name: "churn", Image: "test/churn:1"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("create pod: %w", err)
	}
	addr := <-c.free
	began := time.Now()
	third := len(c.sinks) / 3
	if err := c.talk(number, addr, 0, third); err != nil {
		return err
	}
	pod.Status = corev1.PodStatus{
		Phase: corev1.PodRunning, StartTime: &metav1.Time{Time: began}, HostIP: c.node.IPv4.String(),
		PodIP: addr.String(), PodIPs: []corev1.PodIP{{IP: addr.String()}},
		ContainerStatuses: []corev1.ContainerStatus{{Name: "churn", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Time{Time: began}}}}},
	}
	if _, err := pods.UpdateStatus(ctx, pod, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("report pod: %w", err)
	}
	time.Sleep(life/2 - time.Since(began)) // a pod lives; this waits for nothing
	if err := c.talk(number, addr, third, 2*third); err != nil {
		return err
	}
	time.Sleep(life - time.Since(began))
	if err := c.talk(number, addr, 2*third, len(c.sinks)); err != nil {
		return err
	}
	c.free <- addr
	now := int64(0)
	if err := pods.Delete(ctx, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete pod: %w", err)
	}
	return nil
}

// talk sends a datagram to each of some sinks.
func (c *churn) talk(number int, addr netip.Addr, first, end int) error {
	i := first
	err := traffic.Burst(c.home, func() (traffic.Datagram, bool) {
		if i == end {
			return traffic.Datagram{}, false
		}
		d := traffic.Datagram{From: netip.AddrPortFrom(addr, 1024), To: netip.AddrPortFrom(c.sinks[i].IPv4, uint16(firstPort+number))}
		i++
		return d, true
	})
	c.mu.Lock()
	c.sent += end - first
	c.mu.Unlock()
	return err
}

// tally is how flowaudit named what the pods sent.
type tally struct {
	named, ambiguous, unnamed, misnamed uint64
	wrong                               []string       // in words
	when                                map[string]int // of those, by second
}

func (n tally) all() uint64 { return n.named + n.ambiguous + n.unnamed + n.misnamed }

func (n *tally) add(f *flow.Flow) {
	if f.Protocol != flow.UDP || f.Port < firstPort || !churnNetwork.Contains(f.Src) {
		return
	}
	want := churnName(int(f.Port) - firstPort)
	switch s := f.Source; {
	case s == nil:
		n.unnamed += f.Connections
	case s.Kind == flow.EndpointAmbiguous:
		n.ambiguous += f.Connections
	case s.Kind == flow.EndpointPod && s.Namespace == churnSpace && s.Pod == want:
		n.named += f.Connections
	default:
		n.misnamed += f.Connections
		n.when[f.Node+" "+f.Start.Format(time.TimeOnly)]++
		n.wrong = append(n.wrong, fmt.Sprintf("%s to port %d is %s's, and named %s %s/%s, by %s at %s",
			f.Src, f.Port, want, s.Kind, s.Namespace, s.Pod, f.Node, f.Start.Format(time.RFC3339Nano)))
	}
}

// TestChurn replaces 100 pods a second; in a soak 200, until they made a
// million flows.
func TestChurn(t *testing.T) {
	pods, rate, patience := 500, 100, time.Minute
	if soak() {
		pods, rate, patience = 52_000, 200, 15*time.Minute
	}
	c := newChurn(t, 20)
	began := time.Now()
	var group errgroup.Group
	group.SetLimit(addresses)
	for number := range pods {
		time.Sleep(time.Until(began.Add(time.Duration(number) * time.Second / time.Duration(rate)))) // they come at this rate
		group.Go(func() error { return c.one(t.Context(), number) })
	}
	t.Logf("%.0f pods a second", float64(pods)/time.Since(began).Seconds())
	must(t, group.Wait())
	var n tally
	var looked time.Time
	var took time.Duration
	err := lab.product.Until(t.Context(), patience, "every flow", func() error {
		if time.Since(looked) < took/2 { // a million flows take a while to read
			return fmt.Errorf("%d of %d connections", n.all(), c.sent)
		}
		asked := time.Now()
		defer func() { looked, took = time.Now(), time.Since(asked) }()
		n = tally{when: make(map[string]int)}
		if err := lab.product.Each(t.Context(), n.add, "--verdict", everything); err != nil {
			return err
		}
		if n.all() < uint64(c.sent) {
			return fmt.Errorf("%d of %d connections", n.all(), c.sent)
		}
		return nil
	})
	t.Logf("%d connections: %d named, %d ambiguous, %d unnamed, %d wrong", n.all(), n.named, n.ambiguous, n.unnamed, n.misnamed)
	if err != nil {
		t.Error(err)
	}
	if len(n.wrong) > 0 {
		t.Errorf("named wrongly, %v:\n%s", n.when, strings.Join(n.wrong[:min(len(n.wrong), 10)], "\n"))
	}
	if n.all() != uint64(c.sent) {
		t.Errorf("%d connections were made", c.sent)
	}
	if n.unnamed*1000 > uint64(c.sent) {
		t.Errorf("%d of %d have no name, at most 1 in 1000 may", n.unnamed, c.sent)
	}
}
