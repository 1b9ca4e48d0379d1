package collector

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// crossing is a connection from n1 to n2 that nobody answered.
func crossing(at time.Time) flow.Flow {
	f := seen(webAddr, 3306, flow.VerdictUnanswered, at)
	f.Reason, f.Sources = flow.ReasonNoReply, flow.SourceConntrack
	f.Source = &flow.Endpoint{Kind: flow.EndpointPod, Namespace: "shop", Pod: "web", Node: "n1"}
	f.Destination = &flow.Endpoint{Kind: flow.EndpointPod, Namespace: "shop", Pod: "db", Node: "n2"}
	return f
}

// window is a batch of a node with a tap, of the time around at.
func window(node string, at time.Time, flows ...flow.Flow) *flow.Batch {
	for i := range flows {
		flows[i].Node = node
	}
	return &flow.Batch{
		Key: flow.BatchKey{Cluster: "c"}, Node: node, Start: at.Add(-20 * time.Second), End: at.Add(20 * time.Second), Flows: flows,
		Agent: flow.AgentStatus{Sources: []string{"conntrack", "tap"}},
	}
}

func TestLostBetween(t *testing.T) {
	with := func(b *flow.Batch, change func(*flow.Batch)) *flow.Batch { change(b); return b }
	flowWith := func(change func(*flow.Flow)) flow.Flow { f := crossing(judged); change(&f); return f }
	for _, c := range []struct {
		name    string
		there   *flow.Batch // of the destination's node
		here    *flow.Batch // of the source's
		wait    time.Duration
		unknown bool // the destination's pod has just begun
		want    bool
	}{
		{name: "its node watched, and nothing came", there: window("n2", judged), want: true},
		{name: "it came", there: window("n2", judged, crossing(judged))},
		{name: "it came, and was refused", there: window("n2", judged, flowWith(func(f *flow.Flow) { f.Verdict = flow.VerdictDenied }))},
		{name: "it came from an address of nobody that is known", there: window("n2", judged, flowWith(func(f *flow.Flow) { f.Src, f.Source = farAddr, nil }))},
		{name: "another pod's came", there: window("n2", judged, flowWith(func(f *flow.Flow) { f.Src = apiAddr })), want: true},
		{name: "one came long before", there: window("n2", judged, crossing(judged.Add(-time.Minute))), want: true},
		{name: "nobody watched"},
		{name: "its node watched later", there: window("n2", judged.Add(25*time.Second))},
		{name: "its node has no tap", there: with(window("n2", judged), func(b *flow.Batch) { b.Agent.Sources = []string{"conntrack"} })},
		{name: "its tap is limited to others", there: with(window("n2", judged), func(b *flow.Batch) { b.Agent.Sources = []string{"conntrack", "tap=10.2.0.0/16"} })},
		{name: "its tap is limited to such", there: with(window("n2", judged), func(b *flow.Batch) { b.Agent.Sources = []string{"conntrack", "tap=10.1.0.0/16"} }), want: true},
		{name: "its node had a gap", there: with(window("n2", judged), func(b *flow.Batch) {
			b.Gaps = []flow.Gap{{Kind: flow.GapOverrun, Start: judged, End: judged.Add(time.Second)}}
		})},
		{name: "its node had a gap before", there: with(window("n2", judged), func(b *flow.Batch) {
			b.Gaps = []flow.Gap{{Kind: flow.GapOverrun, Start: judged.Add(-20 * time.Second), End: judged.Add(-10 * time.Second)}}
		}), want: true},
		{name: "its node enforces by eBPF", there: with(window("n2", judged), func(b *flow.Batch) { b.Agent.Sources = []string{"conntrack", "hubble", "tap"} })},
		{name: "the source's does", there: window("n2", judged), here: with(window("n1", judged, crossing(judged)), func(b *flow.Batch) { b.Agent.Sources = []string{"conntrack", "hubble"} })},
		{name: "its node told too long ago", there: window("n2", judged), wait: time.Hour},
		{name: "its node told a while ago", there: window("n2", judged), wait: 4 * time.Minute, want: true},
		{name: "the destination has just begun", there: window("n2", judged), unknown: true},
		{name: "it was reset", there: window("n2", judged), here: window("n1", judged, flowWith(func(f *flow.Flow) { f.Reason = flow.ReasonReset }))},
		{name: "both pods are on one node", there: window("n2", judged), here: window("n1", judged, flowWith(func(f *flow.Flow) { f.Destination.Node = "n1" }))},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newArrivals()
				settled := func(*flow.Flow) bool { return !c.unknown }
				if c.there != nil {
					a.judge(c.there, settled)
				}
				if c.wait > 0 {
					time.Sleep(c.wait)
					a.judge(window("n2", judged.Add(c.wait)), settled)
				}
				here := c.here
				if here == nil {
					here = window("n1", judged, crossing(judged))
				}
				a.judge(here, settled)
				if got := here.Flows[0].RefusedAt() == flow.PlaceBetween; got != c.want {
					t.Errorf("lost between: %v, want %v (%s)", got, c.want, here.Flows[0].Reason)
				}
			})
		})
	}
}
