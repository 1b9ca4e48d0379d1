package flow

import (
	"cmp"
	"slices"
	"time"
)

// pending is what is not given yet of a pair, and how it relates to what was.
// A busy pair has very many flows in it, so that nothing looks at all of them
// for each report.
type pending struct {
	flows   []*merged // by number, without a gap
	given   int       // how many were before flows
	balance *balance
	nodes   []reached
	certain []*merged // whose verdict is no vague one, from the last settled one on
}

// reached is a node that has reported all of the pair's flows before a number.
type reached struct {
	node   string
	before int
}

// joinable finds the first flow that a report may join.
func (p *pending) joinable(f *Flow, slack time.Duration) *merged {
	from := p.given
	if f.Connections > 0 {
		from = p.reached(f.Node)
	} else if len(p.nodes) == 1 && p.nodes[0].node == f.Node {
		return nil // it goes on with what no other node told of
	}
	for _, m := range p.flows[from-p.given:] {
		if f.Start.Sub(m.start) <= slack && !m.settled && m.takes(f) && SameConnections(m.flow.Verdict, f.Verdict) && sameEnds(&m.flow, f) {
			return m
		}
	}
	return nil
}

// reached is the number of the first flow that a node has not reported.
func (p *pending) reached(node string) int {
	i := slices.IndexFunc(p.nodes, func(r reached) bool { return r.node == node })
	if i < 0 {
		i = len(p.nodes)
		p.nodes = append(p.nodes, reached{node: node})
	}
	r := &p.nodes[i]
	for r.before = max(r.before, p.given); r.before-p.given < len(p.flows) && p.flows[r.before-p.given].side(node) != nil; {
		r.before++
	}
	return r.before
}

// note keeps what settling needs to know of a flow that a report came to.
func (p *pending) note(m *merged) {
	for _, s := range m.sides {
		if !slices.ContainsFunc(p.nodes, func(r reached) bool { return r.node == s.node }) {
			p.nodes = append(p.nodes, reached{node: s.node})
		}
	}
	if !m.noted && !vague(&m.flow) {
		m.noted = true
		p.certain = append(p.certain, m)
	}
}

// takeCertain gives the flows that are certain and may not be settled yet, in
// their order, and forgets them.
func (p *pending) takeCertain() []*merged {
	out := p.certain
	p.certain = nil
	slices.SortFunc(out, func(a, b *merged) int { return cmp.Compare(a.number, b.number) })
	return out
}

// drop takes the first flow away: it was given.
func (p *pending) drop() {
	p.flows[0] = nil
	p.flows = p.flows[1:]
	p.given++
	for len(p.certain) > 0 && p.certain[0].number < p.given {
		p.certain = p.certain[1:]
	}
}
