package suggest

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/policy/history"
	"github.com/flowaudit/flowaudit/policy/replay"
)

// change is what applying the suggestion means.
func (r *run) change() *replay.Change {
	c := &replay.Change{Delete: r.out.Delete}
	for _, p := range r.out.Policies {
		c.Apply = append(c.Apply, p.Object)
	}
	return c
}

// prove judges all recorded traffic, with the labels of its time, by what the
// policies will be: the suggestion and those of the present that stay.
func (r *run) prove() error {
	proof := &r.out.Proof
	proof.Refused = []replay.Flip{}
	if len(r.out.Policies) == 0 {
		return nil
	}
	c := r.change()
	whole := &replay.Change{Apply: c.After(r.h), Whole: true}
	judged, problems, err := replay.Judge(r.h, whole, func(done float64) { r.o.Progress("proving them on recorded traffic", 0.6+0.3*done) })
	if err != nil {
		return err
	}
	for _, p := range problems {
		if slices.ContainsFunc(c.Apply, func(own *networkingv1.NetworkPolicy) bool {
			return own.Namespace == p.Namespace && own.Name == p.Policy
		}) && r.o.Mode != Tighten {
			return fmt.Errorf("check the suggestion: it is not valid, which is a defect of flowaudit: %s", p)
		}
		r.notice("policy-invalid", p.Namespace, "", p.String()+": what it could decide is unclear", "")
	}
	learnt := make(map[*history.Edge]bool)
	for _, l := range r.learner.lessons {
		learnt[l.edge] = true
	}
	for i := range judged {
		proof.Edges++
		proof.Connections += judged[i].Edge.Connections
		r.proveEdge(&judged[i], learnt)
	}
	for _, list := range [][]replay.Flip{proof.Refused, proof.Allowed, proof.Unclear} {
		slices.SortFunc(list, compareFlips)
	}
	slices.SortFunc(proof.Decided, func(a, b Decided) int {
		return cmp.Or(strings.Compare(string(a.Reason), string(b.Reason)), compareFlips(a.Flip, b.Flip))
	})
	return r.tightness(c)
}

func compareFlips(a, b replay.Flip) int {
	return cmp.Or(strings.Compare(a.Destination, b.Destination), strings.Compare(a.Source, b.Source), strings.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port), a.First.Compare(b.First))
}

// proveEdge files an edge whose fate the suggestion changes.
func (r *run) proveEdge(j *replay.Judgement, learnt map[*history.Edge]bool) {
	proof := &r.out.Proof
	e := j.Edge
	for i := range j.Spans {
		s := &j.Spans[i]
		flip := func() replay.Flip { return *replay.Describe(e, s.Before.Verdict, &s.After) }
		switch {
		case e.Verdict == flow.VerdictAllowed && s.After.Verdict == flow.VerdictDenied:
			reason, aside := r.learner.aside[e]
			switch {
			case aside || !learnt[e]:
				if s.Before.Verdict == flow.VerdictDenied && reason == Unenforced {
					break // as it is
				}
				proof.Decided = append(proof.Decided, Decided{reason, flip()})
			default:
				proof.Refused = append(proof.Refused, flip())
			}
		case e.Verdict == flow.VerdictAllowed && s.After.Verdict == flow.VerdictUnknown && learnt[e] && s.Before.Verdict != flow.VerdictUnknown:
			proof.Unclear = append(proof.Unclear, flip())
		case e.Verdict == flow.VerdictDenied && s.Before.Verdict == flow.VerdictDenied && s.After.Verdict == flow.VerdictAllowed && !r.allowedNow(e):
			proof.Allowed = append(proof.Allowed, flip())
		default:
			continue
		}
		return
	}
}

// allowedNow reports whether the present policies allow an edge already.
func (r *run) allowedNow(e *history.Edge) bool {
	c := r.h.Connection(e)
	d := r.present.Decide(&c)
	return d.Verdict == flow.VerdictAllowed
}
