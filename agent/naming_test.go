package agent

import (
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// holders is a namer whose holders change: each has its address from a second
// on, and a late one is known from another second on only.
type holders struct {
	list    []heldBy
	now     func() float64
	version uint64
	news    time.Duration // how long answers about pods may change
}

type heldBy struct {
	addr       netip.Addr
	from, told float64
	endpoint   *flow.Endpoint
}

var nobodyYet = &flow.Endpoint{}

func (h *holders) Endpoint(a netip.Addr, t time.Time) *flow.Endpoint {
	found := nobodyYet
	for _, x := range h.list {
		if x.addr == a && h.now() >= x.told && t.UnixNano() >= at(x.from) {
			found = x.endpoint
		}
	}
	return found
}

func (h *holders) Holder(a netip.Addr, from, to time.Time) (*flow.Endpoint, time.Duration) {
	first, last := h.Endpoint(a, from), h.Endpoint(a, to)
	switch {
	case a == out || a == far:
		return nobodyYet, 0
	case first != last:
		return &flow.Endpoint{Kind: flow.EndpointAmbiguous}, h.news
	}
	return first, h.news
}

func (h *holders) Version() uint64 { return h.version }

func podOf(name string) *flow.Endpoint {
	return &flow.Endpoint{Kind: flow.EndpointPod, Namespace: "shop", Pod: name, Node: "n1"}
}

func namesOf(flows []flow.Flow) []string {
	var out []string
	for _, f := range flows {
		switch {
		case f.Source == nil:
			out = append(out, "none")
		case f.Source.Pod != "":
			out = append(out, f.Source.Pod)
		default:
			out = append(out, f.Source.Kind.String())
		}
	}
	slices.Sort(out)
	return out
}

func TestFlowsOfDifferentHoldersStayApart(t *testing.T) {
	var now float64
	h := &holders{now: func() float64 { return now }, list: []heldBy{{web, 0, 0, podOf("old")}, {web, 5, 5, podOf("new")}}}
	s := newScene(func(o *tableOptions) { o.Names = h })
	named := func(flows []flow.Flow) []string {
		return namesOf(newNaming(s.window).take(flows, clock(now), time.Time{}))
	}
	t.Run("in one window", func(t *testing.T) {
		now = 1
		s.refuse(1, web, far, 1000, 80)
		now, h.version = 6, 1
		s.refuse(6, web, far, 1001, 80)
		if got := named(s.closeWindow(clock(10))); !slices.Equal(got, []string{"new", "old"}) {
			t.Errorf("sources %q, want both holders", got)
		}
	})
	t.Run("where the end of a connection is told late", func(t *testing.T) {
		now = 2
		old := s.track(web, far, 1002, 80).say(2, flow.EventNew, nil).say(2, flow.EventUpdate, replied)
		now = 8
		s.track(web, far, 1003, 80).say(8, flow.EventNew, nil).say(8, flow.EventUpdate, replied)
		s.closeWindow(clock(10))
		now = 125
		old.say(125, flow.EventDestroy, counted(5, 500))
		s.track(web, far, 1004, 80).say(125, flow.EventNew, nil).say(125, flow.EventUpdate, replied)
		if got := named(s.closeWindow(clock(130))); !slices.Equal(got, []string{"new", "old"}) {
			t.Errorf("sources %q, want both holders", got)
		}
	})
	t.Run("and what cannot be told apart any more is ambiguous", func(t *testing.T) {
		h.list[1].told = 160
		now = 141
		s.refuse(3, web, far, 1005, 80)
		s.refuse(7, web, far, 1006, 80)
		now, h.version = 161, 2
		if got := named(s.closeWindow(clock(161))); !slices.Equal(got, []string{"ambiguous"}) {
			t.Errorf("sources %q", got)
		}
	})
}

func TestFlowsWaitForTheirNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		h := &holders{now: func() float64 { return time.Since(began).Seconds() }, news: 2 * time.Second}
		pods := []heldBy{{web, -1e9, 1, podOf("web")}}
		h.list = pods
		tab := newTable(tableOptions{Names: h, LocalNode: "n1", Unanswered: 10 * time.Second, MaxConns: 1000, MaxFlows: 1000})
		type sent struct {
			after time.Duration
			names []string
		}
		var got []sent
		in := newInbox()
		l := newLoop(loopOptions{
			Node: "n1", Window: 10 * time.Second, Log: slog.New(slog.DiscardHandler),
			Status: func() flow.AgentStatus { return flow.AgentStatus{} }, Malformed: func() map[string]uint64 { return nil }, Full: func() int { return 0 },
		}, tab, in, func(b *flow.Batch) {
			if len(b.Flows) > 0 {
				got = append(got, sent{time.Since(began), namesOf(b.Flows)})
			}
		})
		done := make(chan struct{})
		go func() { l.run(); close(done) }()
		refused := flow.Observation{
			Time: began.UnixNano(), Source: flow.SourceNFLOG, Event: flow.EventPacket, Verdict: flow.VerdictDenied, Protocol: flow.TCP,
			Original: flow.Tuple{Src: web, Dst: far, SrcPort: 1, DstPort: 80},
		}
		stranger := refused
		stranger.Original.Src = db // nobody will tell whose that is
		remote := refused
		remote.Original.Src = out
		in.full <- []flow.Observation{refused, stranger, remote}
		reply := flow.Observation{
			Time: began.Add(9500 * time.Millisecond).UnixNano(), Source: flow.SourceConntrack, Event: flow.EventNew, Protocol: flow.UDP, ID: 1,
			Status:   flow.StatusConfirmed | flow.StatusSeenReply,
			Original: flow.Tuple{Src: web, Dst: far, SrcPort: 1, DstPort: 53}, Reply: flow.Tuple{Src: far, Dst: web, SrcPort: 53, DstPort: 1},
		}
		time.Sleep(time.Until(time.Unix(0, reply.Time)))
		in.full <- []flow.Observation{reply}
		time.Sleep(5 * time.Second)
		close(in.full)
		<-done
		want := []sent{
			{100 * time.Millisecond, []string{"unknown"}},      // a far address does not wait
			{900 * time.Millisecond, []string{"none", "none"}}, // denials leave within a second, without names that may be wrong
			{11_500 * time.Millisecond, []string{"web"}},       // what a window held waits until it is sure
		}
		if !slices.EqualFunc(got, want, func(a, b sent) bool { return a.after == b.after && slices.Equal(a.names, b.names) }) {
			t.Errorf("sent %v, want %v", got, want)
		}
	})
}

