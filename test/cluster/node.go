package cluster

import (
	"context"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/flowaudit/flowaudit/test/cluster/process"
	"github.com/flowaudit/flowaudit/test/netlab"
)

// KindLabel is a label of nodes: whether their pods are network namespaces, or
// containers of a real kubelet.
const (
	KindLabel     = "flowaudit.test/kind"
	KindNamespace = "namespace"
	KindMachine   = "machine"
)

// Node is a node of the cluster: a network namespace with kube-proxy in it.
type Node struct {
	*netlab.Node
	Name       string
	IPv4, IPv6 netip.Addr

	number  int // from 1, part of its addresses
	proxy   *process.Process
	machine *realMachine // nil where this program plays the kubelet
}

func (n *Node) podCIDRs() []string {
	return []string{fmt.Sprintf("10.244.%d.0/20", 16*n.number), fmt.Sprintf("fd00:244:%d::/64", n.number)}
}

// podAddrs are the addresses of a host number in the node's pod networks.
func (n *Node) podAddrs(host byte) (v4, v6 netip.Addr) {
	return netip.AddrFrom4([4]byte{10, 244, byte(16 * n.number), host}), netip.MustParseAddr(fmt.Sprintf("fd00:244:%d::%x", n.number, host))
}

// newNode makes the namespace and joins it to the control plane's bridge.
func newNode(p *plane, number int) (*Node, error) {
	name := fmt.Sprintf("node%d", number)
	ns, err := netlab.NewNode(name)
	if err != nil {
		return nil, err
	}
	n := &Node{
		Node: ns, Name: name, number: number,
		IPv4: netip.AddrFrom4([4]byte{10, 99, 0, byte(10 + number)}), IPv6: netip.MustParseAddr(fmt.Sprintf("fd99::%d", 10+number)),
	}
	for _, s := range [][2]string{
		{"ipv4/conf/all/rp_filter", "0"},
		{"ipv4/conf/default/rp_filter", "0"},
		{"netfilter/nf_conntrack_timestamp", "1"},
		{"netfilter/nf_conntrack_tcp_timeout_syn_sent", "3"},
		{"netfilter/nf_conntrack_tcp_timeout_fin_wait", "3"},
		{"netfilter/nf_conntrack_tcp_timeout_last_ack", "3"},
	} {
		if err := n.Sysctl(s[0], s[1]); err != nil {
			return nil, errors.Join(err, n.Close())
		}
	}
	port := "port-" + name
	err = netlab.Link(p.ns, port, nil, n.Namespace, "eth0", []string{n.IPv4.String() + "/24", n.IPv6.String() + "/64"})
	return n, errors.Join(err, p.ns.IP("link", "set", port, "master", "br0"))
}

// route leads each node's pod networks to the node, also from the control plane.
func route(p *plane, nodes []*Node) error {
	for _, to := range nodes {
		cidrs := to.podCIDRs()
		routes := []string{"route replace " + cidrs[0] + " via " + to.IPv4.String(), "route replace " + cidrs[1] + " via " + to.IPv6.String()}
		if err := p.ns.Batch(routes...); err != nil {
			return err
		}
		for _, from := range nodes {
			if from == to {
				continue
			}
			if err := from.Batch(routes...); err != nil {
				return err
			}
		}
	}
	return nil
}

func (n *Node) labels() labels.Set {
	kind := KindNamespace
	if n.machine != nil {
		kind = KindMachine
	}
	return labels.Set{corev1.LabelHostname: n.Name, corev1.LabelTopologyZone: fmt.Sprintf("zone-%d", n.number), KindLabel: kind}
}

// create makes the node known. Its networks are given here: no controller does.
func (n *Node) create(ctx context.Context, p *plane) (*corev1.Node, error) {
	cidrs := n.podCIDRs()
	node, err := p.client.CoreV1().Nodes().Create(ctx, &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: n.Name, Labels: n.labels()},
		Spec:       corev1.NodeSpec{PodCIDR: cidrs[0], PodCIDRs: cidrs},
	}, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("create node %s: %w", n.Name, err)
	}
	return node, nil
}

// register makes the node known and ready, as its kubelet would.
func (n *Node) register(ctx context.Context, p *plane) error {
	made, err := n.create(ctx, p)
	if err != nil {
		return err
	}
	now := metav1.Now()
	made.Status.Addresses = []corev1.NodeAddress{
		{Type: corev1.NodeInternalIP, Address: n.IPv4.String()},
		{Type: corev1.NodeInternalIP, Address: n.IPv6.String()},
		{Type: corev1.NodeHostName, Address: n.Name},
	}
	made.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "NamespaceMade", LastHeartbeatTime: now, LastTransitionTime: now}}
	if _, err := p.client.CoreV1().Nodes().UpdateStatus(ctx, made, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("update status of node %s: %w", n.Name, err)
	}
	return nil
}

// proxyUser is the user to whom Kubernetes' own roles give kube-proxy's rights.
var proxyUser = pkix.Name{CommonName: "system:kube-proxy"}

// startProxy runs kube-proxy on the node.
func (n *Node) startProxy(p *plane, mode string) error {
	kubeconfig, err := p.authority.user("kube-proxy-"+n.Name, proxyUser)
	if err != nil {
		return err
	}
	args := []string{
		"--kubeconfig=" + kubeconfig, "--hostname-override=" + n.Name,
		"--proxy-mode=" + mode, "--cluster-cidr=" + podCIDRs, "--conntrack-max-per-core=0", "--conntrack-min=0",
		"--conntrack-tcp-timeout-established=0s", "--conntrack-tcp-timeout-close-wait=0s",
		"--healthz-bind-address=127.0.0.1:10256", "--metrics-bind-address=127.0.0.1:10249",
	}
	if mode == ProxyIPTables { // there is no such flag for nftables
		args = append(args, "--iptables-min-sync-period=200ms")
	}
	n.proxy, err = process.Start("kube-proxy-"+n.Name, p.dir, n.Command(context.Background(), p.binary("kube-proxy"), args...))
	return err
}

// programmed tells whether kube-proxy leads connections to all of these.
func (n *Node) programmed(ctx context.Context, mode string, backends []netip.AddrPort) (bool, error) {
	select {
	case <-n.proxy.Done():
		return false, fmt.Errorf("kube-proxy on %s ended:\n%s", n.Name, n.proxy.Tail())
	default:
	}
	dumps := [][]string{{"iptables-save", "-t", "nat"}, {"ip6tables-save", "-t", "nat"}}
	if mode == ProxyNFTables {
		dumps = [][]string{{"nft", "list", "table", "ip", "kube-proxy"}, {"nft", "list", "table", "ip6", "kube-proxy"}}
	}
	var rules strings.Builder
	for _, d := range dumps {
		out, err := n.Command(ctx, d[0], d[1:]...).Output()
		if err != nil {
			return false, fmt.Errorf("list the rules of kube-proxy on %s: %w", n.Name, err)
		}
		rules.Write(out)
	}
	words := strings.Fields(rules.String())
	for _, b := range backends {
		if !slices.Contains(words, b.String()) {
			return false, nil
		}
	}
	return true, nil
}

// Close stops kube-proxy and removes the node with its pods.
func (n *Node) Close() error {
	var errs []error
	if n.proxy != nil {
		errs = append(errs, n.proxy.Kill())
	}
	if n.machine != nil {
		errs = append(errs, n.machine.stop())
	}
	return errors.Join(append(errs, n.Node.Close())...)
}
