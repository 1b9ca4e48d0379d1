package agent

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// Pod is the identity of the pod that a pod-scoped agent runs in, as the
// downward API gives it.
type Pod struct {
	Namespace, Name, UID, Node string
	Workload                   flow.Workload
	Addrs                      []netip.Addr
	Labels                     map[string]string
}

// PodFromEnvironment reads POD_NAMESPACE, POD_NAME, POD_UID, POD_IPS (or
// POD_IP) and NODE_NAME, and the pod's labels from a file in the form of a
// downward API volume, if one is named.
func PodFromEnvironment(getenv func(string) string, labelsFile string) (Pod, error) {
	p := Pod{Namespace: getenv("POD_NAMESPACE"), Name: getenv("POD_NAME"), UID: getenv("POD_UID"), Node: getenv("NODE_NAME")}
	ips := getenv("POD_IPS")
	if ips == "" {
		ips = getenv("POD_IP")
	}
	for _, s := range strings.Split(ips, ",") {
		if s = strings.TrimSpace(s); s == "" {
			continue
		}
		a, err := netip.ParseAddr(s)
		if err != nil {
			return p, fmt.Errorf("read POD_IPS: %w", err)
		}
		p.Addrs = append(p.Addrs, a.Unmap())
	}
	if labelsFile == "" {
		return p, nil
	}
	f, err := os.Open(labelsFile)
	if err != nil {
		return p, fmt.Errorf("read pod labels: %w", err)
	}
	defer f.Close()
	if p.Labels, err = parseLabels(f); err != nil {
		return p, fmt.Errorf("read pod labels from %s: %w", labelsFile, err)
	}
	return p, nil
}

// parseLabels reads lines of the form key="value", the value quoted as in Go.
func parseLabels(r io.Reader) (map[string]string, error) {
	labels := make(map[string]string)
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" {
			continue
		}
		key, quoted, ok := strings.Cut(line, "=")
		value, err := strconv.Unquote(quoted)
		if !ok || err != nil {
			return nil, fmt.Errorf("line %d: want key=\"value\", got %q", n, line)
		}
		labels[key] = value
	}
	return labels, lines.Err()
}

// podNames names the pod's own addresses and nothing else.
type podNames struct {
	addrs    []netip.Addr
	endpoint *flow.Endpoint
}

// newPodNames takes the addresses of the network namespace where the downward
// API gave none.
func newPodNames(p Pod) (*podNames, error) {
	if len(p.Addrs) == 0 {
		addrs, err := net.InterfaceAddrs()
		if err != nil {
			return nil, fmt.Errorf("read the pod's addresses: %w", err)
		}
		for _, a := range addrs {
			if prefix, err := netip.ParsePrefix(a.String()); err == nil && prefix.Addr().IsGlobalUnicast() {
				p.Addrs = append(p.Addrs, prefix.Addr().Unmap())
			}
		}
	}
	return &podNames{p.Addrs, &flow.Endpoint{
		Kind: flow.EndpointPod, Namespace: p.Namespace, Pod: p.Name, Workload: p.Workload, Node: p.Node, Labels: p.Labels,
	}}, nil
}

// Endpoint names addr at any time: a pod's own namespace is never another's.
func (n *podNames) Endpoint(addr netip.Addr, _ time.Time) *flow.Endpoint {
	if slices.Contains(n.addrs, addr) {
		return n.endpoint
	}
	return nil
}

// Holder implements namer.
func (n *podNames) Holder(addr netip.Addr, from, _ time.Time) (*flow.Endpoint, time.Duration) {
	return n.Endpoint(addr, from), 0
}

// Version implements namer: the answers never change.
func (n *podNames) Version() uint64 { return 0 }

// podLimits says what cannot be seen from inside a pod.
func podLimits() []string {
	return []string{
		"pod scope: what the node refuses of this pod's outbound traffic shows as unanswered, and of its inbound traffic not at all",
	}
}
