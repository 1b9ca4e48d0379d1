package agent

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// Policies that a plugin names in these tests.
var (
	dbPolicy  = flow.PolicyRef{Kind: "NetworkPolicy", Namespace: "shop", Name: "db", Side: "ingress"}
	webPolicy = flow.PolicyRef{Kind: "NetworkPolicy", Namespace: "shop", Name: "web", Side: "egress"}
)

// tell has a plugin say something of a TCP packet to port 3306.
func (s *scene) tell(sec float64, src, dst netip.Addr, srcPort uint16, v flow.Verdict, change func(*flow.Observation)) {
	o := flow.Observation{
		Time: at(sec), Source: flow.SourceHubble, Event: flow.EventPacket, Verdict: v, Protocol: flow.TCP, Told: &flow.Told{},
		Original: flow.Tuple{Src: src, Dst: dst, SrcPort: srcPort, DstPort: 3306},
	}
	if change != nil {
		change(&o)
	}
	s.observe(&o)
}

func told(x flow.Told) func(*flow.Observation) { return func(o *flow.Observation) { o.Told = &x } }

func ingress(o *flow.Observation) { o.Told = &flow.Told{Direction: flow.DirectionIngress} }
func egress(o *flow.Observation)  { o.Told = &flow.Told{Direction: flow.DirectionEgress} }

func TestADenialThatAPluginTells(t *testing.T) {
	named := &flow.Endpoint{Kind: flow.EndpointPod, Namespace: "x", Pod: "by-plugin"}
	s := newScene(nil)
	s.tell(0, web, out, 4000, flow.VerdictDenied, told(flow.Told{
		Direction: flow.DirectionEgress, Policies: []flow.PolicyRef{webPolicy}, Source: named, Destination: named,
	}))
	s.tell(1, web, out, 4000, flow.VerdictDenied, told(flow.Told{Policies: []flow.PolicyRef{webPolicy, dbPolicy}, Packets: 5}))
	flows := newNaming(s.window).take(s.earlyFlows(), clock(1), time.Time{})
	wantRows(t, flows, row{web, out, 3306, flow.VerdictDenied, flow.ReasonLogged, 1, 0})
	f := flows[0]
	if !slices.Equal(f.Policies, []flow.PolicyRef{webPolicy, dbPolicy}) {
		t.Errorf("policies %v, want both, each once", f.Policies)
	}
	if f.Source.Pod != "web" || f.Destination != named {
		t.Errorf("ends %v and %v, want our own name where there is one, else the plugin's", f.Source, f.Destination)
	}
	if f.Sent.Packets != 6 || f.Counted {
		t.Errorf("%d packets, bytes counted: %t; want 6, and no bytes: the plugin told none", f.Sent.Packets, f.Counted)
	}
	if f.Sources != flow.SourceHubble {
		t.Errorf("sources %s", f.Sources)
	}
}

func TestADenialBetweenLocalPodsHasTheRefusingSide(t *testing.T) {
	s := newScene(nil)
	s.tell(0, web, db, 4000, flow.VerdictDenied, ingress)
	flows := newNaming(s.window).take(s.earlyFlows(), clock(1), time.Time{})
	if len(flows) != 1 || flows[0].Direction != flow.DirectionIngress {
		t.Errorf("flows %+v, want one that is ingress", flows)
	}
}

func TestTwoSourcesOfOneDenialCountOnce(t *testing.T) {
	s := newScene(nil)
	s.refuse(0, web, db, 4000, 3306)
	s.tell(0.1, web, db, 4000, flow.VerdictDenied, ingress)
	s.refuse(1, web, db, 4000, 3306)
	s.tell(1.1, web, db, 4000, flow.VerdictDenied, ingress)
	flows := s.closeWindow(clock(10))
	wantRows(t, flows, row{web, db, 3306, flow.VerdictDenied, flow.ReasonLogged, 1, 120})
	if want := flow.SourceNFLOG | flow.SourceHubble; flows[0].Sources != want || flows[0].Sent.Packets != 2 {
		t.Errorf("sources %s, %d packets; want %s and 2", flows[0].Sources, flows[0].Sent.Packets, want)
	}
}

