package kube

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// changes makes a pod a step, told so much later, from one time to another.
func (s *stage) changes(from, to, step, late float64) {
	for at := from; at < to; at += step {
		p := newPod("shop", fmt.Sprint("c", at))
		p.CreationTimestamp = *apiTime(at)
		s.set(at+late, p)
	}
}

func TestWhoMayHaveGoneIsDoubted(t *testing.T) {
	for _, c := range []struct {
		name      string
		happen    func(s *stage)
		at, now   float64 // of the flow, and of the question
		want      string
		settledBy float64 // the time by which the answer does not change; 0 for now
	}{
		{"nothing is told, as always", func(*stage) {}, 50, 50.1, "web", 52},
		{"changes are told at once", func(s *stage) { s.changes(20, 50, 0.1, 0.1) }, 50, 50.1, "web", 52},
		{"changes are told ten seconds late", func(s *stage) { s.changes(20, 40, 0.1, 10) }, 49, 50, "ambiguous web", 52},
		{"what they told of is known", func(s *stage) { s.changes(20, 40, 0.1, 10) }, 35, 50, "web", 0},
		{"it is waited for, but not for ever", func(s *stage) { s.changes(20, 40, 0.1, 10) }, 49, 59, "ambiguous web", 59},
		{"nothing came for long since then", func(s *stage) { s.changes(20, 40, 0.1, 10) }, 140, 150, "web", 0},
		{"a busy server falls silent", func(s *stage) { s.changes(20, 50, 0.05, 0.1) }, 50.5, 52.2, "ambiguous web", 54},
		{"it had just no more to tell", func(s *stage) { s.changes(20, 50, 0.05, 0.1) }, 50.5, 61, "web", 0},
		{"few changes are no busy server", func(s *stage) { s.changes(20, 50, 3, 0.1) }, 52, 52.2, "web", 54},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStage(t)
			s.set(1, runs("web", "10.0.0.1", 0))
			c.happen(s)
			s.clock = func() time.Time { return sec(c.now) }
			e, news := s.Holder(netip.MustParseAddr("10.0.0.1"), sec(c.at), sec(c.at))
			got := e.Pod
			if e.Kind == flow.EndpointAmbiguous {
				got = "ambiguous " + e.Candidates[0][len("shop/"):]
			}
			if got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
			until := sec(c.at).Add(news)
			if c.settledBy == 0 && until.After(sec(c.now)) || c.settledBy != 0 && until.Before(sec(min(c.settledBy, c.at+maxSettling.Seconds()))) {
				t.Errorf("the answer may change until %s, want %v", until.Sub(epoch), c.settledBy)
			}
		})
	}
}