func TestFewFlowsWait(t *testing.T) {
	h := &holders{now: func() float64 { return 0 }, news: time.Hour}
	n := newNaming(newWindow("n1", h))
	flows := make([]flow.Flow, maxWaiting+10)
	for i := range flows {
		flows[i] = flow.Flow{Key: flow.Key{Src: web, Dst: far}, NamedFrom: clock(0), NamedTo: clock(0)}
	}
	h.list = []heldBy{{web, -1, -1, podOf("web")}}
	got := n.take(flows, clock(1), time.Time{})
	if len(got) != 10 || len(n.waiting) != maxWaiting {
		t.Errorf("%d go at once and %d wait, want 10 and %d", len(got), len(n.waiting), maxWaiting)
	}
	if got[0].Source != nil {
		t.Errorf("one that could not wait is named %+v", got[0].Source)
	}
	if got := n.rest(clock(1)); len(got) != maxWaiting || len(n.waiting) != 0 || got[0].Source != nil {
		t.Errorf("%d of the waiting are given at the end, the first named %+v", len(got), got[0].Source)
	}
}

// TestAnOldConnectionMayBeAnOlderPods: the kernel keeps what nobody closed for
// days, and a dump finds it under an address that may have changed hands since.
func TestAnOldConnectionMayBeAnOlderPods(t *testing.T) {
	began := func(sec float64) func(*flow.Observation) {
		return func(o *flow.Observation) { replied(o); o.Began = at(sec) }
	}
	moved := func(sent, received uint64) func(*flow.Observation) {
		return func(o *flow.Observation) {
			replied(o)
			o.TCPState, o.Counted, o.Sent.Packets, o.Received.Packets = flow.TCPStateEstablished, true, sent, received
		}
	}
	for _, c := range []struct {
		name          string
		first, second func(*flow.Observation) // as two dumps find it; nil if they do not
		event         flow.Event              // that tells of it in between
		since         float64                 // since when the pod has its address
		want          string
	}{
		{"nobody says since when it is", replied, replied, 0, 0, "ambiguous"},
		{"it is younger than the pod", began(100), began(100), 0, 50, "web"},
		{"it is older than the pod", began(100), began(100), 0, 150, "ambiguous"},
		{"both ends send: they are who they were", moved(5, 5), moved(6, 6), 0, 290, "web"},
		{"one end sends, and the other may be gone", moved(5, 5), moved(6, 5), 0, 290, "ambiguous"},
		{"it lies still", moved(5, 5), moved(5, 5), 0, 290, "ambiguous"},
		{"it ended", moved(5, 5), nil, flow.EventDestroy, 290, "ambiguous"},
		{"its beginning is told", nil, replied, flow.EventNew, 290, "web"},
		{"its beginning was lost, after the last dump", nil, replied, 0, 290, "web"},
		{"its beginning was lost, and the pod has begun since", nil, replied, 0, 305, "ambiguous"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := &holders{now: func() float64 { return 310 }, list: []heldBy{{web, c.since, 0, podOf("web")}}}
			s := newScene(func(o *tableOptions) { o.Names = h })
			conn := s.track(web, far, 1, 80)
			dump := func(sec float64, found func(*flow.Observation)) {
				conn.say(sec, flow.EventDumpBegin, nil)
				if found != nil {
					conn.say(sec, flow.EventDump, found)
				}
				conn.say(sec, flow.EventDumpEnd, nil)
			}
			dump(300, c.first)
			if c.event != flow.EventUnknown {
				conn.say(305, c.event, replied)
			}
			dump(310, c.second)
			flows := newNaming(s.window).take(s.closeWindow(clock(310)), clock(310), time.Time{})
			if got := namesOf(flows); !slices.Equal(got, []string{c.want}) || flows[0].Connections != 1 {
				t.Errorf("sources %q, want %q: %+v", got, c.want, flows)
			}
		})
	}
}

