package collector

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flowaudit/flowaudit/flow"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

// watching is what a call of Observe with follow has given.
type watching struct {
	flows     []flow.Flow
	coverages []flow.Coverage
}

// watch follows until the test's collector closes.
func watch(t *testing.T, c *running, filter flow.Filter) *watching {
	t.Helper()
	stream, err := c.query().Observe(t.Context(), &flowauditv1.ObserveRequest{Filter: flowauditv1.FromFilter(filter), Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	w := &watching{}
	go func() {
		for {
			answer, err := stream.Recv()
			if err != nil {
				return
			}
			flows, _, _, _ := answer.GetFlows().ToFlows()
			w.flows = append(w.flows, flows...)
			if answer.GetCoverage() != nil {
				w.coverages = append(w.coverages, flowauditv1.ToCoverage(answer.GetCoverage()))
			}
		}
	}()
	synctest.Wait()
	return w
}

func TestAFollowerSeesEachFlowOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &memory{}
		c := serve(t, store)
		defer c.close(t)
		c.keep(t, batchOf(1, flowTo(1, flow.VerdictDenied)))
		// Batch 2 is committed while the stored flows are read, and is not among them.
		store.onFlows = func() { c.keep(t, batchOf(2, flowTo(2, flow.VerdictDenied))) }
		w := watch(t, c, flow.Filter{Match: flow.Selector{Verdicts: []flow.Verdict{flow.VerdictDenied}}})
		if got := ports(w.flows); !slices.Equal(got, []uint16{1, 2}) || len(w.coverages) != 1 {
			t.Errorf("ports %v and %d coverages; want the stored flow, the coverage, and the flow that came meanwhile", got, len(w.coverages))
		}
		c.keep(t, batchOf(3, flowTo(3, flow.VerdictDenied), flowTo(4, flow.VerdictAllowed)), batchOf(3))
		synctest.Wait()
		if got := ports(w.flows); !slices.Equal(got, []uint16{1, 2, 3}) {
			t.Errorf("ports %v, want what passes the filter, each once", got)
		}
	})
}

// TestAFlowThatIsStoredWhileAFollowerComesShowsOnce: it is in the stored part
// and among the news.
func TestAFlowThatIsStoredWhileAFollowerComesShowsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &memory{}
		c := serve(t, store)
		defer c.close(t)
		f := flowTo(1, flow.VerdictDenied)
		// The store commits before it publishes: between the two a reader comes.
		entered, publish := make(chan struct{}), make(chan struct{})
		c.committer.committed = func(b []flow.Batch) {
			close(entered)
			<-publish
			c.hub.publish(b)
		}
		stream := c.report(t)
		send(t, stream, batchOf(1, f))
		<-entered
		w := watch(t, c, flow.Filter{})
		close(publish)
		synctest.Wait()
		if got := ports(w.flows); !slices.Equal(got, []uint16{1}) {
			t.Errorf("ports %v, want the flow once", got)
		}
	})
}

// TestToldOnce says which later reports are news to one who was given earlier ones.
func TestToldOnce(t *testing.T) {
	at := func(f flow.Flow, node string, from, to int) flow.Flow {
		began := time.UnixMilli(1_700_000_000_000)
		f.Node, f.Start, f.End = node, began.Add(time.Duration(from)*time.Second), began.Add(time.Duration(to)*time.Second)
		return f
	}
	refused, allowed := flowTo(1, flow.VerdictDenied), flowTo(1, flow.VerdictAllowed)
	unanswered, other := flowTo(1, flow.VerdictUnanswered), flowTo(2, flow.VerdictDenied)
	hidden := refused
	hidden.Src, hidden.TranslatedSrc = other.Dst, refused.Src
	for _, test := range []struct {
		name         string
		stored, live []flow.Flow
		want         bool // of the last live flow
	}{
		{"nothing before", nil, []flow.Flow{at(refused, "a", 0, 1)}, true},
		{"the same window, stored", []flow.Flow{at(refused, "a", 0, 1)}, []flow.Flow{at(refused, "a", 0, 1)}, false},
		{"the node's next window", []flow.Flow{at(refused, "a", 0, 1)}, []flow.Flow{at(refused, "a", 10, 11)}, true},
		{"stored merged with an earlier start", []flow.Flow{at(refused, "a", 0, 5)}, []flow.Flow{at(refused, "a", 1, 4)}, false},
		{"the second node's report, the first stored", []flow.Flow{at(refused, "a", 0, 1)}, []flow.Flow{at(refused, "b", 0, 1)}, false},
		{"the second node's report, the first live", nil, []flow.Flow{at(refused, "a", 0, 1), at(refused, "b", 0, 1)}, false},
		{"the second node saw no answer to what was refused", nil, []flow.Flow{at(refused, "a", 0, 1), at(unanswered, "b", 0, 1)}, false},
		{"the second node knows that it was refused", nil, []flow.Flow{at(unanswered, "a", 0, 1), at(refused, "b", 0, 1)}, true},
		{"refused and allowed are different connections", nil, []flow.Flow{at(refused, "a", 0, 1), at(allowed, "b", 0, 1)}, true},
		{"the second node much later", nil, []flow.Flow{at(refused, "a", 0, 1), at(refused, "b", 60, 61)}, true},
		{"another port", nil, []flow.Flow{at(refused, "a", 0, 1), at(other, "b", 0, 1)}, true},
		{"the second node saw the translated source", nil, []flow.Flow{at(hidden, "a", 0, 1), at(refused, "b", 0, 1)}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			seen := newTold()
			for _, f := range test.stored {
				seen.addStored(&f, f.End)
			}
			var last bool
			for _, f := range test.live {
				last = seen.isNews(&sighted{f, f})
			}
			if last != test.want {
				t.Errorf("it is news: %t, want %t", last, test.want)
			}
		})
	}
}

