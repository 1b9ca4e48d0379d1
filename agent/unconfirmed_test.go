package agent

import (
	"net/netip"
	"testing"

	"github.com/flowaudit/flowaudit/agent/conntrack"
	"github.com/flowaudit/flowaudit/flow"
)

func tapped() *scene { return newScene(func(o *tableOptions) { o.Tap = true }) }

func both() *scene {
	return newScene(func(o *tableOptions) { o.Tap, o.Witness = true, true })
}

func logged() *scene { return newScene(func(o *tableOptions) { o.Witness = true }) }

// tap logs a packet of a connection as the tap does, before conntrack has confirmed it.
func (t *track) tap(sec float64, change func(*flow.Observation)) *track {
	return t.log(sec, flow.SourceTap, flow.EventAttempt, flow.VerdictUnknown, change)
}

// refuse logs a packet of a connection as a plugin's rule does.
func (t *track) refuse(sec float64) *track {
	return t.log(sec, flow.SourceNFLOG, flow.EventPacket, flow.VerdictDenied, nil)
}

func (t *track) log(sec float64, s flow.Source, e flow.Event, v flow.Verdict, change func(*flow.Observation)) *track {
	o := t.obs
	o.Time, o.Source, o.Event, o.Verdict, o.Size, o.TCPFlags = at(sec), s, e, v, 60, flow.TCPSyn
	o.Status, o.ID, o.Reply = 0, 0, flow.Tuple{}
	if change != nil {
		change(&o)
	}
	t.s.observe(&o)
	return t
}

// wait looks at a moment, and answers what is asked.
func (s *scene) wait(sec float64, answer flow.Event) (asked []conntrack.Question) {
	asked = s.look(at(sec))
	for _, q := range asked {
		s.observe(&flow.Observation{Source: flow.SourceConntrack, Event: answer, ID: q.ID, Time: at(sec)})
	}
	return asked
}

// afterNAT makes the record of a packet that was translated to db.
func afterNAT(o *flow.Observation) {
	o.Status = flow.StatusDstNAT
	o.Original.Dst, o.Original.DstPort = db, 8080
}

// toBackend makes an event of a connection that was.
func toBackend(o *flow.Observation) {
	replied(o)
	o.Reply = flow.Tuple{Src: db, Dst: o.Original.Src, SrcPort: 8080, DstPort: o.Original.SrcPort}
}