// A connection that is held for its name is none that has no reply.
func TestAHeldConnectionIsAllowed(t *testing.T) {
	held := func(s *scene) *track {
		c := s.track(web, far, 4000, 80)
		return c.say(0, flow.EventDumpBegin, nil).say(0, flow.EventDump, func(o *flow.Observation) {
			counted(5, 400)(o)
			o.TCPState = flow.TCPStateEstablished
		}).say(0, flow.EventDumpEnd, nil)
	}
	want := row{web, far, 80, flow.VerdictAllowed, flow.ReasonReply, 1, 0}
	t.Run("when the grace time is over", func(t *testing.T) {
		s := newScene(nil)
		held(s)
		wantRows(t, s.closeWindow(clock(60)), want)
	})
	t.Run("when two dumps do not name it", func(t *testing.T) {
		s := newScene(nil)
		c := held(s)
		for sec := 1.0; sec < 3; sec++ {
			c.say(sec, flow.EventDumpBegin, nil).say(sec, flow.EventDumpEnd, nil)
		}
		wantRows(t, s.closeWindow(clock(4)), want)
	})
	t.Run("when the agent stops", func(t *testing.T) {
		s := newScene(nil)
		held(s)
		s.pendingFlows(clock(1))
		wantRows(t, s.window.close(), want)
	})
}