func TestAllowancesThatAPluginTells(t *testing.T) {
	allowedRow := row{far, db, 3306, flow.VerdictAllowed, flow.ReasonReply, 1, 0}
	for _, c := range []struct {
		name      string
		conntrack bool
		play      func(*scene)
		first     []row // of the first window
		second    []row
	}{
		{
			"what conntrack counts is counted once", true,
			func(s *scene) {
				s.tell(1, far, db, 4000, flow.VerdictAllowed, ingress)
				s.track(far, db, 4000, 3306).say(1, flow.EventNew, replied)
			},
			[]row{allowedRow},
			nil,
		},
		{
			"what conntrack does not see is counted a window later", true,
			func(s *scene) { s.tell(1, far, db, 4000, flow.VerdictAllowed, ingress) },
			nil,
			[]row{{far, db, 3306, flow.VerdictAllowed, flow.ReasonLogged, 1, 0}},
		},
		{
			"what was let in and has no reply is allowed, once", true,
			func(s *scene) {
				s.track(far, db, 4000, 3306).say(5, flow.EventNew, nil)
				s.tell(5, far, db, 4000, flow.VerdictAllowed, ingress)
			},
			nil,
			[]row{{far, db, 3306, flow.VerdictAllowed, flow.ReasonLogged, 1, 0}},
		},
		{
			"what was let out and has no reply is unanswered, once", true,
			func(s *scene) {
				s.tell(5, web, far, 4000, flow.VerdictAllowed, egress)
				s.track(web, far, 4000, 3306).say(5, flow.EventNew, nil)
			},
			nil,
			[]row{{web, far, 3306, flow.VerdictUnanswered, flow.ReasonNoReply, 1, 0}},
		},
		{
			"without conntrack it is counted at once", false,
			func(s *scene) {
				s.tell(1, far, db, 4000, flow.VerdictAllowed, ingress)
				s.tell(2, far, db, 4001, flow.VerdictAllowed, ingress)
			},
			[]row{{far, db, 3306, flow.VerdictAllowed, flow.ReasonLogged, 2, 0}},
			nil,
		},
		{
			"that an egress policy let it out is half an answer", false,
			func(s *scene) { s.tell(1, web, far, 4000, flow.VerdictAllowed, egress) },
			[]row{{web, far, 3306, flow.VerdictUnknown, flow.ReasonLogged, 1, 0}},
			nil,
		},
		{
			"a reply is the other half", false,
			func(s *scene) {
				s.tell(1, web, far, 4000, flow.VerdictAllowed, egress)
				s.tell(1, web, far, 4000, flow.VerdictAllowed, func(o *flow.Observation) { egress(o); replied(o) })
			},
			[]row{{web, far, 3306, flow.VerdictAllowed, flow.ReasonReply, 1, 0}},
			nil,
		},
		{
			"a plugin that tells no side is believed of a local destination", false,
			func(s *scene) { s.tell(1, far, db, 4000, flow.VerdictAllowed, nil) },
			[]row{{far, db, 3306, flow.VerdictAllowed, flow.ReasonLogged, 1, 0}},
			nil,
		},
		{
			"and not of another's", false,
			func(s *scene) { s.tell(1, web, far, 4000, flow.VerdictAllowed, nil) },
			[]row{{web, far, 3306, flow.VerdictUnknown, flow.ReasonLogged, 1, 0}},
			nil,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newScene(func(o *tableOptions) { o.Conntrack = c.conntrack })
			c.play(s)
			wantRows(t, s.closeWindow(clock(10)), c.first...)
			wantRows(t, s.closeWindow(clock(20)), c.second...)
			wantRows(t, s.closeWindow(clock(30)))
		})
	}
}

func TestALogThatComesAfterTheWindowCountsNothingAgain(t *testing.T) {
	s := newScene(nil)
	s.tell(1, far, db, 1, flow.VerdictAllowed, ingress) // plugins are heard of
	s.track(far, db, 1, 3306).say(1, flow.EventNew, replied)
	s.closeWindow(clock(10))
	s.track(far, web, 4000, 3306).say(19, flow.EventNew, replied)
	s.closeWindow(clock(20))
	s.tell(19.5, far, web, 4000, flow.VerdictAllowed, ingress)
	wantRows(t, s.closeWindow(clock(30)))
	wantRows(t, s.closeWindow(clock(40)))
}

func TestAllowancesDoNotWaitForAnAgentThatStops(t *testing.T) {
	s := newScene(nil)
	s.tell(9, far, db, 4000, flow.VerdictAllowed, ingress)
	wantRows(t, s.closeWindow(clock(10)))
	s.settle(at(10), true)
	wantRows(t, s.window.close(), row{far, db, 3306, flow.VerdictAllowed, flow.ReasonLogged, 1, 0})
}

func TestAPairThatIsToldWithoutEndIsCountedInTime(t *testing.T) {
	s := newScene(nil)
	var connections uint64
	for sec := 1; sec <= 60; sec++ {
		s.tell(float64(sec), far, db, uint16(sec), flow.VerdictAllowed, ingress)
		if sec%10 == 0 {
			for _, r := range rows(s.closeWindow(clock(float64(sec)))) {
				connections += r.connections
			}
		}
	}
	if connections < 30 {
		t.Errorf("%d of 60 connections were told after a minute", connections)
	}
}