func TestAttempts(t *testing.T) {
	t.Run("what conntrack never confirms was refused", func(t *testing.T) {
		s := tapped()
		s.track(web, db, 4000, 3306).tap(0, nil)
		s.wait(0.9, flow.EventAbsent)
		wantRows(t, s.closeWindow(clock(1)))
		if asked := s.wait(1.1, flow.EventAbsent); len(asked) != 1 {
			t.Fatalf("asked %+v, want one question", asked)
		}
		early := s.earlyFlows()
		wantRows(t, early, row{web, db, 3306, flow.VerdictDenied, flow.ReasonNeverConfirmed, 1, 60})
		if f := early[0]; f.Sources != flow.SourceTap || f.TCPFlags != flow.TCPSyn || f.SourcePort != 4000 || f.Direction != flow.DirectionEgress {
			t.Errorf("%+v", f)
		}
	})
	t.Run("what it confirms was not", func(t *testing.T) {
		s := tapped()
		s.track(web, far, 4000, 80).tap(0, nil).say(0, flow.EventNew, replied)
		if asked := s.wait(2, flow.EventAbsent); len(asked) > 0 {
			t.Errorf("asked %+v", asked)
		}
		wantRows(t, s.closeWindow(clock(10)), row{web, far, 80, flow.VerdictAllowed, flow.ReasonReply, 1, 0})
	})
	t.Run("nor what it knows when it is asked", func(t *testing.T) {
		s := tapped()
		s.track(web, far, 4000, 80).tap(0, nil)
		s.wait(2, flow.EventFound)
		s.wait(20, flow.EventAbsent)
		wantRows(t, s.closeWindow(clock(30)))
	})
	t.Run("nor a connection whose attempt is read after its beginning", func(t *testing.T) {
		s := tapped()
		s.track(web, far, 4000, 80).say(0, flow.EventNew, replied).tap(0, nil)
		if asked := s.wait(2, flow.EventAbsent); len(asked) > 0 {
			t.Errorf("asked %+v", asked)
		}
	})
	t.Run("nor one whose attempt is read after its end", func(t *testing.T) {
		s := tapped()
		s.track(web, far, 4000, 80).say(0, flow.EventNew, nil).say(0.1, flow.EventDestroy, reset).tap(0, nil)
		if asked := s.wait(2, flow.EventAbsent); len(asked) > 0 {
			t.Errorf("asked %+v", asked)
		}
	})
	t.Run("nor one of which only the end was told", func(t *testing.T) {
		s := tapped()
		s.track(web, far, 4000, 80).say(0.1, flow.EventDestroy, counted(1, 60)).tap(0, nil)
		if asked := s.wait(2, flow.EventAbsent); len(asked) > 0 {
			t.Errorf("asked %+v", asked)
		}
	})
	t.Run("a refused attempt from the port of a connection that ended is refused", func(t *testing.T) {
		s := tapped()
		s.track(web, far, 4000, 80).say(0, flow.EventNew, nil).say(0.1, flow.EventDestroy, reset).tap(0, nil)
		s.track(web, far, 4000, 80).tap(0.2, nil)
		s.wait(2, flow.EventAbsent)
		wantRows(t, s.closeWindow(clock(10)),
			row{web, far, 80, flow.VerdictUnanswered, flow.ReasonReset, 1, 0}, row{web, far, 80, flow.VerdictDenied, flow.ReasonNeverConfirmed, 1, 60})
	})
	t.Run("retries merge, before the verdict and after", func(t *testing.T) {
		s := tapped()
		c := s.track(web, db, 4000, 3306).tap(0, nil).tap(1, nil)
		s.wait(1.1, flow.EventAbsent)
		c.tap(3, nil)
		s.wait(4.1, flow.EventAbsent)
		wantRows(t, s.closeWindow(clock(10)), row{web, db, 3306, flow.VerdictDenied, flow.ReasonNeverConfirmed, 1, 180})
	})
	t.Run("a port used again at once is another attempt", func(t *testing.T) {
		syn := func(sequence uint32) func(*flow.Observation) {
			return func(o *flow.Observation) { o.Sequence = sequence }
		}
		s := both()
		c := s.track(web, db, 4000, 3306).tap(0, syn(7)).tap(0.1, syn(9))
		c.log(0, flow.SourceNFLOG, flow.EventPacket, flow.VerdictDenied, syn(7))
		c.log(0.1, flow.SourceNFLOG, flow.EventPacket, flow.VerdictDenied, syn(9))
		s.wait(1.2, flow.EventAbsent)
		c.tap(1.3, syn(9))
		s.wait(2.4, flow.EventAbsent)
		wantRows(t, s.closeWindow(clock(10)), row{web, db, 3306, flow.VerdictDenied, flow.ReasonLogged, 2, 180})
	})
	t.Run("a Service's backend is known from the record after NAT, and the packet counts once", func(t *testing.T) {
		s := tapped()
		s.track(web, vip, 4000, 80).tap(0, nil).tap(0, afterNAT)
		s.wait(1.1, flow.EventAbsent)
		flows := s.closeWindow(clock(10))
		wantRows(t, flows, row{web, db, 8080, flow.VerdictDenied, flow.ReasonNeverConfirmed, 1, 60})
		if f := flows[0]; f.Service == nil || f.Service.Addr != vip || f.Service.Port != 80 {
			t.Errorf("service %+v, want %s:80", f.Service, vip)
		}
	})
	t.Run("a record after NAT alone is enough", func(t *testing.T) {
		s := tapped()
		c := s.track(web, vip, 4000, 80).tap(0, afterNAT)
		c.tap(0.5, afterNAT)
		if asked := s.wait(1.1, flow.EventAbsent); len(asked) != 1 || asked[0].Original.Src != db {
			t.Errorf("asked %+v, want the reply's tuple", asked)
		}
		wantRows(t, s.closeWindow(clock(10)), row{web, db, 8080, flow.VerdictDenied, flow.ReasonNeverConfirmed, 1, 120})
	})
	t.Run("an older attempt from the same port is not its beginning", func(t *testing.T) {
		s := tapped()
		s.track(web, far, 4000, 53).tap(0, nil)
		s.track(web, vip, 4000, 80).tap(0.5, afterNAT)
		s.wait(1.1, flow.EventAbsent)
		s.wait(1.6, flow.EventAbsent)
		wantRows(t, s.closeWindow(clock(10)),
			row{web, far, 53, flow.VerdictDenied, flow.ReasonNeverConfirmed, 1, 60}, row{web, db, 8080, flow.VerdictDenied, flow.ReasonNeverConfirmed, 1, 60})
	})
	t.Run("a connection through a Service is confirmed by either record, in any order", func(t *testing.T) {
		for name, tell := range map[string]func(*track){
			"records first":        func(c *track) { c.tap(0, nil).tap(0, afterNAT).say(0, flow.EventNew, toBackend) },
			"conntrack first":      func(c *track) { c.say(0, flow.EventNew, toBackend).tap(0, nil).tap(0, afterNAT) },
			"conntrack in between": func(c *track) { c.tap(0, nil).say(0, flow.EventNew, toBackend).tap(0, afterNAT) },
			"only after NAT":       func(c *track) { c.say(0, flow.EventNew, toBackend).tap(0, afterNAT) },
			"after its end": func(c *track) {
				c.say(0, flow.EventNew, toBackend).say(0, flow.EventDestroy, toBackend).tap(0, nil).tap(0, afterNAT)
			},
		} {
			s := tapped()
			tell(s.track(web, vip, 4000, 80))
			if asked := s.wait(2, flow.EventAbsent); len(asked) > 0 {
				t.Errorf("%s: asked %+v", name, asked)
			}
			wantRows(t, s.closeWindow(clock(10)), row{web, db, 8080, flow.VerdictAllowed, flow.ReasonReply, 1, 0})
			s.track(web, vip, 4000, 80).tap(11, nil).tap(11, afterNAT)
			s.conns.index = map[connKey]uint32{}
			s.wait(13, flow.EventAbsent)
			if flows := s.closeWindow(clock(20)); len(flows) != 1 || flows[0].Verdict != flow.VerdictDenied {
				t.Errorf("%s: the next attempt, which is refused, gives %+v", name, rows(flows))
			}
		}
	})
	t.Run("zones keep equal tuples apart, and are asked for", func(t *testing.T) {
		s := tapped()
		inZone := func(z uint16) func(*flow.Observation) { return func(o *flow.Observation) { replied(o); o.Zone = z } }
		s.track(web, db, 4000, 80).tap(0, inZone(flow.ZoneNotDefault)).say(0, flow.EventNew, inZone(7)).say(0, flow.EventDestroy, inZone(7))
		s.track(web, db, 4001, 80).say(0, flow.EventNew, inZone(8)).tap(0, inZone(flow.ZoneNotDefault))
		s.closeWindow(clock(0.1))
		s.track(web, far, 4000, 80).tap(0, nil).say(0, flow.EventNew, replied)
		s.track(web, far, 4000, 80).tap(0, inZone(flow.ZoneNotDefault))
		asked := s.wait(2, flow.EventAbsent)
		if len(asked) != 2 || asked[0].Zone != 7 || asked[1].Zone != 8 {
			t.Fatalf("asked %+v, want a question about each of the zones 7 and 8", asked)
		}
		wantRows(t, s.closeWindow(clock(10)),
			row{web, far, 80, flow.VerdictAllowed, flow.ReasonReply, 1, 0}, row{web, far, 80, flow.VerdictDenied, flow.ReasonNeverConfirmed, 1, 60})
	})
	t.Run("an echo is asked for by its identifier", func(t *testing.T) {
		s := tapped()
		c := s.track(web, db, 0, 0)
		c.obs.Protocol, c.obs.ICMPType, c.obs.ICMPID = flow.ICMP, 8, 77
		c.tap(0, nil)
		asked := s.wait(2, flow.EventAbsent)
		if len(asked) != 1 || asked[0].ICMPID != 77 || asked[0].ICMPType != 8 {
			t.Fatalf("asked %+v", asked)
		}
		wantRows(t, s.closeWindow(clock(10)), row{web, db, flow.ICMPPort(8, 0), flow.VerdictDenied, flow.ReasonNeverConfirmed, 1, 60})
	})
}

