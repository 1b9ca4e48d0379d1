package flow

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const slack = 15 * time.Second

// told is one node's report, one second long.
func told(second int, node string, v Verdict, connections, bytes uint64) Flow {
	return Flow{
		Key:   Key{Protocol: TCP, Src: netip.MustParseAddr("10.0.1.1"), Dst: netip.MustParseAddr("10.0.2.1"), Port: 80, Verdict: v},
		Start: at(second), End: at(second + 1), Node: node, Connections: connections,
		Sent: Counters{1, bytes}, Counted: bytes > 0,
	}
}

// with changes a report.
func with(f Flow, change func(*Flow)) Flow {
	change(&f)
	return f
}

func TestMerge(t *testing.T) {
	snat := netip.MustParseAddr("192.168.7.1")
	for _, c := range []struct {
		name    string
		reports []Flow
		want    []string // verdict × connections, bytes sent, second of the start
	}{
		{
			"one node's windows stay apart",
			[]Flow{told(0, "a", VerdictAllowed, 1, 10), told(10, "a", VerdictAllowed, 2, 20)},
			[]string{"allowed ×1 10 @0", "allowed ×2 20 @10"},
		},
		{
			"two nodes' reports are one flow, the larger counts",
			[]Flow{told(0, "a", VerdictAllowed, 3, 100), told(1, "b", VerdictAllowed, 2, 120)},
			[]string{"allowed ×3 120 @0"},
		},
		{
			"a denial absorbs the other node's unanswered",
			[]Flow{told(0, "a", VerdictUnanswered, 1, 60), told(0, "b", VerdictDenied, 1, 0)},
			[]string{"denied ×1 60 @0"},
		},
		{
			"in either order",
			[]Flow{told(0, "b", VerdictDenied, 1, 0), told(8, "a", VerdictUnanswered, 1, 60)},
			[]string{"denied ×1 60 @0"},
		},
		{
			"a confirmation absorbs the other node's unanswered",
			[]Flow{told(0, "a", VerdictUnanswered, 2, 0), told(1, "b", VerdictAllowed, 2, 0)},
			[]string{"allowed ×2 0 @0"},
		},
		{
			"allowed and denied are different connections",
			[]Flow{told(0, "a", VerdictAllowed, 1, 10), told(0, "b", VerdictDenied, 1, 0)},
			[]string{"allowed ×1 10 @0", "denied ×1 0 @0"},
		},
		{
			"unknown says less than unanswered",
			[]Flow{told(0, "a", VerdictUnknown, 1, 0), told(0, "b", VerdictUnanswered, 1, 0)},
			[]string{"unanswered ×1 0 @0"},
		},
		{
			"windows that do not touch stay apart",
			[]Flow{told(0, "a", VerdictAllowed, 1, 10), told(16, "b", VerdictAllowed, 1, 10)},
			[]string{"allowed ×1 10 @0", "allowed ×1 10 @16"},
		},
		{
			"another cluster's addresses are others",
			[]Flow{told(0, "a", VerdictAllowed, 1, 10), with(told(0, "b", VerdictAllowed, 1, 10), func(f *Flow) { f.Cluster = "other" })},
			[]string{"allowed ×1 10 @0", "allowed ×1 10 @0"},
		},
		{
			"another port is another flow",
			[]Flow{told(0, "a", VerdictAllowed, 1, 10), with(told(0, "b", VerdictAllowed, 1, 10), func(f *Flow) { f.Port = 81 })},
			[]string{"allowed ×1 10 @0", "allowed ×1 10 @0"},
		},
		{"behind SNAT the pair is the same", []Flow{
			with(told(0, "a", VerdictAllowed, 1, 10), func(f *Flow) { f.TranslatedSrc = snat }),
			with(told(0, "b", VerdictAllowed, 1, 10), func(f *Flow) { f.Src = snat }),
		}, []string{"allowed ×1 10 @0"}},
		{"a node's later counters join, and are not added to the other's", []Flow{
			told(0, "a", VerdictAllowed, 1, 100), told(0, "b", VerdictAllowed, 1, 0), told(10, "b", VerdictAllowed, 0, 100),
		}, []string{"allowed ×1 100 @0"}},
		{"new connections of a node that has reported are others", []Flow{
			told(0, "a", VerdictAllowed, 1, 100), told(0, "b", VerdictAllowed, 1, 100), told(10, "b", VerdictAllowed, 1, 50),
		}, []string{"allowed ×1 100 @0", "allowed ×1 50 @10"}},
		{
			"what a node tells in other windows is not counted twice",
			[]Flow{
				told(0, "b", VerdictDenied, 6, 0), told(2, "b", VerdictDenied, 6, 0),
				told(0, "a", VerdictUnanswered, 9, 0), told(3, "a", VerdictUnanswered, 3, 0),
			},
			[]string{"denied ×9 0 @0", "denied ×3 0 @2"},
		},
		{
			"nor left over as unanswered",
			[]Flow{
				told(0, "b", VerdictDenied, 9, 0),
				told(0, "a", VerdictUnanswered, 6, 60), told(3, "a", VerdictUnanswered, 4, 40),
			},
			[]string{"denied ×9 60 @0", "unanswered ×1 40 @3"},
		},
		{
			"bytes that a node reads a window later are not counted twice",
			[]Flow{
				told(0, "a", VerdictAllowed, 1, 100), told(0, "b", VerdictAllowed, 1, 10),
				told(2, "a", VerdictAllowed, 1, 100), told(2, "b", VerdictAllowed, 1, 190),
			},
			[]string{"allowed ×1 100 @0", "allowed ×1 100 @2"},
		},
		{
			"reports come in any order",
			[]Flow{told(10, "a", VerdictAllowed, 2, 20), told(0, "a", VerdictAllowed, 1, 10)},
			[]string{"allowed ×1 10 @0", "allowed ×2 20 @10"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []string
			for _, f := range Merge(c.reports, slack) {
				got = append(got, fmt.Sprintf("%s ×%d %d @%d", f.Verdict, f.Connections, f.Sent.Bytes, int(f.Start.Sub(at(0)).Seconds())))
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// heldBy names a report's source.
func heldBy(f Flow, pods ...string) Flow {
	f.Source = &Endpoint{Kind: EndpointPod, Namespace: "shop", Pod: pods[0]}
	if len(pods) > 1 {
		f.Source = &Endpoint{Kind: EndpointAmbiguous, Candidates: []string{"shop/" + pods[0], "shop/" + pods[1]}}
	}
	return f
}

func TestMergeKeepsHoldersOfAnAddressApart(t *testing.T) {
	for _, c := range []struct {
		name    string
		reports []Flow
		want    []string // source × connections
	}{
		{
			"two holders in two reports of each node",
			[]Flow{
				heldBy(told(0, "a", VerdictAllowed, 1, 10), "old"), heldBy(told(0, "b", VerdictAllowed, 1, 10), "old"),
				heldBy(told(2, "a", VerdictAllowed, 1, 10), "new"), heldBy(told(2, "b", VerdictAllowed, 1, 10), "new"),
			},
			[]string{"old ×1", "new ×1"},
		},
		{
			"the other node cannot tell them apart",
			[]Flow{
				heldBy(told(0, "a", VerdictAllowed, 1, 10), "old"), heldBy(told(0, "b", VerdictAllowed, 2, 20), "old", "new"),
				heldBy(told(2, "a", VerdictAllowed, 1, 10), "new"),
			},
			[]string{"old ×1", "new ×1"},
		},
		{
			"and begins to tell before",
			[]Flow{
				heldBy(told(0, "b", VerdictAllowed, 2, 20), "old", "new"), heldBy(told(1, "a", VerdictAllowed, 1, 10), "old"),
				heldBy(told(2, "a", VerdictAllowed, 1, 10), "new"),
			},
			[]string{"old ×1", "new ×1"},
		},
		{
			"it saw one more, and nobody can say whose",
			[]Flow{
				heldBy(told(0, "a", VerdictAllowed, 1, 10), "old"), heldBy(told(0, "b", VerdictAllowed, 3, 30), "old", "new"),
				heldBy(told(2, "a", VerdictAllowed, 1, 10), "new"),
			},
			[]string{"old ×1", "ambiguous ×1", "new ×1"},
		},
		{
			"one connection is named by the node that knows",
			[]Flow{heldBy(told(0, "b", VerdictAllowed, 1, 10), "old", "new"), heldBy(told(0, "a", VerdictAllowed, 1, 10), "new")},
			[]string{"new ×1"},
		},
		{
			"a denial too",
			[]Flow{heldBy(told(0, "a", VerdictUnanswered, 1, 60), "new"), heldBy(told(0, "b", VerdictDenied, 1, 0), "old", "new")},
			[]string{"new ×1"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []string
			for _, f := range Merge(c.reports, slack) {
				name := f.Source.Pod
				if name == "" {
					name = f.Source.Kind.String()
				}
				got = append(got, fmt.Sprintf("%s ×%d", name, f.Connections))
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestMergeKeepsWhatEachSideKnows(t *testing.T) {
	web, db := &Endpoint{Pod: "web"}, &Endpoint{Pod: "db"}
	snat := netip.MustParseAddr("192.168.7.1")
	client := with(told(0, "a", VerdictUnanswered, 1, 0), func(f *Flow) {
		f.Source, f.SourcePort, f.TranslatedSrc, f.Sources = web, 4000, snat, SourceConntrack
		f.Service = &Service{Port: 80}
	})
	server := with(told(1, "b", VerdictDenied, 1, 0), func(f *Flow) {
		f.Src, f.Destination, f.TCPFlags, f.Sources = snat, db, TCPSyn, SourceNFLOG
		f.Policies = []PolicyRef{{Name: "db-policy"}}
	})
	got := Merge([]Flow{client, server}, slack)
	if len(got) != 1 {
		t.Fatalf("%d flows, want one", len(got))
	}
	f := got[0]
	if f.Src != client.Src || f.TranslatedSrc != snat || f.Source != web || f.Service == nil || f.SourcePort != 4000 {
		t.Errorf("the client's side is lost: %+v", f)
	}
	if f.Destination != db || f.TCPFlags != TCPSyn || len(f.Policies) != 1 || f.Node != "b" {
		t.Errorf("the side that decided is lost: %+v", f)
	}
	if f.Sources.String() != "nflog,conntrack" || !f.Start.Equal(at(0)) || !f.End.Equal(at(2)) {
		t.Errorf("sources %s, %s to %s", f.Sources, f.Start, f.End)
	}
}

// TestMergerHoldsLittle: flows leave as soon as nothing can join them.
func TestMergerHoldsLittle(t *testing.T) {
	var given []string
	m := NewMerger(slack, func(f Flow) bool { given = append(given, fmt.Sprint(f.Connections)); return len(given) < 3 })
	for i := range 100 {
		if !m.Add(told(i*20, "a", VerdictAllowed, uint64(i+1), 0)) {
			break
		}
		if len(m.queue) > 1 || len(m.open) > 1 {
			t.Fatalf("%d flows and %d pairs are held", len(m.queue), len(m.open))
		}
	}
	m.Close()
	if got := strings.Join(given, " "); got != "1 2 3" {
		t.Errorf("given %s, want no more than was asked for", got)
	}
}