// TestOldFlowsAreNotRemembered: a follower of everything must not cost the
// memory of everything.
func TestOldFlowsAreNotRemembered(t *testing.T) {
	seen := newTold()
	f := flowTo(1, flow.VerdictDenied)
	seen.addStored(&f, f.End.Add(recent+1))
	if len(seen.stored)+len(seen.pairs) != 0 {
		t.Error("a flow that no agent would report now is remembered")
	}
	for i := range uint16(maxShown - 1) {
		f.Port = i
		seen.isNews(&sighted{f, f})
	}
	f.Protocol = flow.UDP
	for i := range uint16(10) {
		f.Port = i
		seen.isNews(&sighted{f, f})
	}
	if n := len(seen.pairs); n > maxShown {
		t.Errorf("%d pairs are remembered", n)
	}
}

// TestASlowFollowerLearnsWhatItMissed: with the next thing it reads, and not
// only when something new comes.
func TestASlowFollowerLearnsWhatItMissed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub()
		slow := h.follow(flow.SeeAll(), flow.Filter{})
		quick := h.follow(flow.SeeAll(), flow.Filter{})
		var got int
		began := time.Now()
		for range followBuffer + 3 {
			h.publish([]flow.Batch{batchOf(1, denied(2)...)})
			got += len((<-quick.news).flows)
			time.Sleep(time.Second) // the bubble's
		}
		if got != 2*(followBuffer+3) || h.missed(quick) != nil {
			t.Errorf("a reader that keeps up got %d flows", got)
		}
		<-slow.news
		gaps := h.missed(slow)
		if len(gaps) != 1 || gaps[0].Lost != 3*2 || gaps[0].Kind != flow.GapQueue || gaps[0].Detail == "" {
			t.Fatalf("gaps %+v, want one of 6 flows", gaps)
		}
		if from, to := gaps[0].Start.Sub(began), gaps[0].End.Sub(began); from != followBuffer*time.Second || to != (followBuffer+2)*time.Second {
			t.Errorf("missed from %s to %s", from, to)
		}
		if h.missed(slow) != nil {
			t.Error("it is told twice")
		}
		h.leave(slow)
		h.publish([]flow.Batch{batchOf(2, denied(1)...)})
		if len(slow.news) != followBuffer-1 {
			t.Error("one who has left gets news")
		}
	})
}

func TestAFollowerIsToldOfMissedFlowsAndOfNewGaps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &memory{}
		c := serve(t, store)
		defer c.close(t)
		w := watch(t, c, flow.Filter{})
		for live := range c.hub.followers {
			c.hub.mu.Lock()
			live.miss(5)
			c.hub.mu.Unlock()
		}
		b := batchOf(1)
		b.Gaps = []flow.Gap{{Node: "node-1", Source: "nflog:100", Kind: flow.GapSequence, Start: b.Start, End: b.End, Lost: 2}}
		c.keep(t, b)
		synctest.Wait()
		if len(w.coverages) != 2 || len(w.coverages[1].Nodes) != 2 {
			t.Fatalf("coverages %+v, want the stored part's and one with two nodes", w.coverages)
		}
		if got := fmt.Sprintln(w.coverages[1].Nodes[0].Gaps[0].Lost, w.coverages[1].Nodes[1].Gaps[0].Lost, w.coverages[1].Nodes[1].Node); got != "2 5 collector\n" {
			t.Errorf("gaps %s, want the node's of 2 and the collector's of 5", got)
		}
	})
}