func TestThePolicyThatPermitsJoinsWhatConntrackCounts(t *testing.T) {
	s := newScene(nil)
	s.track(far, db, 4000, 3306).say(1, flow.EventNew, replied)
	s.tell(2, far, db, 4000, flow.VerdictAllowed, told(flow.Told{Direction: flow.DirectionIngress, Policies: []flow.PolicyRef{dbPolicy}}))
	f := s.closeWindow(clock(10))[0]
	if !slices.Equal(f.Policies, []flow.PolicyRef{dbPolicy}) || f.Sources != flow.SourceConntrack|flow.SourceHubble {
		t.Errorf("policies %v, sources %s", f.Policies, f.Sources)
	}
}

func TestHintsJoinTheRecordThatDecides(t *testing.T) {
	hint := func(name string) func(*flow.Observation) {
		return func(o *flow.Observation) {
			o.Source, o.Told = flow.SourceNFLOG, &flow.Told{Policies: []flow.PolicyRef{{Kind: "NetworkPolicy", Namespace: "shop", Name: name}}}
		}
	}
	s := newScene(nil)
	s.tell(0, web, db, 4000, flow.VerdictUnknown, hint("a"))
	s.tell(0, web, db, 4000, flow.VerdictUnknown, hint("b"))
	s.tell(0, web, db, 5000, flow.VerdictUnknown, hint("c")) // allowed by a later policy
	s.refuse(0, web, db, 4000, 3306)
	s.refuse(0, web, db, 4001, 3306) // its hints were over the limit
	flows := s.closeWindow(clock(10))
	wantRows(t, flows, row{web, db, 3306, flow.VerdictDenied, flow.ReasonLogged, 2, 120})
	if p := flows[0].Policies; len(p) != 2 || p[0].Name != "a" || p[1].Name != "b" {
		t.Errorf("policies %v, want a and b", p)
	}
}

func TestHintsThatNothingFollowsStayBounded(t *testing.T) {
	s := newScene(nil)
	for port := range uint16(3 * maxHints / 2) {
		s.tell(0, web, db, port, flow.VerdictUnknown, told(flow.Told{Policies: []flow.PolicyRef{dbPolicy}}))
	}
	if len(s.hints) > maxHints {
		t.Errorf("%d hints wait", len(s.hints))
	}
}

func TestARefusalThatWaitedKeepsItsPolicies(t *testing.T) {
	for _, source := range []flow.Source{flow.SourceNFLOG, flow.SourceKernelLog} {
		s := both()
		conn := s.track(web, db, 4000, 3306).tap(0, nil)
		conn.log(0, source, flow.EventPacket, flow.VerdictDenied, told(flow.Told{Direction: flow.DirectionIngress, Policies: []flow.PolicyRef{dbPolicy}}))
		conn.log(0.1, flow.SourceNFLOG, flow.EventPacket, flow.VerdictUnknown, told(flow.Told{Policies: []flow.PolicyRef{webPolicy}}))
		s.wait(1, flow.EventAbsent)
		flows := s.earlyFlows()
		wantRows(t, flows, row{web, db, 3306, flow.VerdictDenied, flow.ReasonLogged, 1, 60})
		f := flows[0]
		if !slices.Equal(f.Policies, []flow.PolicyRef{dbPolicy, webPolicy}) || f.Sources != flow.SourceTap|source || f.Direction != flow.DirectionIngress {
			t.Errorf("policies %v, sources %s, direction %s", f.Policies, f.Sources, f.Direction)
		}
		if len(s.hints) != 0 {
			t.Errorf("%d hints are left", len(s.hints))
		}
	}
}

// TestConntrackContradictsNetfilterOnly: eBPF and Open vSwitch refuse behind it.
func TestConntrackContradictsNetfilterOnly(t *testing.T) {
	for source, contradicted := range map[flow.Source]uint64{flow.SourceNFLOG: 1, flow.SourceKernelLog: 1, flow.SourceLog: 0, flow.SourceHubble: 0} {
		s := both()
		conn := s.track(far, db, 4000, 3306)
		conn.log(0, source, flow.EventPacket, flow.VerdictDenied, nil)
		conn.say(0.01, flow.EventNew, nil)
		s.wait(1, flow.EventAbsent)
		if s.stats.contradicted != contradicted {
			t.Errorf("%s: contradicted %d times, want %d", source, s.stats.contradicted, contradicted)
		}
	}
}

func TestTheTapAndALogCountPacketsOnce(t *testing.T) {
	s := both()
	conn := s.track(web, db, 4000, 3306).tap(0, nil)
	conn.log(0.3, flow.SourceLog, flow.EventPacket, flow.VerdictDenied, nil)
	s.wait(1.5, flow.EventAbsent)
	flows := s.closeWindow(clock(10))
	if len(flows) != 1 || flows[0].Connections != 1 || flows[0].Sent.Packets != 1 || flows[0].Sources != flow.SourceTap|flow.SourceLog {
		t.Errorf("flows %+v, want one of one packet, by both", flows)
	}
}
