package agent

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/flowaudit/flowaudit/agent/route"
	"github.com/flowaudit/flowaudit/agent/tap"
	"github.com/flowaudit/flowaudit/flow"
)

// inquest is a scene whose refusals are looked into.
type inquest struct {
	*scene
	asked   []route.Packet
	traced  []tap.Traced
	refuses flow.Reason // what the routing says
	stands  flow.Reason // what every rule stands for
	busy    bool
}

func newInquest() *inquest {
	x := &inquest{}
	x.scene = newScene(func(o *tableOptions) {
		o.Tap = true
		o.Causes = causes{
			Route: func(p route.Packet) flow.Reason { x.asked = append(x.asked, p); return x.refuses },
			Trace: func(p []tap.Traced) bool {
				if x.busy {
					return false
				}
				x.traced = append(x.traced, p...)
				return true
			},
		}
		o.Rule = func(flow.PolicyRef) flow.Reason { return x.stands }
	})
	return x
}

// dropped tells that a rule dropped a packet from web to a port of db.
func (x *inquest) dropped(sec float64, port uint16) {
	x.observe(&flow.Observation{
		Time: at(sec), Source: flow.SourceTap, Event: flow.EventDropped, Protocol: flow.TCP, Original: flow.Tuple{Src: web, Dst: db, SrcPort: 40000, DstPort: port},
		Told: &flow.Told{Policies: []flow.PolicyRef{{Kind: flow.KindNetfilter, Namespace: "ip filter", Name: "FORWARD", Rule: "handle 7"}}},
	})
}

// came is the record of a packet that came in by an interface.
func came(o *flow.Observation) { o.InDev, o.Mark = 3, 9 }

// reasons are those of the flows of the window that ends.
func (x *inquest) reasons(sec float64) (all []flow.Reason) {
	for _, f := range x.closeWindow(clock(sec)) {
		all = append(all, f.Reason)
	}
	return all
}

