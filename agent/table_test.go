package agent

import (
	"net/netip"
	"testing"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// Addresses of the table's tests: web and db are pods of this node, far and
// out are not.
var (
	web = netip.MustParseAddr("10.0.0.1")
	db  = netip.MustParseAddr("10.0.0.2")
	far = netip.MustParseAddr("10.0.1.9")
	out = netip.MustParseAddr("192.0.2.7")
	vip = netip.MustParseAddr("10.96.0.10")
)

type fakeNames map[netip.Addr]*flow.Endpoint

func (n fakeNames) Endpoint(a netip.Addr, _ time.Time) *flow.Endpoint { return n[a] }

func (n fakeNames) Holder(a netip.Addr, _, _ time.Time) (*flow.Endpoint, time.Duration) {
	return n[a], 0
}

func (n fakeNames) Version() uint64 { return 0 }

func names() fakeNames {
	return fakeNames{
		web: {Kind: flow.EndpointPod, Namespace: "shop", Pod: "web", Node: "n1"},
		db:  {Kind: flow.EndpointPod, Namespace: "shop", Pod: "db", Node: "n1"},
		far: {Kind: flow.EndpointPod, Namespace: "shop", Pod: "far", Node: "n2"},
	}
}

// scene drives a table through observations at seconds from the start.
type scene struct {
	*table
	id uint32
}

func newScene(change func(*tableOptions)) *scene {
	o := tableOptions{Names: names(), LocalNode: "n1", Unanswered: 10 * time.Second, MaxConns: 1000, MaxFlows: 1000, Conntrack: true}
	if change != nil {
		change(&o)
	}
	return &scene{table: newTable(o)}
}

func at(seconds float64) int64 { return int64(1_700_000_000e9) + int64(seconds*1e9) }

func clock(seconds float64) time.Time { return time.Unix(0, at(seconds)) }

func (s *scene) refuse(sec float64, src, dst netip.Addr, srcPort, dstPort uint16) {
	s.refuseSYN(sec, src, dst, srcPort, dstPort, 0)
}

// refuseSYN refuses a SYN whose sequence number the record tells.
func (s *scene) refuseSYN(sec float64, src, dst netip.Addr, srcPort, dstPort uint16, sequence uint32) {
	s.observe(&flow.Observation{
		Time: at(sec), Source: flow.SourceNFLOG, Event: flow.EventPacket, Verdict: flow.VerdictDenied, Protocol: flow.TCP,
		TCPFlags: flow.TCPSyn, Size: 60, Sequence: sequence, Original: flow.Tuple{Src: src, Dst: dst, SrcPort: srcPort, DstPort: dstPort},
	})
}

// track is a TCP connection from a client to a server, its events told by say.
type track struct {
	s   *scene
	obs flow.Observation
}

func (s *scene) track(src, dst netip.Addr, srcPort, dstPort uint16) *track {
	s.id++
	return &track{s, flow.Observation{
		Source: flow.SourceConntrack, Protocol: flow.TCP, ID: s.id, Status: flow.StatusConfirmed,
		Original: flow.Tuple{Src: src, Dst: dst, SrcPort: srcPort, DstPort: dstPort},
		Reply:    flow.Tuple{Src: dst, Dst: src, SrcPort: dstPort, DstPort: srcPort},
	}}
}

func (t *track) say(sec float64, e flow.Event, change func(*flow.Observation)) *track {
	o := t.obs
	o.Time, o.Event = at(sec), e
	if change != nil {
		change(&o)
	}
	t.s.observe(&o)
	return t
}

func replied(o *flow.Observation) { o.Status |= flow.StatusSeenReply }

func counted(packets, bytes uint64) func(*flow.Observation) {
	return func(o *flow.Observation) {
		o.Status |= flow.StatusSeenReply
		o.Counted = true
		o.Sent = flow.Counters{Packets: packets, Bytes: bytes}
		o.Received = flow.Counters{Packets: packets, Bytes: 2 * bytes}
	}
}

func reset(o *flow.Observation) { o.TCPState = flow.TCPStateClose }

// row is what a test says about a flow.
type row struct {
	src, dst    netip.Addr
	port        uint16
	verdict     flow.Verdict
	reason      flow.Reason
	connections uint64
	bytes       uint64
}

func rows(flows []flow.Flow) []row {
	var out []row
	for _, f := range flows {
		out = append(out, row{f.Src, f.Dst, f.Port, f.Verdict, f.Reason, f.Connections, f.Sent.Bytes})
	}
	return out
}

func wantRows(t *testing.T, got []flow.Flow, want ...row) {
	t.Helper()
	r := rows(got)
	if len(r) != len(want) {
		t.Fatalf("got %d flows %+v, want %d %+v", len(r), r, len(want), want)
	}
	for i := range r {
		if r[i] != want[i] {
			t.Errorf("flow %d:\n got %+v\nwant %+v", i, r[i], want[i])
		}
	}
}

func TestDenials(t *testing.T) {
	t.Run("a first denial leaves early, repeats wait for the window", func(t *testing.T) {
		s := newScene(nil)
		s.refuse(0, web, db, 4000, 3306)
		wantRows(t, s.earlyFlows(), row{web, db, 3306, flow.VerdictDenied, flow.ReasonLogged, 1, 60})
		s.refuse(2, web, db, 4001, 3306)
		wantRows(t, s.earlyFlows())
		flows := s.closeWindow(clock(10))
		wantRows(t, flows, row{web, db, 3306, flow.VerdictDenied, flow.ReasonLogged, 1, 60})
		if !flows[0].Start.Equal(clock(2)) {
			t.Errorf("the rest of the window starts at %s, want when it was seen, %s", flows[0].Start, clock(2))
		}
	})
	t.Run("a retry of a SYN is the same connection, also in the next window", func(t *testing.T) {
		s := newScene(nil)
		s.refuse(0, web, db, 4000, 3306)
		s.refuse(1, web, db, 4000, 3306)
		s.refuse(3, web, db, 4000, 3306)
		wantRows(t, s.closeWindow(clock(5)), row{web, db, 3306, flow.VerdictDenied, flow.ReasonLogged, 1, 180})
		s.refuse(7, web, db, 4000, 3306)
		wantRows(t, s.closeWindow(clock(10)), row{web, db, 3306, flow.VerdictDenied, flow.ReasonLogged, 0, 60})
	})
	t.Run("interleaved retries of two connections are two", func(t *testing.T) {
		s := newScene(nil)
		for i := range 3 {
			s.refuse(float64(i), web, db, 4000, 3306)
			s.refuse(float64(i), web, db, 4001, 3306)
		}
		wantRows(t, s.closeWindow(clock(5)), row{web, db, 3306, flow.VerdictDenied, flow.ReasonLogged, 2, 360})
	})
	t.Run("a SYN with another sequence number is another connection from the port", func(t *testing.T) {
		s := newScene(nil)
		s.refuseSYN(0, web, db, 4000, 3306, 7)
		s.refuseSYN(1, web, db, 4000, 3306, 7)
		s.refuseSYN(2, web, db, 4000, 3306, 9)
		s.refuseSYN(3, web, db, 4000, 3306, 9)
		wantRows(t, s.closeWindow(clock(5)), row{web, db, 3306, flow.VerdictDenied, flow.ReasonLogged, 2, 240})
		s.refuseSYN(36, web, db, 4000, 3306, 9)
		s.refuseSYN(36, web, db, 4000, 3306, 11)
		wantRows(t, s.closeWindow(clock(40)), row{web, db, 3306, flow.VerdictDenied, flow.ReasonLogged, 1, 120})
	})
	t.Run("a record without a sequence number is of the last attempt from the port", func(t *testing.T) {
		s := newScene(nil)
		s.refuse(0, web, db, 4000, 3306)
		s.refuseSYN(0, web, db, 4000, 3306, 7)
		s.refuse(1, web, db, 4000, 3306)
		s.refuseSYN(1, web, db, 4000, 3306, 7)
		wantRows(t, s.closeWindow(clock(5)), row{web, db, 3306, flow.VerdictDenied, flow.ReasonLogged, 1, 240})
	})
	t.Run("a source port used again much later is a new connection", func(t *testing.T) {
		s := newScene(nil)
		s.refuse(0, web, db, 4000, 3306)
		for sec := 10.0; sec <= 90; sec += 10 {
			s.closeWindow(clock(sec))
		}
		s.refuse(95, web, db, 4000, 3306)
		wantRows(t, s.closeWindow(clock(100)), row{web, db, 3306, flow.VerdictDenied, flow.ReasonLogged, 1, 60})
	})
	t.Run("a denied key is early again after it was quiet for long", func(t *testing.T) {
		s := newScene(nil)
		s.refuse(0, web, db, 4000, 3306)
		s.earlyFlows()
		s.closeWindow(clock(10))
		s.refuse(20, web, db, 4001, 3306)
		wantRows(t, s.earlyFlows())
		s.closeWindow(clock(400))
		s.refuse(401, web, db, 4002, 3306)
		wantRows(t, s.earlyFlows(), row{web, db, 3306, flow.VerdictDenied, flow.ReasonLogged, 1, 60})
	})
	t.Run("direction is seen from the local pod", func(t *testing.T) {
		s := newScene(nil)
		s.refuse(0, web, far, 1, 1)
		s.refuse(0, far, web, 1, 1)
		s.refuse(0, far, out, 1, 1)
		s.refuse(0, web, db, 1, 1)
		var got []flow.Direction
		for _, f := range s.closeWindow(clock(5)) {
			got = append(got, f.Direction)
		}
		want := []flow.Direction{flow.DirectionEgress, flow.DirectionIngress, flow.DirectionUnknown, flow.DirectionEgress}
		for i := range want {
			if got[i] != want[i] {
				t.Errorf("flow %d: direction %s, want %s", i, got[i], want[i])
			}
		}
	})
	t.Run("a later fragment and a mere hint make no flow", func(t *testing.T) {
		s := newScene(nil)
		o := flow.Observation{
			Time: at(0), Event: flow.EventPacket, Verdict: flow.VerdictDenied, Protocol: flow.UDP, Fragment: true,
			Original: flow.Tuple{Src: web, Dst: db},
		}
		s.observe(&o)
		o.Fragment, o.Verdict = false, flow.VerdictUnknown
		s.observe(&o)
		wantRows(t, s.closeWindow(clock(5)))
		if s.stats.fragments != 1 {
			t.Errorf("%d fragments counted, want 1", s.stats.fragments)
		}
	})
	t.Run("pings are told by type and code", func(t *testing.T) {
		s := newScene(nil)
		s.observe(&flow.Observation{
			Time: at(0), Source: flow.SourceNFLOG, Event: flow.EventPacket, Verdict: flow.VerdictDenied,
			Protocol: flow.ICMP, ICMPType: 8, Size: 84, Original: flow.Tuple{Src: web, Dst: db},
		})
		wantRows(t, s.closeWindow(clock(5)), row{web, db, flow.ICMPPort(8, 0), flow.VerdictDenied, flow.ReasonLogged, 1, 84})
	})
}

func TestConnections(t *testing.T) {
	t.Run("a reply makes a connection allowed, and its end brings the bytes", func(t *testing.T) {
		s := newScene(nil)
		s.track(web, far, 4000, 80).say(0, flow.EventNew, nil).say(0, flow.EventUpdate, replied).say(3, flow.EventDestroy, counted(5, 400))
		wantRows(t, s.closeWindow(clock(10)), row{web, far, 80, flow.VerdictAllowed, flow.ReasonReply, 1, 400})
		if s.conns.len() != 0 {
			t.Errorf("%d connections are kept after their end", s.conns.len())
		}
	})
	t.Run("only its end was seen: all is in it", func(t *testing.T) {
		s := newScene(nil)
		s.track(web, far, 4000, 80).say(3, flow.EventDestroy, counted(5, 400))
		wantRows(t, s.closeWindow(clock(10)), row{web, far, 80, flow.VerdictAllowed, flow.ReasonReply, 1, 400})
	})
	t.Run("a long connection counts once, and its bytes in each window by what dumps tell", func(t *testing.T) {
		s := newScene(nil)
		c := s.track(web, far, 4000, 80).say(0, flow.EventNew, nil).say(0, flow.EventUpdate, replied)
		wantRows(t, s.closeWindow(clock(10)), row{web, far, 80, flow.VerdictAllowed, flow.ReasonReply, 1, 0})
		dump := func(sec float64, bytes uint64) {
			c.say(sec, flow.EventDumpBegin, nil).say(sec, flow.EventDump, counted(bytes/100, bytes)).say(sec, flow.EventDumpEnd, nil)
		}
		dump(15, 1000)
		wantRows(t, s.closeWindow(clock(20)), row{web, far, 80, flow.VerdictAllowed, flow.ReasonReply, 0, 1000})
		dump(25, 1000)
		wantRows(t, s.closeWindow(clock(30)))
		dump(35, 1500)
		wantRows(t, s.closeWindow(clock(40)), row{web, far, 80, flow.VerdictAllowed, flow.ReasonReply, 0, 500})
		c.say(41, flow.EventDestroy, counted(17, 1700))
		wantRows(t, s.closeWindow(clock(50)), row{web, far, 80, flow.VerdictAllowed, flow.ReasonReply, 0, 200})
	})
	t.Run("no reply within the grace time is unanswered, and counts once", func(t *testing.T) {
		s := newScene(nil)
		c := s.track(web, out, 4000, 80).say(5, flow.EventNew, nil)
		wantRows(t, s.closeWindow(clock(10)))
		wantRows(t, s.closeWindow(clock(20)), row{web, out, 80, flow.VerdictUnanswered, flow.ReasonNoReply, 1, 0})
		c.say(125, flow.EventDestroy, nil)
		wantRows(t, s.closeWindow(clock(130)))
	})
	t.Run("a reply after the grace time makes it an allowed one", func(t *testing.T) {
		s := newScene(nil)
		c := s.track(web, out, 4000, 80).say(0, flow.EventNew, nil)
		wantRows(t, s.closeWindow(clock(20)), row{web, out, 80, flow.VerdictUnanswered, flow.ReasonNoReply, 1, 0})
		c.say(25, flow.EventUpdate, replied)
		wantRows(t, s.closeWindow(clock(30)), row{web, out, 80, flow.VerdictAllowed, flow.ReasonReply, 1, 0})
	})
	t.Run("a RST as the only reply is unanswered, known when the connection ends", func(t *testing.T) {
		s := newScene(nil)
		s.track(web, far, 4000, 80).say(5, flow.EventNew, nil).say(5, flow.EventDestroy, reset)
		wantRows(t, s.closeWindow(clock(10)), row{web, far, 80, flow.VerdictUnanswered, flow.ReasonReset, 1, 0})
		if s.conns.len() != 0 {
			t.Errorf("%d connections are kept after their end", s.conns.len())
		}
	})
	t.Run("netfilter has let a confirmed connection to a local pod pass", func(t *testing.T) {
		s := newScene(func(o *tableOptions) { o.Confirmed = true })
		c := s.track(far, db, 4000, 514).say(0, flow.EventNew, nil)
		s.track(web, far, 4000, 514).say(0, flow.EventNew, nil)
		wantRows(t, s.closeWindow(clock(1)), row{far, db, 514, flow.VerdictAllowed, flow.ReasonConfirmed, 1, 0})
		c.say(2, flow.EventDestroy, counted(1, 100))
		wantRows(t, s.closeWindow(clock(3)), row{far, db, 514, flow.VerdictAllowed, flow.ReasonReply, 0, 100})
	})
	t.Run("DNAT keeps the Service, SNAT the translated source", func(t *testing.T) {
		s := newScene(nil)
		s.track(web, vip, 4000, 80).say(0, flow.EventNew, func(o *flow.Observation) {
			replied(o)
			o.Reply = flow.Tuple{Src: db, Dst: out, SrcPort: 8080, DstPort: 61000}
		})
		flows := s.closeWindow(clock(10))
		wantRows(t, flows, row{web, db, 8080, flow.VerdictAllowed, flow.ReasonReply, 1, 0})
		f := flows[0]
		if f.Service == nil || f.Service.Addr != vip || f.Service.Port != 80 {
			t.Errorf("service %+v, want %s:80", f.Service, vip)
		}
		if f.TranslatedSrc != out {
			t.Errorf("translated source %s, want %s", f.TranslatedSrc, out)
		}
	})
	t.Run("a tuple used again while the last one waits is two connections", func(t *testing.T) {
		s := newScene(nil)
		s.track(web, out, 4000, 80).say(0, flow.EventNew, nil).say(1, flow.EventDestroy, reset)
		s.track(web, out, 4000, 80).say(2, flow.EventNew, nil).say(2, flow.EventUpdate, replied)
		wantRows(t, s.closeWindow(clock(10)),
			row{web, out, 80, flow.VerdictUnanswered, flow.ReasonReset, 1, 0},
			row{web, out, 80, flow.VerdictAllowed, flow.ReasonReply, 1, 0})
	})
	t.Run("zones keep equal tuples apart", func(t *testing.T) {
		s := newScene(nil)
		s.track(web, far, 4000, 80).say(0, flow.EventNew, replied)
		s.track(web, far, 4000, 80).say(0, flow.EventNew, func(o *flow.Observation) { replied(o); o.Zone = 7 })
		wantRows(t, s.closeWindow(clock(10)), row{web, far, 80, flow.VerdictAllowed, flow.ReasonReply, 2, 0})
	})
	t.Run("one flow a connection where that is asked for", func(t *testing.T) {
		s := newScene(func(o *tableOptions) { o.PerConn = true })
		s.track(web, far, 4000, 80).say(0, flow.EventNew, replied)
		s.track(web, far, 4001, 80).say(0, flow.EventNew, replied)
		wantRows(t, s.closeWindow(clock(10)),
			row{web, far, 80, flow.VerdictAllowed, flow.ReasonReply, 1, 0}, row{web, far, 80, flow.VerdictAllowed, flow.ReasonReply, 1, 0})
	})
	t.Run("bytes are absent where the kernel does not count", func(t *testing.T) {
		s := newScene(nil)
		s.track(web, far, 4000, 80).say(0, flow.EventNew, replied).say(1, flow.EventDestroy, replied)
		if f := s.closeWindow(clock(10))[0]; f.Counted {
			t.Errorf("counted %+v, want absent", f.Sent)
		}
	})
	t.Run("a full table refuses and counts", func(t *testing.T) {
		s := newScene(func(o *tableOptions) { o.MaxConns = 1 })
		s.track(web, far, 1, 80).say(0, flow.EventNew, nil)
		s.track(web, far, 2, 80).say(0, flow.EventNew, nil)
		if n := s.takeRefused(); n != 1 {
			t.Errorf("%d refused, want 1", n)
		}
	})
}

func TestDumps(t *testing.T) {
	t.Run("connections older than the agent count once, without their past", func(t *testing.T) {
		s := newScene(nil)
		c := s.track(web, far, 4000, 80)
		c.say(0, flow.EventDumpBegin, nil).say(0, flow.EventDump, counted(1000, 100_000)).say(0, flow.EventDumpEnd, nil)
		wantRows(t, s.closeWindow(clock(10)), row{web, far, 80, flow.VerdictAllowed, flow.ReasonReply, 1, 0})
		c.say(11, flow.EventDestroy, counted(1010, 101_000))
		wantRows(t, s.closeWindow(clock(20)), row{web, far, 80, flow.VerdictAllowed, flow.ReasonReply, 0, 1000})
	})
	t.Run("a dump that is faster than the event of a new connection hides none of its bytes", func(t *testing.T) {
		s := newScene(nil)
		c := s.track(web, far, 4000, 80)
		c.say(0, flow.EventDumpBegin, nil).say(0, flow.EventDump, counted(1, 60)).say(0, flow.EventNew, nil).say(0, flow.EventDumpEnd, nil)
		c.say(1, flow.EventDestroy, counted(5, 400))
		wantRows(t, s.closeWindow(clock(10)), row{web, far, 80, flow.VerdictAllowed, flow.ReasonReply, 1, 400})
	})
	t.Run("an end during a dump is not undone by the dump", func(t *testing.T) {
		s := newScene(nil)
		c := s.track(web, far, 4000, 80).say(0, flow.EventNew, replied)
		c.say(1, flow.EventDumpBegin, nil).say(1, flow.EventDestroy, counted(5, 400)).say(1, flow.EventDump, counted(5, 400)).say(1, flow.EventDumpEnd, nil)
		wantRows(t, s.closeWindow(clock(10)), row{web, far, 80, flow.VerdictAllowed, flow.ReasonReply, 1, 400})
	})
	t.Run("an end that was lost is found by the dumps after it", func(t *testing.T) {
		s := newScene(nil)
		c := s.track(web, far, 4000, 80).say(0, flow.EventNew, replied)
		for sec := 1.0; sec < 4; sec++ {
			c.say(sec, flow.EventDumpBegin, nil).say(sec, flow.EventDumpEnd, nil)
		}
		if s.conns.len() != 0 {
			t.Error("the connection is still in the table")
		}
	})
	t.Run("an end that comes just after a dump without it is no connection of its own", func(t *testing.T) {
		s := newScene(nil)
		c := s.track(web, far, 4000, 80).say(0, flow.EventNew, replied)
		c.say(1, flow.EventDumpBegin, nil).say(1, flow.EventDumpEnd, nil).say(1.1, flow.EventDestroy, counted(5, 400))
		wantRows(t, s.closeWindow(clock(10)), row{web, far, 80, flow.VerdictAllowed, flow.ReasonReply, 1, 400})
	})
	t.Run("nor is one that comes long after", func(t *testing.T) {
		s := newScene(nil)
		c := s.track(web, far, 4000, 80).say(0, flow.EventNew, replied)
		for sec := 1.0; sec < 9; sec++ {
			c.say(sec, flow.EventDumpBegin, nil).say(sec, flow.EventDumpEnd, nil)
		}
		c.say(9, flow.EventDestroy, counted(5, 400))
		wantRows(t, s.closeWindow(clock(10)), row{web, far, 80, flow.VerdictAllowed, flow.ReasonReply, 1, 0})
		if n := s.conns.len() + len(s.missed); n != 0 {
			t.Errorf("%d connections are kept that are over", n)
		}
		c.say(11, flow.EventNew, replied).say(12, flow.EventDumpBegin, nil).say(12, flow.EventDumpEnd, nil)
		for sec := 13.0; sec < 15+missedDumps; sec++ {
			c.say(sec, flow.EventDumpBegin, nil).say(sec, flow.EventDumpEnd, nil)
		}
		if n := len(s.missed); n != 0 {
			t.Errorf("%d ends are waited for for ever", n)
		}
	})
	t.Run("a beginning that was lost is found by the dump", func(t *testing.T) {
		s := newScene(nil)
		c := s.track(web, far, 4000, 80).say(1, flow.EventDumpBegin, nil)
		c.say(1, flow.EventDumpEnd, nil).say(2, flow.EventDumpBegin, nil).say(2, flow.EventDump, counted(5, 400)).say(2, flow.EventDumpEnd, nil)
		wantRows(t, s.closeWindow(clock(10)), row{web, far, 80, flow.VerdictAllowed, flow.ReasonReply, 1, 400})
	})
}

func TestTableAllocatesNothingInSteadyState(t *testing.T) {
	s := newScene(nil)
	s.refuse(0, web, db, 4000, 3306)
	c := s.track(web, far, 4000, 80)
	c.say(0, flow.EventNew, replied)
	if n := testing.AllocsPerRun(100, func() { s.refuse(1, web, db, 4000, 3306) }); n != 0 {
		t.Errorf("%v allocations a repeated denial, want 0", n)
	}
	o := c.obs
	o.Event, o.Time = flow.EventUpdate, at(1)
	if n := testing.AllocsPerRun(100, func() { s.observe(&o) }); n != 0 {
		t.Errorf("%v allocations a conntrack update, want 0", n)
	}
}

func TestLabelsOfTheNetworkPlugin(t *testing.T) {
	permitted := func(o *flow.Observation) { o.Permitted = true }
	for _, c := range []struct {
		name    string
		options tableOptions
		dst     netip.Addr
		say     func(*track)
		want    string
	}{
		{"what it labels is allowed", tableOptions{Labels: true}, db, func(c *track) { c.say(0, flow.EventNew, permitted) }, "allowed labelled"},
		{"also by a dump", tableOptions{Labels: true}, db, func(c *track) { c.say(0, flow.EventNew, nil).say(1, flow.EventDump, permitted) }, "allowed labelled"},
		{"a reply says more", tableOptions{Labels: true}, db, func(c *track) { c.say(0, flow.EventNew, permitted).say(0.1, flow.EventUpdate, replied) }, "allowed reply"},
		{"the source's node labels what it lets out", tableOptions{Labels: true}, far, func(c *track) { c.say(0, flow.EventNew, permitted) }, "unanswered no-reply"},
		{"without the label", tableOptions{Labels: true}, db, func(c *track) { c.say(0, flow.EventNew, nil) }, "unanswered no-reply"},
		{"another plugin's label", tableOptions{}, db, func(c *track) { c.say(0, flow.EventNew, permitted) }, "unanswered no-reply"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newScene(func(o *tableOptions) { o.Labels = c.options.Labels })
			c.say(s.track(web, c.dst, 40000, 80))
			flows := s.closeWindow(clock(20))
			if len(flows) != 1 || flows[0].Verdict.String()+" "+flows[0].Reason.String() != c.want || flows[0].Connections != 1 {
				t.Errorf("flows %+v, want one %s", flows, c.want)
			}
		})
	}
}