func TestUnclearAttempts(t *testing.T) {
	unknown := func(r flow.Reason) row { return row{web, db, 3306, flow.VerdictUnknown, r, 1, 60} }
	lost := &flow.Observation{Source: flow.SourceConntrack, Event: flow.EventLost, Time: at(0.5)}
	t.Run("never denied when events were lost since it was sent", func(t *testing.T) {
		s := tapped()
		s.track(web, db, 4000, 3306).tap(0, nil)
		s.observe(lost)
		s.wait(1.1, flow.EventAbsent)
		wantRows(t, s.closeWindow(clock(10)), unknown(flow.ReasonLost))
	})
	t.Run("a loss before it says nothing", func(t *testing.T) {
		s := tapped()
		s.observe(lost)
		s.track(web, db, 4000, 3306).tap(0.6, nil)
		s.wait(1.7, flow.EventAbsent)
		wantRows(t, s.closeWindow(clock(10)), row{web, db, 3306, flow.VerdictDenied, flow.ReasonNeverConfirmed, 1, 60})
	})
	t.Run("the kernel could not say", func(t *testing.T) {
		s := tapped()
		s.track(web, db, 4000, 3306).tap(0, nil)
		s.wait(1.1, flow.EventUnanswered)
		wantRows(t, s.closeWindow(clock(10)), unknown(flow.ReasonLost))
	})
	t.Run("no answer comes", func(t *testing.T) {
		s := tapped()
		s.track(web, db, 4000, 3306).tap(0, nil)
		s.look(at(1.1))
		s.look(at(6.2))
		wantRows(t, s.closeWindow(clock(10)), unknown(flow.ReasonLost))
	})
	t.Run("nobody can be asked", func(t *testing.T) {
		s := tapped()
		s.track(web, db, 4000, 3306).tap(0, nil)
		for sec := 1.1; sec < 7; sec++ {
			s.unasked(s.look(at(sec)))
		}
		wantRows(t, s.closeWindow(clock(10)), unknown(flow.ReasonLost))
	})
	t.Run("it was read so late that its end may be forgotten", func(t *testing.T) {
		s := tapped()
		s.look(at(11))
		s.track(web, db, 4000, 3306).tap(0, nil)
		s.wait(11.1, flow.EventAbsent)
		wantRows(t, s.closeWindow(clock(20)), unknown(flow.ReasonLost))
	})
	t.Run("the agent stops", func(t *testing.T) {
		s := tapped()
		s.track(web, db, 4000, 3306).tap(0, nil)
		s.leaveUnconfirmed()
		wantRows(t, s.closeWindow(clock(1)), unknown(flow.ReasonPending))
	})
	t.Run("more than fit are counted as not watched", func(t *testing.T) {
		s := tapped()
		for i := range maxAttempted + 3 {
			a := netip.AddrFrom4([4]byte{10, 9, byte(i >> 16), byte(i >> 8)})
			s.track(a, db, uint16(i&0xff), 3306).tap(0, nil)
		}
		if n := s.takeDropped(); n != 3 {
			t.Errorf("%d not watched, want 3", n)
		}
	})
}