func TestCauses(t *testing.T) {
	t.Run("routing is asked about what came in", func(t *testing.T) {
		x := newInquest()
		x.refuses = flow.ReasonNoRoute
		x.track(web, out, 40000, 80).tap(0, came)
		x.wait(1.4, flow.EventAbsent)
		if got := x.reasons(2); !cmp.Equal(got, []flow.Reason{flow.ReasonNoRoute}) {
			t.Errorf("reasons %v", got)
		}
		want := []route.Packet{{Src: web, Dst: out, InDev: 3, Mark: 9}}
		if diff := cmp.Diff(want, x.asked, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("not about packets of this node", func(t *testing.T) {
		x := newInquest()
		x.refuses = flow.ReasonNoRoute
		x.track(web, out, 40000, 80).tap(0, nil)
		x.wait(1.4, flow.EventAbsent)
		if got := x.reasons(2); len(x.asked) > 0 || !cmp.Equal(got, []flow.Reason{flow.ReasonNeverConfirmed}) {
			t.Errorf("asked %v, reasons %v", x.asked, got)
		}
	})
	t.Run("not about what conntrack confirmed, nor where events were lost", func(t *testing.T) {
		x := newInquest()
		x.refuses = flow.ReasonNoRoute
		x.track(web, out, 40000, 80).tap(0, came)
		x.wait(1.4, flow.EventFound)
		x.track(web, out, 40001, 80).tap(1, came)
		x.observe(&flow.Observation{Event: flow.EventLost, Time: at(1.5)})
		x.wait(2.4, flow.EventAbsent)
		if got := x.reasons(3); len(x.asked) > 0 || !cmp.Equal(got, []flow.Reason{flow.ReasonLost}) {
			t.Errorf("asked %v, reasons %v", x.asked, got)
		}
	})
	t.Run("a traced retry names the rule before it is decided", func(t *testing.T) {
		x := newInquest()
		x.stands = flow.ReasonFirewall
		x.track(web, db, 40000, 80).tap(0, came)
		x.wait(0.3, flow.EventAbsent)
		if want := (tap.Traced{Protocol: flow.TCP, Src: web, Dst: db, Port: 80}); len(x.traced) != 1 || x.traced[0] != want {
			t.Fatalf("traced %v", x.traced)
		}
		x.dropped(1.01, 80)
		if asked := x.wait(1.1, flow.EventAbsent); len(asked) > 0 {
			t.Error("decided before a retry could be told")
		}
		x.wait(1.4, flow.EventAbsent)
		flows := x.closeWindow(clock(2))
		if len(flows) != 1 || flows[0].Reason != flow.ReasonFirewall || len(flows[0].Policies) != 1 || flows[0].Policies[0].Name != "FORWARD" {
			t.Errorf("flows %+v", flows)
		}
	})
	t.Run("or after", func(t *testing.T) {
		x := newInquest()
		x.stands = flow.ReasonFirewall
		x.track(web, db, 40000, 80).tap(0, came)
		x.wait(0.3, flow.EventAbsent)
		x.wait(1.4, flow.EventAbsent)
		x.dropped(3, 80)
		if got := x.reasons(4); !cmp.Equal(got, []flow.Reason{flow.ReasonFirewall}) {
			t.Errorf("reasons %v", got)
		}
	})
	t.Run("a plugin's rule is no other cause, and names no policy", func(t *testing.T) {
		x := newInquest()
		x.track(web, db, 40000, 80).tap(0, came)
		x.wait(0.3, flow.EventAbsent)
		x.dropped(1.01, 80)
		x.wait(1.4, flow.EventAbsent)
		flows := x.closeWindow(clock(2))
		if len(flows) != 1 || flows[0].Reason != flow.ReasonNeverConfirmed || len(flows[0].Policies) > 0 || len(x.asked) > 0 {
			t.Errorf("flows %+v, asked %v", flows, x.asked)
		}
	})
	t.Run("what was found is not taken for later attempts' cause", func(t *testing.T) {
		x := newInquest()
		x.stands = flow.ReasonFirewall
		x.dropped(0, 80)
		x.track(web, db, 40000, 80).tap(70, came)
		x.wait(71.4, flow.EventAbsent)
		if got := x.reasons(72); !cmp.Equal(got, []flow.Reason{flow.ReasonNeverConfirmed}) {
			t.Errorf("reasons %v", got)
		}
	})
	t.Run("a key is traced once a minute, and few at once", func(t *testing.T) {
		x := newInquest()
		for port := range uint16(10) {
			x.track(web, db, 40000, 80+port).tap(0, came)
		}
		x.look(at(0.3))
		if len(x.traced) != maxTraces {
			t.Errorf("%d traced at once", len(x.traced))
		}
		for range 5 {
			x.look(at(0.4))
		}
		if len(x.traced) != 10 {
			t.Errorf("%d traced, want each of 10 once", len(x.traced))
		}
	})
	t.Run("behind a Service it is traced as it came", func(t *testing.T) {
		x := newInquest()
		x.track(web, vip, 40000, 80).tap(0, came).tap(0.001, afterNAT)
		x.look(at(0.3))
		if want := (tap.Traced{Protocol: flow.TCP, Src: web, Dst: vip, Port: 80}); len(x.traced) != 1 || x.traced[0] != want {
			t.Errorf("traced %v", x.traced)
		}
	})
	t.Run("what could not be traced is tried again", func(t *testing.T) {
		x := newInquest()
		x.busy = true
		x.track(web, db, 40000, 80).tap(0, came)
		x.look(at(0.3))
		x.busy = false
		x.look(at(0.4))
		if len(x.traced) != 1 {
			t.Errorf("traced %v", x.traced)
		}
	})
}

func TestRuleReason(t *testing.T) {
	kubeRouter, weave, none := []string{"filter", "KUBE-ROUTER-FORWARD"}, []string{"filter", "WEAVE-NPC", "FORWARD"}, []string{"filter", "cni"}
	for _, c := range []struct {
		name         string
		table, chain string
		chains       []string
		want         flow.Reason
	}{
		{"kube-router's", "ip filter", "KUBE-POD-FW-ABC", kubeRouter, flow.ReasonNone},
		{"Calico's", "ip filter", "cali-tw-x", []string{"cali-FORWARD"}, flow.ReasonNone},
		{"kube-network-policies'", "inet kube-network-policies", "postrouting", []string{"kube-network-policies"}, flow.ReasonNone},
		{"the host's beside kube-router's", "ip filter", "FORWARD", kubeRouter, flow.ReasonFirewall},
		{"an administrator's beside kube-router's", "inet office", "in", kubeRouter, flow.ReasonFirewall},
		{"in the chain where Weave's last rule is", "ip filter", "FORWARD", weave, flow.ReasonNone},
		{"the host's beside Weave's", "ip filter", "INPUT", weave, flow.ReasonFirewall},
		{"of nobody that is known", "inet cni", "pods", none, flow.ReasonNone},
		{"firewalld's", "inet firewalld", "filter_FORWARD", none, flow.ReasonFirewall},
		{"ufw's", "ip filter", "ufw-user-forward", none, flow.ReasonFirewall},
		{"Docker's", "ip filter", "DOCKER-ISOLATION-STAGE-2", none, flow.ReasonFirewall},
		{"kubelet's", "ip filter", "KUBE-FIREWALL", none, flow.ReasonFirewall},
		{"kube-proxy's, of a Service without endpoints", "ip filter", "KUBE-SERVICES", none, flow.ReasonNoEndpoint},
		{"the same by nftables", "ip kube-proxy", "reject-chain", none, flow.ReasonNoEndpoint},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := ruleReason(flow.PolicyRef{Namespace: c.table, Name: c.chain}, c.chains); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

func TestIPVSWithoutConnectionTracking(t *testing.T) {
	root := t.TempDir()
	put := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, path), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const services = "\n\n\nTCP  0A60000A:0050 rr\n  -> 0A000002:1F90      Masq    1      0          0\n"
	put("proc/thread-self/net/ip_vs", services)
	put("proc/sys/net/ipv4/vs/conntrack", "0\n")
	a := &agent{Options: Options{Log: slog.New(slog.DiscardHandler)}, inbox: newInbox(), queue: newQueue("c", "n1", 7, 1000), sources: newSources(nil, func(flow.Gap) {}, nil)}
	a.readIPVS(root)
	if limits := a.status().Limits; !cmp.Equal(limits, []string{limitIPVS}) {
		t.Errorf("limits %q", limits)
	}
	x := newScene(func(o *tableOptions) { o.Tap, o.IPVS = true, a.ipvs.Load })
	x.track(web, vip, 40000, 80).tap(0, nil)   // to the Service
	x.track(db, web, 8080, 40000).tap(0, nil)  // a server's reply
	x.track(web, vip, 40000, 81).tap(0.1, nil) // IPVS does not serve that port
	x.wait(1.2, flow.EventAbsent)
	got := make(map[uint16]string)
	for _, f := range x.closeWindow(clock(2)) {
		got[f.Port] = f.Verdict.String() + " " + f.Reason.String()
	}
	if diff := cmp.Diff(map[uint16]string{80: "unknown untracked", 81: "denied never-confirmed"}, got); diff != "" {
		t.Error(diff)
	}
	for name, set := range map[string][2]string{"tracked": {"1\n", services}, "without services": {"0\n", ""}} {
		put("proc/sys/net/ipv4/vs/conntrack", set[0])
		put("proc/thread-self/net/ip_vs", set[1])
		if a.readIPVS(root); a.ipvs.Load() != nil || len(a.status().Limits) > 0 {
			t.Errorf("%s: it is taken for untracked", name)
		}
	}
}
