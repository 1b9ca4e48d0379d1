package cluster_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/test/cluster/enforce"
	"github.com/flowaudit/flowaudit/test/cluster/ledger"
	"github.com/flowaudit/flowaudit/test/netlab/traffic"
)

// TestOtherProtocols: ICMP, ICMPv6 and SCTP between nodes.
func TestOtherProtocols(t *testing.T) {
	namespace(t, "protocols")
	a, b := barePod(t, "protocols", "a", "node1"), barePod(t, "protocols", "b", "node2")
	must(t, a.NFT(traffic.NoSCTP))
	must(t, b.NFT(traffic.NoSCTP))
	end := func(name string, addr netip.Addr, node string) ledger.End {
		return ledger.End{Addr: addr, Pod: "protocols/" + name, Workload: "Pod/" + name, Node: node}
	}
	must(t, traffic.Ping(a, b.IPv4))
	must(t, traffic.Ping(a, b.IPv6))
	must(t, traffic.Associate(a, b, a.IPv4, b.IPv4, 9000))
	from4, to4 := end("a", a.IPv4, "node1"), end("b", b.IPv4, "node2")
	compare(t, "protocols", []ledger.Deed{
		{Verdict: flow.VerdictAllowed, Protocol: flow.ICMP, Source: from4, Destination: to4, Port: flow.ICMPPort(8, 0), Connections: 1, Bytes: 1},
		{Verdict: flow.VerdictAllowed, Protocol: flow.ICMPv6, Source: end("a", a.IPv6, "node1"), Destination: end("b", b.IPv6, "node2"), Port: flow.ICMPPort(128, 0), Connections: 1, Bytes: 1},
		{Verdict: flow.VerdictAllowed, Protocol: flow.SCTP, Source: from4, Destination: to4, Port: 9000, Connections: 1, Bytes: 1},
	})
}

// TestALogThatIsASample: where the rule's log is limited, as kube-router's is,
// no attempt is missed: the client's node knows of all.
func TestALogThatIsASample(t *testing.T) {
	limited := enforce.DefaultOptions()
	limited.Limit = "1/minute burst 2 packets"
	must(t, lab.enforcer.Configure(t.Context(), limited))
	t.Cleanup(func() {
		if err := lab.enforcer.Configure(lab.ctx, enforce.DefaultOptions()); err != nil {
			t.Error(err)
		}
	})
	s := openShop(t, "sample")
	const attempts = 20
	for range attempts {
		must(t, traffic.Knock(t.Context(), s.Web, "tcp", netip.AddrPortFrom(s.DB.IPv4, 3306).String()))
	}
	must(t, lab.product.Until(t.Context(), answerBy, "every attempt", func() error {
		flows, err := lab.product.Flows(t.Context(), "-n", "sample", "--verdict", everything)
		if err != nil {
			return err
		}
		of := make(map[flow.Verdict]uint64)
		for _, f := range flows {
			of[f.Verdict] += f.Connections
			if f.Source == nil || f.Source.Pod != s.Web.Key.Name || f.Destination == nil || f.Destination.Pod != s.DB.Key.Name {
				return fmt.Errorf("a flow from %v to %v", f.Source, f.Destination)
			}
		}
		if of[flow.VerdictDenied] == 0 || of[flow.VerdictDenied]+of[flow.VerdictUnanswered] != attempts {
			return fmt.Errorf("%d denied, %d unanswered, want %d together", of[flow.VerdictDenied], of[flow.VerdictUnanswered], attempts)
		}
		return nil
	}))
}