func TestTwoWitnesses(t *testing.T) {
	refused := row{web, db, 3306, flow.VerdictDenied, flow.ReasonLogged, 1, 60}
	t.Run("the plugin and the tap tell of one packet: one flow, both sources, counted once", func(t *testing.T) {
		for name, tell := range map[string]func(*track){
			"tap first":    func(c *track) { c.tap(0, nil).refuse(0) },
			"plugin first": func(c *track) { c.refuse(0).tap(0, nil) },
		} {
			s := both()
			tell(s.track(web, db, 4000, 3306))
			s.wait(0.4, flow.EventAbsent)
			s.wait(2, flow.EventAbsent)
			flows := s.closeWindow(clock(10))
			wantRows(t, flows, refused)
			if f := flows[0]; f.Sources != flow.SourceNFLOG|flow.SourceTap || f.Sent.Packets != 1 {
				t.Errorf("%s: sources %s, %d packets", name, f.Sources, f.Sent.Packets)
			}
		}
	})
	t.Run("the plugin logs some of the retries: the tap's count is the larger", func(t *testing.T) {
		s := both()
		c := s.track(web, db, 4000, 3306).tap(0, nil).refuse(0)
		s.wait(0.4, flow.EventAbsent)
		c.tap(1, nil)
		s.wait(2.1, flow.EventAbsent)
		wantRows(t, s.closeWindow(clock(10)), row{web, db, 3306, flow.VerdictDenied, flow.ReasonLogged, 1, 120})
	})
	t.Run("a logged refusal of a packet that conntrack confirms is contradicted", func(t *testing.T) {
		for name, tell := range map[string]func(*track){
			"log first":       func(c *track) { c.refuse(0).say(0, flow.EventNew, nil).say(0, flow.EventUpdate, replied) },
			"conntrack first": func(c *track) { c.say(0, flow.EventNew, nil).say(0, flow.EventUpdate, replied).refuse(0) },
			"in between":      func(c *track) { c.say(0, flow.EventNew, nil).refuse(0).say(0, flow.EventUpdate, replied) },
		} {
			s := logged()
			tell(s.track(web, far, 4000, 80))
			s.wait(2, flow.EventAbsent)
			wantRows(t, s.closeWindow(clock(10)), row{web, far, 80, flow.VerdictAllowed, flow.ReasonContradicted, 1, 0})
			if s.stats.contradicted != 1 {
				t.Errorf("%s: %d records contradicted, want 1", name, s.stats.contradicted)
			}
		}
	})
	t.Run("also where the connection was translated, and after it ended", func(t *testing.T) {
		for name, end := range map[string]bool{"live": false, "ended": true} {
			s := logged()
			c := s.track(web, vip, 4000, 80).say(0, flow.EventNew, toBackend)
			if end {
				c.say(0.1, flow.EventDestroy, toBackend)
			}
			c.log(0, flow.SourceNFLOG, flow.EventPacket, flow.VerdictDenied, func(o *flow.Observation) { o.Original.Dst, o.Original.DstPort = db, 8080 })
			s.look(at(1))
			r := flow.ReasonContradicted
			if end {
				r = flow.ReasonReply
			}
			wantRows(t, s.closeWindow(clock(10)), row{web, db, 8080, flow.VerdictAllowed, r, 1, 0})
			if s.stats.contradicted != 1 {
				t.Errorf("%s: %d records contradicted, want 1", name, s.stats.contradicted)
			}
		}
	})
	t.Run("a retry that passes does not contradict the refusal of the first packet", func(t *testing.T) {
		s := logged()
		s.track(web, far, 4000, 80).refuse(0)
		s.look(at(0.5))
		s.track(web, far, 4000, 80).say(1, flow.EventNew, replied)
		wantRows(t, s.closeWindow(clock(10)),
			row{web, far, 80, flow.VerdictDenied, flow.ReasonLogged, 1, 60}, row{web, far, 80, flow.VerdictAllowed, flow.ReasonReply, 1, 0})
		if s.stats.contradicted != 0 {
			t.Error("the record is contradicted")
		}
	})
	t.Run("nor does a connection that lives contradict the refusal of a later packet", func(t *testing.T) {
		s := logged()
		c := s.track(web, far, 4000, 80)
		c.obs.Protocol = flow.UDP
		c.say(0, flow.EventNew, replied).refuse(5)
		wantRows(t, s.closeWindow(clock(10)),
			row{web, far, 80, flow.VerdictAllowed, flow.ReasonReply, 1, 0}, row{web, far, 80, flow.VerdictDenied, flow.ReasonLogged, 1, 60})
	})
	t.Run("a first refusal leaves within a second", func(t *testing.T) {
		s := logged()
		s.track(web, db, 4000, 3306).refuse(0)
		s.look(at(0.25))
		wantRows(t, s.earlyFlows())
		s.look(at(0.5))
		wantRows(t, s.earlyFlows(), refused)
	})
	t.Run("a hint is no refusal", func(t *testing.T) {
		s := logged()
		s.track(web, db, 4000, 3306).log(0, flow.SourceNFLOG, flow.EventPacket, flow.VerdictUnknown, nil)
		s.look(at(2))
		wantRows(t, s.closeWindow(clock(10)))
	})
}

