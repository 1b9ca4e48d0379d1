package kube

import (
	"container/heap"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// The churn that names must stand: 200 pods a second on 1,000 addresses, each
// taken over as soon as it is free, and churnFlows flows.
const (
	churnAddrs = 1_000
	churnPods  = churnFlows / 50
	churnLife  = 5.0 // seconds
)

// step is something that happens at a time.
type step struct {
	at float64
	do func(at float64)
}

type steps []step

func (s steps) Len() int           { return len(s) }
func (s steps) Less(i, j int) bool { return s[i].at < s[j].at }
func (s steps) Swap(i, j int)      { s[i], s[j] = s[j], s[i] }
func (s *steps) Push(x any)        { *s = append(*s, x.(step)) }
func (s *steps) Pop() any {
	last := (*s)[len(*s)-1]
	*s = (*s)[:len(*s)-1]
	return last
}

// turmoil is a cluster whose pods take over each other's addresses, as an API
// server tells of it: late, in whole seconds, and in the order of its changes.
type turmoil struct {
	*stage
	random *rand.Rand
	plan   steps
	heard  float64                  // when the last change reaches the index
	slow   func(at float64) float64 // how late changes reach it, beside
	pods   int                      // so far
	counts map[string]int
	wrong  []string
}

func (c *turmoil) between(a, b float64) float64 { return a + c.random.Float64()*(b-a) }

// tell makes a change reach the index some time after it happened.
func (c *turmoil) tell(at float64, do func(at float64)) {
	heap.Push(&c.plan, step{at, func(at float64) {
		c.heard = max(c.heard+1e-6, at+c.slow(at)+c.between(0.001, 0.15)) // in their order
		heap.Push(&c.plan, step{c.heard, do})
	}})
}

// pod lives on an address from a time on. The next one follows when it is free.
func (c *turmoil) pod(addr netip.Addr, start float64) {
	if c.pods == churnPods {
		return
	}
	c.pods++
	name, end := fmt.Sprintf("pod-%d", c.pods), start+c.between(0.5, 1.5)*churnLife
	p := runs(name, addr.String(), start)
	c.tell(start+c.between(0.01, 0.5), func(at float64) { c.set(at, p) })
	for range 5 {
		first, last := c.between(start, end), start
		var times [churnFlows / churnPods / 5]float64
		for i := range times {
			times[i] = min(end, first+c.between(0, 0.5))
			last = max(last, times[i])
		}
		heap.Push(&c.plan, step{last, func(now float64) { c.flows(addr, times[:], now, name) }})
	}
	switch how := c.random.IntN(10); {
	case how < 6: // asked to end, as a rollout does
		asked := end - c.between(0.2, 1.5)
		c.tell(asked, func(at float64) { c.set(at, terminating(p, asked)) })
		last := finished(terminating(p, asked), end)
		c.tell(end+c.between(0.01, 0.2), func(at float64) { c.set(at, last) })
		c.tell(end+c.between(0.2, 0.5), func(at float64) { c.gone(at, last) })
	case how < 8: // deleted by force, before or after its network is gone
		c.tell(end+c.between(-0.05, 0.3), func(at float64) { c.gone(at, p) })
	default: // completed, and kept for a while
		last := finished(p, end)
		c.tell(end+c.between(0.01, 0.3), func(at float64) { c.set(at, last) })
		c.tell(end+5, func(at float64) { c.gone(at, last) })
	}
	heap.Push(&c.plan, step{end + c.between(0.001, 0.3), func(at float64) { c.pod(addr, at) }})
}

// flows asks who had an address at times, and again as long as news may come.
func (c *turmoil) flows(addr netip.Addr, times []float64, now float64, want string) {
	again := now
	waiting := times[:0]
	for _, at := range times {
		e, news := c.Holder(addr, sec(at), sec(at))
		if due := at + news.Seconds(); now < due {
			waiting, again = append(waiting, at), max(again, due)
			continue
		}
		c.count(addr, e, at, now, want)
	}
	if len(waiting) > 0 {
		heap.Push(&c.plan, step{again, func(now float64) { c.flows(addr, waiting, now, want) }})
	}
}

func (c *turmoil) count(addr netip.Addr, e *flow.Endpoint, at, now float64, want string) {
	switch {
	case e.Kind == flow.EndpointPod && e.Pod == want:
		c.counts["named"]++
	case e.Kind == flow.EndpointAmbiguous || e.Kind == flow.EndpointUnknown:
		c.counts[e.Kind.String()]++
	default:
		c.wrong = append(c.wrong, fmt.Sprintf("%s at %.3f s is %s's, and named %s %s at %.3f s", addr, at, want, e.Kind, e.Pod, now))
	}
}

func TestChurnNamesNobodyWrongly(t *testing.T) {
	c := &turmoil{stage: newStage(t), random: rand.New(rand.NewPCG(7, 11)), counts: make(map[string]int), slow: func(float64) float64 { return 0 }}
	c.run(t)
	if total := c.total(); c.counts["named"]*2 < total {
		t.Errorf("of %d flows only %d are named", total, c.counts["named"])
	}
}

// An API server that is overloaded tells changes ever later, and for a while
// none at all.
func TestChurnThatIsToldLate(t *testing.T) {
	c := &turmoil{stage: newStage(t), random: rand.New(rand.NewPCG(7, 13)), counts: make(map[string]int)}
	c.slow = func(at float64) float64 {
		switch at = math.Mod(at, 100); {
		case at < 20:
			return 0
		case at < 25:
			return 25 - at // nothing comes for five seconds, and then all
		case at < 40:
			return 0
		case at < 60:
			return (at - 40) * 1.5
		case at < 80:
			return 30 - (at-60)*0.9
		}
		return 0
	}
	c.run(t)
}

func (c *turmoil) run(t *testing.T) {
	t.Helper()
	for i := range churnAddrs {
		addr := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		heap.Push(&c.plan, step{c.between(0, churnLife), func(at float64) { c.pod(addr, at) }})
	}
	began := time.Now()
	for len(c.plan) > 0 {
		s := heap.Pop(&c.plan).(step)
		c.clock = func() time.Time { return sec(s.at) }
		s.do(s.at)
	}
	t.Logf("%v wrong %d, in %s", c.counts, len(c.wrong), time.Since(began).Round(time.Millisecond))
	if len(c.wrong) > 0 {
		t.Errorf("%d named wrongly, such as %s", len(c.wrong), c.wrong[0])
	}
	total := c.total()
	if total != churnFlows || (c.counts["named"]+c.counts["ambiguous"])*1000 < total*999 {
		t.Errorf("of %d flows %v: want 99.9 %% named or ambiguous", total, c.counts)
	}
}

func (c *turmoil) total() int {
	return c.counts["named"] + c.counts["ambiguous"] + c.counts["unknown"] + len(c.wrong)
}