func TestUntracked(t *testing.T) {
	packet := func(s *scene, src, dst netip.Addr, srcPort, dstPort uint16) {
		s.observe(&flow.Observation{
			Time: at(0), Source: flow.SourceTap, Event: flow.EventUntracked, Protocol: flow.UDP, Size: 60,
			Original: flow.Tuple{Src: src, Dst: dst, SrcPort: srcPort, DstPort: dstPort},
		})
	}
	s := tapped()
	packet(s, web, out, 40000, 53)
	packet(s, out, web, 53, 40000)
	packet(s, out, vip, 40000, 8472)
	wantRows(t, s.closeWindow(clock(10)), row{web, out, 53, flow.VerdictUnknown, flow.ReasonUntracked, 1, 0})
}

func TestAttemptsAllocateNothingInSteadyState(t *testing.T) {
	s := tapped()
	tap := s.track(web, far, 4000, 80).obs
	begin, end := tap, tap
	tap.Source, tap.Event, tap.Status = flow.SourceTap, flow.EventAttempt, 0
	begin.Event, end.Event = flow.EventNew, flow.EventDestroy
	if n := testing.AllocsPerRun(100, func() {
		for _, o := range []*flow.Observation{&tap, &begin, &end} {
			s.observe(o)
		}
	}); n != 0 {
		t.Errorf("%v allocations a connection, want 0", n)
	}
}
